"""Logging in on a real API server: what a provider's word makes of somebody, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api import bearer, linking, logins
from cairn.controller.model.damage import findings
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.kinds import ROOT, AnyKind
from cairn.proto.v1.api_token_pb2 import (
    ApiToken,
    ApiTokenSpec,
    CreateApiTokenRequest,
    DeleteApiTokenRequest,
    ListApiTokensRequest,
)
from cairn.proto.v1.audit_pb2 import ListAuditsRequest
from cairn.proto.v1.auth_pb2 import WhoAmIRequest
from cairn.proto.v1.identity_provider_pb2 import (
    CreateIdentityProviderRequest,
    DeleteIdentityProviderRequest,
    GetIdentityProviderRequest,
    IdentityProvider,
    IdentityProviderSpec,
    UpdateIdentityProviderRequest,
)
from cairn.proto.v1.login_pb2 import LoginRequest, LoginResponse, ShowLoginsRequest
from cairn.proto.v1.role_pb2 import CreateRoleRequest, Role, RoleSpec
from cairn.proto.v1.user_pb2 import (
    CreateUserRequest,
    DeleteUserRequest,
    GetUserRequest,
    UpdateUserRequest,
    User,
    UserLogin,
    UserSpec,
)
from cairn.proto.v1.vpc_pb2 import ListVpcsRequest, WatchVpcsRequest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.conformance.api_world import Stubs, World
from tests.conformance.openid_kit import CLIENT, FakeProvider, Vouching, key_server
from tests.conformance.test_api_access import refused
from tests.conformance.test_api_tokens import not_accepted, sees

Code = grpc.StatusCode
OPS = {"/ops": "ops", "/staff": "staff"}


class Corp:
    """A world with an identity provider."""

    def __init__(self, world: World, vouching: Vouching) -> None:
        self.world, self.vouching = world, vouching
        self.stranger = world.stubs(None, world.enrolment)

    async def trust(self, name: str = "corp", **spec: Any) -> IdentityProvider:
        given = {"issuer": self.vouching.issuer, "ca_pem": self.vouching.ca_pem, "client_id": CLIENT, "groups": OPS}
        made = IdentityProvider(name=name, spec=IdentityProviderSpec(**(given | {"create_users": True} | spec)))
        answer: IdentityProvider = await self.world.api.idps.CreateIdentityProvider(
            CreateIdentityProviderRequest(identity_provider=made)
        )
        return answer

    async def log_in(self, subject: str = "s-ada", name: str = "ada", *groups: str, provider: str = "corp") -> LoginResponse:
        token = self.vouching.issued(subject, "n", name=name, groups=groups)
        answer: LoginResponse = await self.stranger.logins.Login(LoginRequest(provider=provider, id_token=token, nonce="n"))
        return answer

    async def by(self, *given: Any, **more: Any) -> Stubs:
        return self.world.by_token((await self.log_in(*given, **more)).token)

    async def set(self, name: str = "corp", **spec: Any) -> None:
        made = IdentityProvider(id=name, spec=IdentityProviderSpec(**spec))
        mask = FieldMask(paths=[f"spec.{field}" for field in spec])
        request = UpdateIdentityProviderRequest(identity_provider=made, update_mask=mask, allow_stale=True)
        await self.world.api.idps.UpdateIdentityProvider(request)

    async def link(self, user: str, subject: str, by: Stubs | None = None) -> User:
        login = UserLogin(provider="corp", subject=subject)
        request = UpdateUserRequest(user=User(id=user, spec=UserSpec(login=login)), allow_stale=True)
        request.update_mask.paths.append("spec.login")
        answer: User = await (by or self.world.api).users.UpdateUser(request)
        return answer


@pytest.fixture(params=["fake", "fetched"])
async def corp(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Corp]:
    world = World(MemoryStore(), tmp_path)
    with key_server(tmp_path, world.clock) as server:
        vouching: Vouching = FakeProvider(world.clock) if request.param == "fake" else server
        world.identities = vouching.identities
        await world.start()
        try:
            await world.network()
            yield Corp(world, vouching)
        finally:
            await world.stop()


async def test_whom_a_provider_vouches_for_is_a_user_with_its_groups(corp: Corp) -> None:
    made = await corp.trust()
    assert made.status.say == "whoever it knows may log in; 0 users did"
    (way,) = (await corp.stranger.logins.ShowLogins(ShowLoginsRequest())).ways
    assert (way.name, way.issuer, way.client_id, list(way.scopes)) == ("corp", made.spec.issuer, CLIENT, ["openid", "profile"])
    await corp.world.bind("viewer", group="ops")
    answer = await corp.log_in("s-ada", "Ada.Byron@corp.example", "/ops", "/unheard-of")
    assert (answer.user, list(answer.groups)) == ("ada-byron", ["ops"])
    by = corp.world.by_token(answer.token)
    assert await seen(by) == ["home"]
    me = await by.auth.WhoAmI(WhoAmIRequest())
    assert (me.name, list(me.groups), me.token.spec.login.subject) == ("ada-byron", ["ops"], "s-ada")
    assert [each.status.subject_name for each in me.bindings] == ["group ops"]
    user = await corp.world.api.users.GetUser(GetUserRequest(id="ada-byron"))
    assert (user.spec.login.subject, user.status.provider_name, list(user.spec.groups)) == ("s-ada", "corp", [])
    again = await corp.log_in("s-ada", "called-otherwise-by-now", "/staff")
    assert (again.user, list(again.groups)) == ("ada-byron", ["staff"])
    assert await seen(corp.world.by_token(again.token)) == []
    assert await seen(by) == ["home"]
    assert (await corp.world.api.idps.GetIdentityProvider(GetIdentityProviderRequest(id="corp"))).status.users == 1
    assert not [each for each in findings(corp.world.cache.view) if each is not None]


async def test_nothing_of_a_login_is_secret_but_its_token_which_is_nowhere(
    corp: Corp, capfd: pytest.CaptureFixture[str]
) -> None:
    await corp.trust()
    answer = await corp.log_in()
    secret = answer.token.split("_", 2)[2]
    assert answer.api_token.secret_sha256 == b""
    items, _ = await corp.world.store.read(ROOT)
    assert not [item.key for item in items if secret.encode() in item.value]
    assert secret not in "".join(capfd.readouterr())
    found = (await corp.world.api.audits.ListAudits(ListAuditsRequest(method="Login"))).audits
    assert [(each.caller, each.who, each.address, each.object) for each in found] == [
        ("login", "ada", "127.0.0.1", f"api_token/{answer.api_token.id}")
    ]


async def test_each_token_is_good_for_one_login(corp: Corp) -> None:
    await corp.trust()
    request = LoginRequest(provider="corp", id_token=corp.vouching.issued("s-ada", "n", name="ada"), nonce="n")
    answers = await asyncio.gather(*(corp.stranger.logins.Login(request) for _ in range(8)), return_exceptions=True)
    assert len([each for each in answers if isinstance(each, LoginResponse)]) == 1
    assert await refused(corp.stranger.logins.Login(request)) == (Code.UNAUTHENTICATED, logins.USED)
    first = next(each for each in answers if isinstance(each, LoginResponse))
    by = corp.world.by_token(first.token)
    await by.tokens.DeleteApiToken(DeleteApiTokenRequest(id=first.api_token.id))
    assert await refused(corp.stranger.logins.Login(request)) == (Code.UNAUTHENTICATED, logins.USED)
    await not_accepted(by)


async def test_what_is_wrong_with_a_token_is_said(corp: Corp) -> None:
    await corp.trust()
    vouching = corp.vouching

    async def said(token: str, nonce: str = "n") -> str:
        code, say = await refused(corp.stranger.logins.Login(LoginRequest(provider="corp", id_token=token, nonce=nonce)))
        assert code is Code.UNAUTHENTICATED
        return say.removeprefix("the ID token is not accepted: ")

    assert await said(vouching.issued("s", "n", audience="other")) == "it is for 'other', not for 'cairn'"
    assert await said(vouching.issued("s", "another")) == "it is not of this login (its nonce is another)"
    good = vouching.issued("s", "n")
    corp.world.clock.ahead += timedelta(hours=1)
    assert (await said(good)).startswith("its time is over: it was made at ")
    corp.world.clock.ahead -= timedelta(hours=2)
    assert (await said(good)).endswith("is that clock right?")
    corp.world.clock.ahead += timedelta(hours=1)
    assert await said(good + "x" * (16 << 10)) == "it is longer than 16384 characters"
    code, say = await refused(corp.stranger.logins.Login(LoginRequest(provider="other", id_token=good, nonce="n")))
    assert (code, say) == (Code.NOT_FOUND, "there is no identity provider 'other' to log in by")
    assert await corp.world.count(kinds.API_TOKEN) == 0


async def test_keys_that_are_changed_count_at_once(corp: Corp) -> None:
    await corp.trust()
    await corp.log_in()
    old = corp.vouching.issued("s-bob", "n", name="bob")
    corp.vouching.rotate()
    if corp.vouching.issuer != FakeProvider.issuer:
        # Asked for once, they are not again within ten seconds, whatever tokens say.
        code, say = await refused(corp.by("s-eve", "eve"))
        assert (code, "no key of the identity provider" in say) == (Code.UNAUTHENTICATED, True)
        corp.world.core.identities._known.clear()  # type: ignore[attr-defined]
    assert (await corp.log_in("s-cyd", "cyd")).user == "cyd"
    code, _ = await refused(corp.stranger.logins.Login(LoginRequest(provider="corp", id_token=old, nonce="n")))
    assert code is Code.UNAUTHENTICATED


async def test_a_provider_that_is_gone_keeps_out_who_logs_in_and_nobody_else(corp: Corp) -> None:
    await corp.trust()
    await corp.world.bind("viewer", group="ops")
    by = await corp.by("s-ada", "ada", "/ops")
    corp.vouching.rotate()
    corp.vouching.go(gone=True)
    if corp.vouching.issuer != FakeProvider.issuer:
        corp.world.core.identities._known.clear()  # type: ignore[attr-defined]
    code, say = await refused(corp.by("s-bob", "bob"))
    assert (code, say.startswith("identity provider 'corp' cannot be asked: ")) == (Code.UNAVAILABLE, True)
    assert await seen(by) == ["home"]


async def test_who_is_not_let_in_is_told_why(corp: Corp) -> None:
    await corp.trust(create_users=False)
    assert await refused(corp.by("s-1", "ada")) == (
        Code.FAILED_PRECONDITION,
        "no user here logs in as 's-1' of 'corp': ask an administrator to link one to it",
    )
    await corp.set(create_users=True)
    await corp.world.user("bob")
    code, say = await refused(corp.by("s-2", "bob"))
    assert (code, "'bob' is another user's name" in say) == (Code.FAILED_PRECONDITION, True)
    code, say = await refused(corp.by("s-3", "admin"))
    assert (code, "'admin' is another user's name" in say) == (Code.FAILED_PRECONDITION, True)
    code, say = await refused(corp.by("s-4", "\u0430da"))
    assert (code, "ask an administrator to make a user for you" in say) == (Code.FAILED_PRECONDITION, True)
    linked = await corp.link("bob", "s-2")
    assert linked.spec.login.subject == "s-2"
    assert (await corp.log_in("s-2", "whatever")).user == "bob"


async def test_a_subject_is_one_users(corp: Corp) -> None:
    await corp.trust()
    await corp.world.user("bob")
    await corp.world.user("cyd")
    await corp.link("bob", "s-2")
    code, say = await refused(corp.link("cyd", "s-2"))
    assert (code, "user 'bob' logs in as that subject already" in say) == (Code.FAILED_PRECONDITION, True)
    await corp.world.api.users.DeleteUser(DeleteUserRequest(id="bob"))
    await corp.link("cyd", "s-2")
    assert (await corp.log_in("s-2", "bob")).user == "cyd"
    service = CreateUserRequest(user=User(name="robot", spec=UserSpec(type=UserSpec.TYPE_SERVICE)))
    service.user.spec.login.provider, service.user.spec.login.subject = "corp", "s-3"
    code, say = await refused(corp.world.api.users.CreateUser(service))
    assert (code, "a service account does not log in" in say) == (Code.INVALID_ARGUMENT, True)


async def test_what_a_login_stands_on_and_cannot_be_read_is_not_called_absent(corp: Corp) -> None:
    """Who is told that there is no such provider, or that nobody here is meant, does not try again."""
    provider, world = await corp.trust(), corp.world
    await corp.log_in()
    user = next(each for each in world.cache.view.all(kinds.USER) if each.spec.HasField("login"))
    called: tuple[AnyKind, str] = kinds.NAME, "-/identity_provider/corp"
    whose: tuple[AnyKind, str] = kinds.NAME, linking.claim_id(user.spec.login)
    spoiled: list[list[tuple[AnyKind, str]]] = [[called], [(kinds.IDENTITY_PROVIDER, provider.id)], [(kinds.USER, user.id)]]
    for at, records in enumerate([*spoiled, [(kinds.USER, user.id), whose]]):
        kept: list[Any] = [world.cache.view.get(kind, id) for kind, id in records]
        for kind, id in records:
            await world.spoil(kind, id)
        code, say = await refused(corp.log_in("s-ada", "ada", f"/{at}"))
        assert (code, "cannot be read; `cairn cluster fsck`" in say) == (Code.UNAVAILABLE, True), f"{records}: {say}"
        for (kind, id), message in zip(records, kept, strict=True):
            await world.commit(Txn(kind.writer).put(kind, id, message))
    assert (await corp.log_in("s-ada", "ada", "/ops")).user == "ada"


async def test_what_ends_a_login(corp: Corp) -> None:
    """At once, wherever it is used: the user, the link, the provider, the group's meaning; and time."""
    await corp.trust(session_s=3600)
    await corp.world.bind("viewer", group="ops")
    by = await corp.by("s-ada", "ada", "/ops")
    assert await seen(by) == ["home"]
    await corp.set(groups={"/ops": "staff"})
    assert await seen(by) == []
    await corp.set(groups=OPS)
    assert await seen(by) == ["home"]
    watch = by.vpcs.WatchVpcs(WatchVpcsRequest())
    await watch.read()
    await corp.set(disabled=True)
    await not_accepted(by)
    code, _ = await refused(_ended(watch))
    assert code is Code.UNAUTHENTICATED
    assert (await refused(corp.by("s-ada", "ada", "/ops")))[0] is Code.NOT_FOUND
    assert not (await corp.stranger.logins.ShowLogins(ShowLoginsRequest())).ways
    await corp.set(disabled=False)
    assert await seen(by) == ["home"]
    await corp.link("ada", "s-other")
    await not_accepted(by)
    await corp.link("ada", "s-ada")
    assert await seen(by) == ["home"]
    corp.world.clock.ahead += timedelta(seconds=3601)
    await not_accepted(by)


