"""API tokens on a real API server: whom they stand for, what they are narrowed to, how they end, what nobody learns of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api import bearer
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.kinds import ROOT
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Identity, make_csr
from cairn.proto.rpc import GrpcTransport, StaticCredentials
from cairn.proto.v1 import binding_pb2, cluster_pb2, event_pb2, role_pb2, user_pb2, vpc_pb2
from cairn.proto.v1.api_token_pb2 import (
    ApiToken,
    ApiTokenSpec,
    CreateApiTokenRequest,
    DeleteApiTokenRequest,
    GetApiTokenRequest,
    ListApiTokensRequest,
    UpdateApiTokenRequest,
    WatchApiTokensRequest,
)
from cairn.proto.v1.auth_pb2 import CheckPermissionRequest, WhoAmIRequest
from cairn.proto.v1.role_pb2 import Role, RoleSpec
from cairn.proto.v1.user_pb2 import User, UserSpec
from cairn.proto.v1.vpc_pb2 import ListVpcsRequest, WatchVpcsRequest

from tests.conformance.api_world import Stubs, World, world_on
from tests.conformance.test_api_access import new_vpc, refused

Code = grpc.StatusCode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.network()
        yield world


async def token(stubs: Stubs, *, ttl_s: int = 0, name: str = "", **spec: Any) -> tuple[ApiToken, str]:
    """Make one; return it, and what is shown once."""
    asked = CreateApiTokenRequest(api_token=ApiToken(name=name, spec=ApiTokenSpec(**spec)), ttl_s=ttl_s)
    answer = await stubs.tokens.CreateApiToken(asked)
    return answer.api_token, answer.token


async def sees(stubs: Stubs) -> list[str]:
    return [vpc.name for vpc in (await stubs.vpcs.ListVpcs(ListVpcsRequest(project="-"))).vpcs]


async def not_accepted(stubs: Stubs) -> None:
    assert await refused(stubs.vpcs.ListVpcs(ListVpcsRequest())) == (Code.UNAUTHENTICATED, bearer.SAY)


async def test_whoever_shows_a_token_is_its_user_and_needs_no_certificate(world: World) -> None:
    bob = await world.user("bob", "member")
    made, text = await token(bob, name="laptop", description="on the train")
    assert (made.status.user_name, made.name) == ("bob", "laptop")
    by = world.by_token(text)
    mine = await by.vpcs.CreateVpc(new_vpc("mine"))
    assert sorted(await sees(by)) == ["home", "mine"]
    assert (await refused(by.users.CreateUser(user_pb2.CreateUserRequest(user=User(name="x")))))[0] is Code.PERMISSION_DENIED
    me = await by.auth.WhoAmI(WhoAmIRequest())
    assert (me.name, me.token.id, me.token.name) == ("bob", made.id, "laptop")
    (created,) = (
        await by.events.ListEvents(event_pb2.ListEventsRequest(filter=f'object="{mine.id}"', read_revision=mine.revision))
    ).events
    assert (created.actor, created.actor_token) == ("bob", made.id)


async def test_what_is_secret_is_shown_once_and_is_nowhere_else(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    bob = await world.user("bob", "viewer")
    made, text = await token(bob)
    secret = text.rpartition("_")[2] if text.count("_") == 2 else text.split("_", 2)[2]
    shown = [
        await bob.tokens.GetApiToken(GetApiTokenRequest(id=made.name)),
        *(await bob.tokens.ListApiTokens(ListApiTokensRequest())).api_tokens,
    ]
    watch = bob.tokens.WatchApiTokens(WatchApiTokensRequest())
    shown.append((await watch.read()).api_token)
    watch.cancel()
    shown.append(await bob.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id)))
    for each in (made, *shown):
        assert (each.id, each.secret_sha256) == (made.id, b"")
    await not_accepted(world.by_token(text))
    items, _ = await world.store.read(ROOT)
    assert not [item.key for item in items if secret.encode() in item.value]
    for stored in ("secret_sha256=x", "secret_sha256<x"):
        code, say = await refused(bob.tokens.ListApiTokens(ListApiTokensRequest(filter=stored)))
        assert (code, "bytes" in say) == (Code.INVALID_ARGUMENT, True)
    written = "".join(capfd.readouterr())
    assert secret not in written


async def test_each_answer_to_a_repeated_request_is_good(world: World) -> None:
    bob = await world.user("bob", "viewer")
    asked = CreateApiTokenRequest(request_id=world.ids.uuid())
    answers = [await bob.tokens.CreateApiToken(asked) for _ in range(3)]
    assert len({each.api_token.id for each in answers}) == 1
    assert len({each.token for each in answers}) == 3
    for each in answers:
        assert await sees(world.by_token(each.token)) == ["home"]
    assert await world.count(kinds.API_TOKEN) == 1


async def test_a_planned_token_is_shown_once_it_is_made(world: World) -> None:
    bob = await world.user("bob", "viewer")
    planned = await bob.tokens.CreateApiToken(CreateApiTokenRequest(validate_only=True))
    assert (planned.token, await world.count(kinds.API_TOKEN)) == ("", 0)
    made = await bob.tokens.CreateApiToken(CreateApiTokenRequest(plan_id=planned.api_token.plan.plan_id))
    assert await sees(world.by_token(made.token)) == ["home"]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "cairn_tok-00000000_" + "A" * 43,
        "cairn_usr-00000000_" + "A" * 43,
        "cairn_tok-00000000_" + "A" * 4000,
        "cairn_../../x_" + "A" * 43,
    ],
)
async def test_all_that_is_bad_is_answered_alike(world: World, bad: str) -> None:
    await not_accepted(world.by_token(bad) if bad else world.by_token(" "))


async def test_a_good_beginning_is_no_better(world: World) -> None:
    bob = await world.user("bob", "viewer")
    _, text = await token(bob)
    changed = text[:-2] + ("AA" if text[-2:] != "AA" else "BB")
    for bad in (changed, text[:-1], text + "A", text.upper(), text + " "):
        if bad.strip() != text:
            await not_accepted(world.by_token(bad))
    assert await sees(world.by_token(text)) == ["home"]


async def test_who_shows_nothing_or_too_much_is_nobody(world: World) -> None:
    bob = await world.user("bob", "viewer")
    _, text = await token(bob)
    bare = world.stubs(None, world.enrolment)
    assert (await refused(bare.vpcs.ListVpcs(ListVpcsRequest())))[0] is Code.UNAUTHENTICATED
    both = (("authorization", f"Bearer {text}"), ("authorization", f"Bearer {text}"))
    assert await refused(bare.vpcs.ListVpcs(ListVpcsRequest(), metadata=both)) == (Code.UNAUTHENTICATED, bearer.SAY)
    basic = (("authorization", f"Basic {text}"),)
    assert await refused(bare.vpcs.ListVpcs(ListVpcsRequest(), metadata=basic)) == (Code.UNAUTHENTICATED, bearer.SAY)
    # A certificate besides: it is not chosen between them.
    code, say = await refused(bob.vpcs.ListVpcs(ListVpcsRequest(), metadata=both[:1]))
    assert (code, "one of them" in say) == (Code.UNAUTHENTICATED, True)


async def test_a_certificate_of_a_user_is_not_asked_for_where_tokens_are(world: World) -> None:
    await world.user("bob", "viewer")
    there = world.stubs(Identity("user", "bob"), world.enrolment)
    assert (await refused(there.vpcs.ListVpcs(ListVpcsRequest())))[0] is Code.UNAUTHENTICATED


async def test_a_token_is_good_while_its_user_is_and_it_is_itself(world: World) -> None:
    bob = await world.user("bob", "viewer")
    made, text = await token(bob)
    by = world.by_token(text)
    assert await sees(by) == ["home"]
    for disabled in (True, False):
        change = UpdateApiTokenRequest(api_token=ApiToken(id=made.id, spec=ApiTokenSpec(disabled=disabled)), allow_stale=True)
        change.update_mask.paths.append("spec.disabled")
        await bob.tokens.UpdateApiToken(change)
        await (not_accepted(by) if disabled else sees(by))
    for disabled in (True, False):
        asked = user_pb2.UpdateUserRequest(user=User(name="bob", spec=UserSpec(disabled=disabled)), allow_stale=True)
        asked.update_mask.paths.append("spec.disabled")
        await world.api.users.UpdateUser(asked)
        await (not_accepted(by) if disabled else sees(by))
    (only,) = [each for each in world.cache.view.all(kinds.BINDING) if each.spec.subject.user]
    await world.api.bindings.DeleteBinding(binding_pb2.DeleteBindingRequest(id=only.id))
    assert (await refused(by.vpcs.ListVpcs(ListVpcsRequest())))[0] is Code.PERMISSION_DENIED
    await world.bind("viewer", user="bob")
    assert await sees(by) == ["home"]
    await bob.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id))
    await not_accepted(by)


async def test_a_token_of_a_user_that_is_gone_is_nobodys(world: World) -> None:
    bob = await world.user("bob", "viewer")
    _, text = await token(bob)
    await world.api.users.DeleteUser(user_pb2.DeleteUserRequest(id="bob"))
    await not_accepted(world.by_token(text))
    await world.user("bob", "viewer")
    await not_accepted(world.by_token(text))


async def test_it_ends_when_it_says_also_in_the_middle_of_a_stream(world: World) -> None:
    bob = await world.user("bob", "viewer")
    _, text = await token(bob, ttl_s=3600)
    by = world.by_token(text)
    watch = by.vpcs.WatchVpcs(WatchVpcsRequest())
    assert (await watch.read()).vpc.name == "home"
    await watch.read()
    world.clock.ahead = timedelta(seconds=3599)
    await asyncio.sleep(0)
    assert await sees(by) == ["home"]
    world.clock.ahead = timedelta(seconds=3601)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await watch.read()
    assert (caught.value.code(), caught.value.details()) == (Code.UNAUTHENTICATED, bearer.SAY)
    await not_accepted(by)


@pytest.mark.parametrize("way", ["delete", "disable", "user"])
async def test_an_open_stream_ends_with_what_it_was_opened_by(world: World, way: str) -> None:
    bob = await world.user("bob", "viewer")
    made, text = await token(bob)
    watch = world.by_token(text).vpcs.WatchVpcs(WatchVpcsRequest())
    await watch.read()
    await watch.read()
    if way == "delete":
        await bob.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id))
    elif way == "disable":
        change = UpdateApiTokenRequest(api_token=ApiToken(id=made.id, spec=ApiTokenSpec(disabled=True)), allow_stale=True)
        change.update_mask.paths.append("spec.disabled")
        await bob.tokens.UpdateApiToken(change)
    else:
        await world.api.users.DeleteUser(user_pb2.DeleteUserRequest(id="bob"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await watch.read()
    assert caught.value.code() is Code.UNAUTHENTICATED


async def test_narrowed_to_permissions_roles_and_projects(world: World) -> None:
    red = await world.project("red")
    bob = await world.user("bob", "cluster-admin")
    await world.bind("viewer", red, user="bob")
    await bob.vpcs.CreateVpc(new_vpc("there", "red"))
    looks = world.by_token((await token(bob, permissions=["*.see"]))[1])
    assert sorted(await sees(looks)) == ["home", "there"]
    assert (await refused(looks.vpcs.CreateVpc(new_vpc("mine"))))[0] is Code.PERMISSION_DENIED
    as_viewer = world.by_token((await token(bob, roles=["viewer"]))[1])
    assert await sees(as_viewer) == ["there"]
    assert (await refused(as_viewer.vpcs.CreateVpc(new_vpc("mine", "red"))))[0] is Code.PERMISSION_DENIED
    in_red = world.by_token((await token(bob, projects=["red"]))[1])
    assert await sees(in_red) == ["there"]
    await in_red.vpcs.CreateVpc(new_vpc("more", "red"))
    assert (await refused(in_red.vpcs.CreateVpc(new_vpc("mine"))))[0] is Code.NOT_FOUND
    assert not (await in_red.users.ListUsers(user_pb2.ListUsersRequest())).users
    (me,) = [await in_red.auth.CheckPermission(CheckPermissionRequest(permission="vpc.delete", project="red"))]
    assert me.allowed
    assert not (await in_red.auth.CheckPermission(CheckPermissionRequest(permission="user.create", project="-"))).allowed
    neither = world.by_token((await token(bob, roles=["viewer"], permissions=["vm.delete"]))[1])
    assert (await refused(neither.vpcs.ListVpcs(ListVpcsRequest())))[0] is Code.PERMISSION_DENIED


async def test_narrowed_to_where_it_comes_from(world: World) -> None:
    bob = await world.user("bob", "viewer")
    elsewhere = world.by_token((await token(bob, sources=["10.1.0.0/16"]))[1])
    await not_accepted(elsewhere)
    here = world.by_token((await token(bob, sources=["10.1.0.0/16", "127.0.0.1"]))[1])
    assert await sees(here) == ["home"]
    bad = CreateApiTokenRequest(api_token=ApiToken(spec=ApiTokenSpec(sources=["10.1.1.1/16"])))
    code, say = await refused(bob.tokens.CreateApiToken(bad))
    assert (code, "api_token.spec.sources" in say or "10.1.1.1/16" in say) == (Code.INVALID_ARGUMENT, True)


async def test_a_narrowed_token_makes_nothing_wider(world: World) -> None:
    boss = await world.user("boss", "cluster-admin")
    await world.user("bob")
    for spec in ({"permissions": ["api_token.*", "binding.*", "role.*", "user.*", "vpc.see"]}, {"sources": ["127.0.0.0/8"]}):
        made, text = await token(boss, **spec)
        by = world.by_token(text)
        assert (await refused(by.tokens.CreateApiToken(CreateApiTokenRequest())))[0] is Code.PERMISSION_DENIED
        him = CreateApiTokenRequest(api_token=ApiToken(spec=ApiTokenSpec(user="bob")))
        assert (await refused(by.tokens.CreateApiToken(him)))[0] is Code.PERMISSION_DENIED
        await boss.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id))
    _, text = await token(boss, permissions=["binding.*", "role.*", "user.*", "vpc.see"])
    by = world.by_token(text)
    spec = binding_pb2.BindingSpec(role="viewer", subject=binding_pb2.Subject(user="bob"))
    code, say = await refused(
        by.bindings.CreateBinding(binding_pb2.CreateBindingRequest(binding=binding_pb2.Binding(spec=spec)))
    )
    assert (code, "cannot give role 'viewer'" in say) == (Code.PERMISSION_DENIED, True)
    wide = Role(name="wide", spec=RoleSpec(permissions=["vm.*"]))
    code, say = await refused(by.roles.CreateRole(role_pb2.CreateRoleRequest(role=wide)))
    assert (code, "into a role" in say) == (Code.PERMISSION_DENIED, True)
    await by.roles.CreateRole(role_pb2.CreateRoleRequest(role=Role(name="narrow", spec=RoleSpec(permissions=["vpc.see"]))))


async def test_a_token_makes_none_that_outlives_it_and_no_certificate(world: World) -> None:
    bob = await world.user("bob", "cluster-admin")
    _, text = await token(bob, ttl_s=3600)
    by = world.by_token(text)
    code, say = await refused(by.tokens.CreateApiToken(CreateApiTokenRequest(ttl_s=7200)))
    assert (code, "ends later" in say) == (Code.PERMISSION_DENIED, True)
    await token(by, ttl_s=600)
    renew = cluster_pb2.RenewCertificateRequest(csr_pem=make_csr("bob").cert_pem)
    assert (await refused(by.identity.RenewCertificate(renew)))[0] is Code.PERMISSION_DENIED


async def test_everyone_has_tokens_of_his_own_and_sees_no_others(world: World) -> None:
    bob, eve = await world.user("bob"), await world.user("eve")
    made, text = await token(bob)
    assert [each.id for each in (await bob.tokens.ListApiTokens(ListApiTokensRequest())).api_tokens] == [made.id]
    assert not (await eve.tokens.ListApiTokens(ListApiTokensRequest())).api_tokens
    assert (await refused(eve.tokens.GetApiToken(GetApiTokenRequest(id=made.id))))[0] is Code.NOT_FOUND
    assert (await refused(eve.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id))))[0] is Code.NOT_FOUND
    his = CreateApiTokenRequest(api_token=ApiToken(spec=ApiTokenSpec(user="bob")))
    assert (await refused(eve.tokens.CreateApiToken(his)))[0] is Code.NOT_FOUND
    # It has no more than its user, who has nothing but himself.
    by = world.by_token(text)
    assert (await by.auth.WhoAmI(WhoAmIRequest())).name == "bob"
    assert (await refused(by.vpcs.ListVpcs(ListVpcsRequest())))[0] is Code.PERMISSION_DENIED
    narrow, text = await token(bob, permissions=["vm.see"])
    by = world.by_token(text)
    assert [each.id for each in (await by.tokens.ListApiTokens(ListApiTokensRequest())).api_tokens] == [narrow.id]
    assert (await refused(by.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id))))[0] is Code.NOT_FOUND
    await by.tokens.DeleteApiToken(DeleteApiTokenRequest(id=narrow.id))
    await not_accepted(by)
    stranger = world.stubs(Identity("user", "nobody"))
    assert (await refused(stranger.tokens.CreateApiToken(CreateApiTokenRequest())))[0] is Code.PERMISSION_DENIED
    code, say = await refused(world.api.tokens.CreateApiToken(CreateApiTokenRequest()))
    assert (code, "whose?" in say) == (Code.INVALID_ARGUMENT, True)


async def test_who_makes_tokens_for_others_makes_none_that_may_more_than_he(world: World) -> None:
    helper = await world.user("helper", "viewer")
    await world.api.roles.CreateRole(
        role_pb2.CreateRoleRequest(role=Role(name="tokens", spec=RoleSpec(permissions=["api_token.*", "user.use"])))
    )
    await world.bind("tokens", user="helper")
    await world.user("reader", "viewer")
    await world.user("writer", "member")
    _, text = await token(helper, user="reader")
    assert (await world.by_token(text).auth.WhoAmI(WhoAmIRequest())).name == "reader"
    asked = CreateApiTokenRequest(api_token=ApiToken(spec=ApiTokenSpec(user="writer")))
    code, say = await refused(helper.tokens.CreateApiToken(asked))
    assert (code, "where 'writer' may" in say) == (Code.PERMISSION_DENIED, True)
    _, text = await token(helper, user="writer", permissions=["*.see"])
    assert await sees(world.by_token(text)) == ["home"]


async def test_a_plan_is_applied_by_what_it_was_made_by(world: World) -> None:
    bob = await world.user("bob", "member")
    asked = new_vpc("mine")
    asked.validate_only = True
    plan = (await bob.vpcs.CreateVpc(asked)).plan.plan_id
    asked.validate_only, asked.plan_id = False, plan
    by = world.by_token((await token(bob))[1])
    assert (await refused(by.vpcs.CreateVpc(asked)))[0] is Code.ABORTED
    assert (await bob.vpcs.CreateVpc(asked)).name == "mine"


async def test_a_request_is_its_users_whatever_he_asks_by(world: World) -> None:
    bob = await world.user("bob", "member")
    by = world.by_token((await token(bob))[1])
    narrow = world.by_token((await token(bob, permissions=["vm.*", "project.see"]))[1])
    asked = new_vpc("mine")
    asked.request_id = world.ids.uuid()
    first = await bob.vpcs.CreateVpc(asked)
    assert (await by.vpcs.CreateVpc(asked)).id == first.id
    assert (await refused(narrow.vpcs.CreateVpc(asked)))[0] is Code.PERMISSION_DENIED
    gone = vpc_pb2.DeleteVpcRequest(id=first.id, request_id=world.ids.uuid())
    await bob.vpcs.DeleteVpc(gone)
    assert (await by.vpcs.DeleteVpc(gone)).id == first.id


async def test_a_role_that_tokens_are_narrowed_to_stays(world: World) -> None:
    bob = await world.user("bob", "viewer")
    role = Role(name="own", spec=RoleSpec(permissions=["vm.see"]))
    await world.api.roles.CreateRole(role_pb2.CreateRoleRequest(role=role))
    made, _ = await token(bob, roles=["own"])
    assert list(made.status.role_names) == ["own"]
    code, say = await refused(world.api.roles.DeleteRole(role_pb2.DeleteRoleRequest(id="own")))
    assert (code, "API token" in say) == (Code.FAILED_PRECONDITION, True)
    await bob.tokens.DeleteApiToken(DeleteApiTokenRequest(id=made.id))
    await world.api.roles.DeleteRole(role_pb2.DeleteRoleRequest(id="own"))


async def test_who_guesses_is_soon_not_listened_to_and_his_neighbours_go_on(world: World, monkeypatch: Any) -> None:
    bob = await world.user("bob", "viewer")
    _, known = await token(bob)
    _, other = await token(bob)
    neighbour = world.by_token(known)
    assert await sees(neighbour) == ["home"]
    bare = world.stubs(None, world.enrolment)

    async def guess(text: str) -> tuple[grpc.StatusCode, str]:
        return await refused(bare.vpcs.ListVpcs(ListVpcsRequest(), metadata=(("authorization", f"Bearer {text}"),)))

    looked: list[str] = []
    known_as = bearer.Bearers._known

    def looks(self: Any, view: Any, text: str, source: str) -> Any:
        looked.append(text)
        return known_as(self, view, text, source)

    monkeypatch.setattr(bearer.Bearers, "_known", looks)
    for number in range(bearer.BAD_MAX + 20):
        assert await guess(f"cairn_tok-{number:08d}_" + "A" * 43) == (Code.UNAUTHENTICATED, bearer.SAY)
    assert len(set(looked)) <= bearer.BAD_MAX + 2
    assert await sees(neighbour) == ["home"]
    # One that was not seen from there before waits until that is forgiven.
    assert await guess(other) == (Code.UNAUTHENTICATED, bearer.SAY)
    world.clock.ahead = timedelta(seconds=bearer.BAD_MAX / bearer.FORGIVEN_PER_S)
    assert await sees(world.by_token(other)) == ["home"]


async def test_a_token_made_through_another_controller_is_good_at_once(world: World) -> None:
    """The view here does not show it yet: it is looked for in the store before it is refused."""
    await world.user("bob", "viewer")
    (user,) = [each for each in world.cache.view.all(kinds.USER) if each.name == "bob"]
    secret = "A" * 43
    made = ApiToken(id="tok-0000000a", name="x", spec=ApiTokenSpec(user=user.id), secret_sha256=bearer.digest_of(secret))
    made.spec.expire_time.FromDatetime(world.clock.now() + timedelta(hours=1))
    from cairn.controller.store.base import Txn

    await world.store.commit(Txn("api").create(kinds.API_TOKEN, made.id, made))
    assert await sees(world.by_token(bearer.text_of(made.id, secret))) == ["home"]


async def test_a_file_with_a_token_is_read_again_when_it_changes(world: World, tmp_path: Path) -> None:
    from cairn.proto.rpc import FileCredentials

    bob = await world.user("bob", "viewer")
    ca, held = tmp_path / "ca.crt", tmp_path / "token"
    ca.write_bytes(world.authority.cert_pem)
    first, text = await token(bob)
    held.write_text(f"{text}\n")
    channel = GrpcTransport(FileCredentials(ca, token=held)).channel([world.enrolment], server_name=CONTROLLER_SERVER_NAME)
    by = Stubs(channel)
    assert await sees(by) == ["home"]
    _, renewed = await token(bob)
    await bob.tokens.DeleteApiToken(DeleteApiTokenRequest(id=first.id))
    await not_accepted(by)
    held.write_text(f"{renewed}\n")
    assert await sees(by) == ["home"]
    await channel.close()
    assert StaticCredentials(b"", token=text).material().token == text