async def seen(stubs: Stubs) -> list[str]:
    """What somebody sees, who may have no role at all."""
    try:
        return await sees(stubs)
    except grpc.aio.AioRpcError as error:
        if error.code() is not Code.PERMISSION_DENIED:
            raise
        return []


async def _ended(watch: Any) -> None:
    while await watch.read() is not grpc.aio.EOF:
        pass


async def test_a_provider_goes_when_no_user_logs_in_by_it(corp: Corp) -> None:
    await corp.trust()
    await corp.log_in()
    code, say = await refused(corp.world.api.idps.DeleteIdentityProvider(DeleteIdentityProviderRequest(id="corp")))
    assert (code, say.startswith("1 user may log in by 'corp'")) == (Code.FAILED_PRECONDITION, True), say
    await corp.world.api.users.DeleteUser(DeleteUserRequest(id="ada"))
    await corp.world.api.idps.DeleteIdentityProvider(DeleteIdentityProviderRequest(id="corp"))
    assert await corp.world.count(kinds.IDENTITY_PROVIDER) == 0
    items, _ = await corp.world.store.read(kinds.NAME.prefix)
    assert not [item.key for item in items if "/login/" in item.key or "identity_provider" in item.key]


async def test_a_login_makes_no_token_that_has_its_groups_or_outlives_it(corp: Corp) -> None:
    await corp.trust()
    await corp.world.bind("viewer", group="ops")
    by = await corp.by("s-ada", "ada", "/ops")
    code, say = await refused(by.tokens.CreateApiToken(CreateApiTokenRequest()))
    assert (code, "makes none that ends later" in say) == (Code.PERMISSION_DENIED, True)
    made = await by.tokens.CreateApiToken(CreateApiTokenRequest(ttl_s=60))
    assert await seen(corp.world.by_token(made.token)) == [], "groups are of whoever logged in"
    forged = ApiToken(spec=ApiTokenSpec())
    forged.spec.login.provider, forged.spec.login.groups[:] = "corp", ["ops"]
    answer = await by.tokens.CreateApiToken(CreateApiTokenRequest(api_token=forged, ttl_s=60))
    assert not answer.api_token.spec.HasField("login")
    assert await seen(corp.world.by_token(answer.token)) == []


async def test_a_user_has_so_many_logins_and_the_oldest_goes(corp: Corp) -> None:
    await corp.trust()
    await corp.world.bind("viewer", group="ops")
    first = await corp.by("s-ada", "ada", "/ops")
    assert await seen(first) == ["home"]
    for number in range(logins.LOGINS_MAX):
        corp.world.clock.ahead += timedelta(seconds=1)
        last = await corp.by("s-ada", f"ada-{number}", "/ops")
    await not_accepted(first)
    assert await seen(last) == ["home"]
    assert len((await last.tokens.ListApiTokens(ListApiTokensRequest())).api_tokens) == logins.LOGINS_MAX


async def test_nobody_gives_by_a_provider_what_he_has_not(corp: Corp) -> None:
    await corp.trust()
    await corp.world.bind("cluster-admin", group="ops")
    await corp.world.user("root", "cluster-admin")
    patterns = ["identity_provider.*", "user.*", "*.see"]
    await corp.world.api.roles.CreateRole(CreateRoleRequest(role=Role(name="clerk", spec=RoleSpec(permissions=patterns))))
    clerk = await corp.world.user("clerk", "clerk")
    other = IdentityProvider(name="other", spec=IdentityProviderSpec(issuer="https://evil.example", client_id="x", groups=OPS))
    code, _ = await refused(clerk.idps.CreateIdentityProvider(CreateIdentityProviderRequest(identity_provider=other)))
    assert code is Code.PERMISSION_DENIED, "its groups may do more than the clerk"
    other.spec.ClearField("groups")
    await clerk.idps.CreateIdentityProvider(CreateIdentityProviderRequest(identity_provider=other))
    assert (await refused(corp.link("root", "s-me", clerk)))[0] is Code.PERMISSION_DENIED, "he would be root"
    await corp.link("root", "s-root")
    spec = IdentityProviderSpec(client_id="mine")
    stolen = UpdateIdentityProviderRequest(identity_provider=IdentityProvider(id="corp", spec=spec), allow_stale=True)
    stolen.update_mask.paths.append("spec.client_id")
    assert (await refused(clerk.idps.UpdateIdentityProvider(stolen)))[0] is Code.PERMISSION_DENIED


async def test_who_may_change_users_and_no_providers_shuts_out_whom_he_must(corp: Corp) -> None:
    await corp.trust()
    await corp.log_in()
    await corp.world.api.roles.CreateRole(CreateRoleRequest(role=Role(name="guard", spec=RoleSpec(permissions=["user.*"]))))
    guard = await corp.world.user("guard", "guard")
    request = UpdateUserRequest(user=User(id="ada", spec=UserSpec(disabled=True)), allow_stale=True)
    request.update_mask.paths.append("spec.disabled")
    assert (await guard.users.UpdateUser(request)).spec.disabled
    assert (await refused(corp.link("ada", "s-me", guard)))[0] is Code.NOT_FOUND, "he knows of no provider"


async def test_guesses_are_bounded(corp: Corp) -> None:
    await corp.trust()
    for number in range(bearer.BAD_MAX + 5):
        bad = LoginRequest(provider="corp", id_token=f"{number}.x.y", nonce="n")
        assert (await refused(corp.stranger.logins.Login(bad)))[0] is Code.UNAUTHENTICATED
    code, say = await refused(corp.by())
    assert (code, "too many came from here" in say) == (Code.UNAUTHENTICATED, True)
    corp.world.clock.ahead += timedelta(minutes=1)
    assert (await corp.log_in()).user == "ada"


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("issuer", {"issuer": "http://id.example"}),
        ("issuer", {"issuer": ""}),
        ("issuer", {"issuer": "https://id.example/?x=1"}),
        ("client_id", {"client_id": "a\nb"}),
        ("ca_pem", {"ca_pem": "no certificate"}),
        ("scopes", {"scopes": ["a b"]}),
        ("groups['/ops']", {"groups": {"/ops": "Not a name"}}),
        ("session_s", {"session_s": 59}),
        ("session_s", {"session_s": 86401}),
        ("description", {"description": "x" * 2000}),
    ],
)
async def test_what_a_provider_cannot_be_is_refused_by_field(corp: Corp, field: str, spec: dict[str, Any]) -> None:
    code, say = await refused(corp.trust(**spec))
    assert (code, say.startswith(f"identity_provider.spec.{field}: ")) == (Code.INVALID_ARGUMENT, True), say


async def test_without_logging_in_a_stranger_learns_nothing_else(corp: Corp) -> None:
    await corp.trust()
    code, _ = await refused(corp.stranger.vpcs.ListVpcs(ListVpcsRequest()))
    assert code is Code.UNAUTHENTICATED
