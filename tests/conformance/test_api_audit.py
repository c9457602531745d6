"""The audit: one record for each change, in its transaction, chained; a forged, removed or reordered one is found."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api.authorise import Admitted
from cairn.controller.api.mutation import Mutations
from cairn.controller.api.refusals import OF_CALLER_MAX
from cairn.controller.api.vpcs import VpcService
from cairn.controller.audit_bound import AuditBound
from cairn.controller.backup import backup
from cairn.controller.model.permits import Caller
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.restore import Restore, read
from cairn.controller.store.base import Put, Store, Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.pki import TokenContent, make_csr
from cairn.proto.v1.agent_pb2 import Desired, DesiredVolume, Unknown
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, CreateApiTokenRequest
from cairn.proto.v1.audit_pb2 import Audit, ListAuditsRequest, VerifyAuditsRequest, VerifyAuditsResponse
from cairn.proto.v1.backup_pb2 import BackupClusterRequest
from cairn.proto.v1.cluster_pb2 import (
    Cluster,
    ControllerMember,
    ForgetUnknownRequest,
    JoinNodeRequest,
    RetireControllerRequest,
)
from cairn.proto.v1.node_pb2 import CreateJoinTokenRequest, DeleteJoinTokenRequest
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, GetVmRequest, UpdateVmRequest, Vm, VmSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, Vpc, VpcSpec
from google.protobuf.field_mask_pb2 import FieldMask

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_together import Counted


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.furnish()
        yield world


async def audits(world: World, **asked: Any) -> list[Audit]:
    return list((await world.api.audits.ListAudits(ListAuditsRequest(page_size=1000, **asked))).audits)


async def broken(world: World) -> list[str]:
    return list((await walked(world))[-1].verdict.broken)


async def walked(world: World) -> list[VerifyAuditsResponse]:
    """Have the audit verified; return how far it was, and last what was found."""
    return [each async for each in world.api.audits.VerifyAudits(VerifyAuditsRequest())]


async def vpcs(world: World, count: int) -> None:
    made = (CreateVpcRequest(vpc=Vpc(name=f"v{each}", spec=VpcSpec(cidr="10.9.0.0/16"))) for each in range(count))
    await asyncio.gather(*(world.api.vpcs.CreateVpc(each) for each in made))


async def raw(store: Store, puts: dict[str, bytes], *deletes: str) -> None:
    """Write behind everybody's back."""
    txn = Txn("forger", puts={key: Put(value) for key, value in puts.items()}, deletes=set(deletes))
    txn.writers = dict.fromkeys((*txn.puts, *txn.deletes), "forger")
    await store.commit(txn)


async def stored(store: Store) -> list[tuple[str, bytes]]:
    items, _ = await store.read(kinds.AUDIT.prefix)
    return [(item.key, item.value) for item in items]


async def test_who_changed_what_when_and_what_it_was_before(world: World) -> None:
    made = await world.vm("web")
    vm = Vm(id=made.id, spec=VmSpec(cpus=2))
    await world.api.vms.UpdateVm(UpdateVmRequest(vm=vm, update_mask=FieldMask(paths=["spec.cpus"]), allow_stale=True))
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"))
    found = await audits(world, object=made.id)
    assert [each.method for each in found] == ["CreateVm", "UpdateVm", "DeleteVm"]
    assert {(each.caller, each.who, each.object, each.object_name) for each in found} == {
        ("user", "admin", f"vm/{made.id}", "web")
    }
    changed = {change.field: (change.before, change.after) for change in found[1].changes if not change.object}
    assert changed["spec.cpus"] == (str(made.spec.cpus), "2")
    created = {change.field: (change.before, change.after) for change in found[0].changes if not change.object}
    assert created["spec.cpus"] == ("", str(made.spec.cpus))
    assert created["name"] == ("", "web")
    assert [each.revision for each in found] == sorted({each.revision for each in found})
    assert await broken(world) == []


async def test_those_that_share_a_commit_follow_one_another(world: World) -> None:
    await vpcs(world, 30)
    found = await audits(world, method="CreateVpc")
    if not isinstance(world.store, MemoryStore):
        assert len({each.revision for each in found}) < len(found), "some shared a commit"
    everything = await audits(world)
    assert [each.number for each in everything] == list(range(1, len(everything) + 1))
    assert await broken(world) == []


async def refused(call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def told(world: World) -> list[Audit]:
    """Return what is on record of refusals, once all are."""
    await world.refusals.tell(math.inf)
    return await audits(world, refused=True)


async def test_what_is_only_planned_or_read_leaves_no_record(world: World) -> None:
    before = len(await audits(world))
    planned = Vpc(name="p", spec=VpcSpec(cidr="10.9.0.0/16"))
    await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=planned, validate_only=True))
    await refused(world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name="p"), validate_only=True)))
    await refused(world.api.vms.GetVm(GetVmRequest(id="nobody")))
    await world.refusals.tell(math.inf)
    assert len(await audits(world)) == before


async def test_what_is_refused_is_on_record_once_and_counted(world: World) -> None:
    made = await world.vm("web")
    bob = await world.user("bob", "viewer", project="default")
    for _ in range(3):
        await refused(bob.vms.DeleteVm(DeleteVmRequest(id=made.id)))
    await refused(world.api.vms.DeleteVm(DeleteVmRequest(id="nobody")))
    await refused(world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name="x", spec=VpcSpec(cidr="geheim")))))
    # A secret in the place of a name is nobody's to read.
    await refused(world.api.vms.DeleteVm(DeleteVmRequest(id="Geheim_1")))
    found = await told(world)
    assert [(each.who, each.method, each.refusal, each.count, each.object_name) for each in found] == [
        ("bob", "DeleteVm", "PERMISSION_DENIED", 3, ""),
        ("admin", "DeleteVm", "NOT_FOUND", 1, "nobody"),
        ("admin", "CreateVpc", "INVALID_ARGUMENT", 1, "x"),
        ("admin", "DeleteVm", "NOT_FOUND", 1, ""),
    ]
    assert (found[0].object, found[0].project) == (f"vm/{made.id}", "prj-default0")
    assert found[2].say == "vpc.spec.cidr is invalid"
    for _, value in await stored(world.store):
        assert b"geheim" not in value.lower()
    assert await audits(world, done=True) == [each for each in await audits(world) if not each.refusal]
    assert await audits(world, done=True, refused=True) == await audits(world)
    assert await broken(world) == []


async def test_a_call_says_which_request_it_is_a_part_of(world: World) -> None:
    await world.vm("web")
    cause, other = world.ids.uuid(), world.ids.uuid()
    await world.api.vms.DeleteVm(DeleteVmRequest(id="web"), metadata=[("cairn-cause", cause)])
    await refused(world.api.vms.DeleteVm(DeleteVmRequest(id="web"), metadata=[("cairn-cause", cause)]))
    await world.refusals.tell(math.inf)
    assert [(each.method, each.cause) for each in await audits(world, cause=cause)] == [("DeleteVm", cause)] * 2
    assert await audits(world, cause=other) == []
    with pytest.raises(grpc.aio.AioRpcError, match="cairn-cause: must be the id of a request"):
        await world.api.vms.GetVm(GetVmRequest(id="web"), metadata=[("cairn-cause", "<script>")])


async def test_who_has_not_said_who_he_is_is_on_record_by_his_address(world: World) -> None:
    stranger = world.by_token("cairn_ut-12345678_rubbish")
    await refused(stranger.vms.DeleteVm(DeleteVmRequest(id="web")))
    (found,) = await told(world)
    assert (found.caller, found.who, found.refusal) == ("nobody", "", "UNAUTHENTICATED")
    assert found.address == "127.0.0.1"


async def test_refusals_are_bounded(tmp_path: Path) -> None:
    """Many different ones are told as one number, and strangers take nothing of the room of those who are known."""
    store = Counted(MemoryStore())
    async with world_on(store, tmp_path) as world:
        await world.furnish()
        commits = store.commits
        for number in range(100):
            await refused(world.api.vms.DeleteVm(DeleteVmRequest(id=f"no-{number}")))
        found = await told(world)
        assert len(found) == OF_CALLER_MAX + 1
        assert (found[-1].method, found[-1].count) == ("others, too many to tell apart", 100 - OF_CALLER_MAX)
        assert store.commits - commits <= 3, "a moment's are one commit"
        store.faults = ["unavailable"]
        await refused(world.api.vms.DeleteVm(DeleteVmRequest(id="no-1")))
        await world.refusals.tell(math.inf)
        assert len(await told(world)) == len(found) + 1, "told later when the store did not answer"
        assert await broken(world) == []


async def test_what_commits_by_itself_is_on_record(world: World) -> None:
    """Join tokens and joining, a controller retired, what a node may remove, a second secret, a backup taken."""
    before = len(await audits(world))
    token = (await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest(node_name="n9"))).token
    join = JoinNodeRequest(token=token, node_name="n9", csr_pem=make_csr("n9").cert_pem)
    node = (await world.stubs(None, world.enrolment).enrolment.JoinNode(join)).node
    await world.commit(Txn("members").put(kinds.CONTROLLER_MEMBER, "c9", ControllerMember(name="c9")))
    await world.api.cluster.RetireController(RetireControllerRequest(name="c9"))
    told = Unknown(key="volume/vol-1", node=node, desired=Desired(volume=DesiredVolume(id="vol-1")))
    await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{node}/volume/vol-1", told))
    await world.api.cluster.ForgetUnknown(ForgetUnknownRequest(node=node, key="volume/vol-1"))
    bob = await world.user("bob", "viewer")
    for type in (ApiTokenSpec.TYPE_BEARER, ApiTokenSpec.TYPE_SIGNING):
        asked = CreateApiTokenRequest(api_token=ApiToken(spec=ApiTokenSpec(type=type)), request_id=world.ids.uuid())
        for _ in range(2):
            await bob.tokens.CreateApiToken(asked)
    async for _ in world.api.cluster.BackupCluster(BackupClusterRequest()):
        pass
    content = TokenContent.decode(token)
    made = {each.method: each for each in (await audits(world))[before:]}
    assert [(each.method, each.caller, each.who) for each in (await audits(world))[before:]] == [
        ("CreateJoinToken", "user", "admin"),
        ("JoinNode", "join_token", content.id),
        ("RetireController", "user", "admin"),
        ("ForgetUnknown", "user", "admin"),
        ("CreateUser", "user", "admin"),
        ("CreateBinding", "user", "admin"),
        *[("CreateApiToken", "user", "bob")] * 4,
        ("BackupCluster", "user", "admin"),
    ]
    assert (made["JoinNode"].object, made["JoinNode"].object_name) == (f"node/{node}", "n9")
    assert made["JoinNode"].address == "127.0.0.1"
    assert made["ForgetUnknown"].object == "volume/vol-1"
    tokens = [{change.field for change in each.changes} for each in await audits(world, method="CreateApiToken")]
    assert tokens[1::2] == [{"secret_sha256"}, set()], "another secret; the same shown once more"
    for _, value in await stored(world.store):
        assert content.secret.encode() not in value
    assert await broken(world) == []


async def test_a_backup_is_taken_also_when_nothing_can_be_put_on_record(tmp_path: Path) -> None:
    store = Counted(MemoryStore())
    async with world_on(store, tmp_path) as world:
        await world.furnish()
        store.faults = ["full"] * 50
        taken = b"".join([each.chunk async for each in world.api.cluster.BackupCluster(BackupClusterRequest())])
        assert taken
        store.faults = []


@pytest.mark.parametrize("fault", ["conflict", "lost request", "lost answer", "unavailable"])
async def test_what_befalls_the_commit_of_a_note_leaves_the_chain_whole(tmp_path: Path, fault: str) -> None:
    store = Counted(MemoryStore())
    async with world_on(store, tmp_path) as world:
        await world.furnish()
        before = len(await audits(world))
        store.faults = [fault]
        with suppress(grpc.aio.AioRpcError):
            await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest())
        await world.vm("web")
        await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest())
        found = (await audits(world))[before:]
        lost = ["CreateJoinToken"] if fault == "lost answer" else []
        assert [each.method for each in found] == [*lost, "CreateVm", "CreateJoinToken"]
        assert len(list(world.cache.view.ids(kinds.JOIN_TOKEN))) == 1 + len(lost)
        assert await broken(world) == []


@pytest.mark.parametrize("fault", ["conflict", "lost request", "lost answer"])
async def test_a_join_token_is_taken_back_once_whatever_befalls_the_commit(tmp_path: Path, fault: str) -> None:
    store = Counted(MemoryStore())
    async with world_on(store, tmp_path) as world:
        await world.furnish()
        await world.api.nodes.CreateJoinToken(CreateJoinTokenRequest())
        (id,) = world.cache.view.ids(kinds.JOIN_TOKEN)
        store.faults = [fault]
        assert (await world.api.nodes.DeleteJoinToken(DeleteJoinTokenRequest(id=id))).id == id
        assert not list(world.cache.view.ids(kinds.JOIN_TOKEN))
        assert [each.method for each in await audits(world)].count("DeleteJoinToken") == 1
        assert await broken(world) == []


async def test_pages_and_filters(world: World) -> None:
    await vpcs(world, 12)
    whole = await audits(world)
    pages, token = list[Audit](), ""
    while True:
        answer = await world.api.audits.ListAudits(ListAuditsRequest(page_size=5, page_token=token))
        assert len(answer.audits) <= 5
        pages += answer.audits
        token = answer.next_page_token
        if not token:
            break
    assert pages == whole
    assert await audits(world, who="nobody") == []
    third = whole[2]
    assert third in await audits(world, since=third.time)
    assert third not in await audits(world, until=third.time)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.api.audits.ListAudits(ListAuditsRequest(page_token="rubbish"))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_user_data_and_tokens_are_told_by_digests(world: World) -> None:
    await world.vm("web", user_data=b"#cloud-config: geheim")
    for _, value in await stored(world.store):
        assert b"geheim" not in value
    found = (await audits(world, object="web"))[0]
    secrets = [change for change in found.changes if change.object.startswith("secret/")]
    assert [change.after.partition(":")[0] for change in secrets] == ["sha256"]


async def test_a_forged_record_is_found(world: World) -> None:
    await vpcs(world, 4)
    key, value = (await stored(world.store))[2]
    forged = Audit.FromString(value)
    forged.who = "bob"
    await raw(world.store, {key: forged.SerializeToString(deterministic=True)})
    assert await broken(world) == ["chain controller: record 4 does not follow record 3: one of them is not what was written"]


async def test_the_last_record_forged_is_found(world: World) -> None:
    key, value = (await stored(world.store))[-1]
    forged = Audit.FromString(value)
    forged.who = "bob"
    await raw(world.store, {key: forged.SerializeToString(deterministic=True)})
    (say,) = await broken(world)
    assert say.endswith("the last, is not what was written")


async def test_a_removed_record_is_found(world: World) -> None:
    await vpcs(world, 4)
    key, _ = (await stored(world.store))[2]
    await raw(world.store, {}, key)
    (say,) = await broken(world)
    assert say == "chain controller: record 3 is missing: 4 is in its place"


async def test_records_that_changed_places_are_found(world: World) -> None:
    await vpcs(world, 4)
    (one, first), (other, second) = (await stored(world.store))[1:3]
    await raw(world.store, {one: second, other: first})
    assert "chain controller: record 2 says that it is record 3 of chain controller" in await broken(world)


async def test_an_end_cut_off_is_found_and_the_chain_goes_on(world: World) -> None:
    await vpcs(world, 4)
    await raw(world.store, {}, (await stored(world.store))[-1][0])
    (say,) = await broken(world)
    assert "and is said to end with" in say
    await world.vm("web")
    assert any("is missing" in say for say in await broken(world))


async def test_a_whole_chain_cut_off_is_missed_by_another(world: World) -> None:
    await vpcs(world, 2)
    core = world.core
    other = VpcService(replace(core, mutations=Mutations(core.store, core.cache, core.clock, core.ids, "c2")))
    asked = CreateVpcRequest(vpc=Vpc(name="other", spec=VpcSpec(cidr="10.9.0.0/16")))
    await other.CreateVpc(asked, Admitted(None, Caller("user", "admin")))
    assert await broken(world) == []
    assert (await audits(world))[-1].chain == "c2"
    mine = [key for key, _ in await stored(world.store) if "/controller/" in key]
    await raw(world.store, {}, *mine, kinds.AUDIT_HEAD.key("controller"))
    (say,) = await broken(world)
    assert say.startswith("chain controller: record 1 of chain c2 saw it end with record")


async def test_a_head_that_cannot_be_read_is_written_anew(world: World) -> None:
    await vpcs(world, 3)
    last = (await audits(world))[-1]
    await raw(world.store, {kinds.AUDIT_HEAD.key("controller"): b"\xff\xff\xff"})
    await world.vm("web")
    found = await audits(world)
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    assert found[-1].number > last.number
    assert await broken(world) == []


async def test_only_so_many_are_kept_and_what_stays_still_follows(world: World) -> None:
    await vpcs(world, 30)
    whole = await audits(world)
    bound = AuditBound(world.store, world.clock, 7)
    while await bound.cut():
        pass
    assert await audits(world) == whole[-7:]
    assert await broken(world) == []
    await world.vm("web")
    assert await broken(world) == []
    key, value = (await stored(world.store))[0]
    forged = Audit.FromString(value)
    forged.who = "bob"
    await raw(world.store, {key: forged.SerializeToString(deterministic=True)})
    assert len(await broken(world)) == 1
    while await bound.cut():
        pass
    (say,) = await broken(world)
    assert "one of them is not what was written" in say, "what was broken is told after it was let go of, too"


async def test_a_key_that_is_no_record_does_no_harm_but_is_told(world: World) -> None:
    await raw(world.store, {kinds.AUDIT.key("controller/what"): b"\xff", kinds.AUDIT.key("stray"): b""})
    await world.vm("web")
    assert await broken(world)
    bound = AuditBound(world.store, world.clock, 0)
    while await bound.cut():
        pass
    await world.vm("db")


async def test_one_reads_the_audit_of_his_project_alone(tmp_path: Path) -> None:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        await world.vm("web")
        ann = await world.user("ann", "project-admin", project="default")
        found = (await ann.audits.ListAudits(ListAuditsRequest())).audits
        assert {each.project for each in found} == {"prj-default0"}
        assert any(each.method == "CreateVm" for each in found)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ann.audits.VerifyAudits(VerifyAuditsRequest()).read()
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await world.user("carl")
        assert not [each for each in (await ann.audits.ListAudits(ListAuditsRequest())).audits if each.method == "CreateUser"]


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
async def test_a_commit_in_doubt_is_recorded_once(tmp_path: Path, fault: str) -> None:
    store = Counted(MemoryStore())
    async with world_on(store, tmp_path) as world:
        await world.furnish()
        before = len(await audits(world))
        store.faults = [fault]
        await world.vm("web")
        await world.vm("db")
        found = await audits(world)
        assert [each.object_name for each in found[before:]] == ["web", "db"]
        assert [each.number for each in found] == list(range(1, len(found) + 1))
        assert await broken(world) == []


async def test_a_restore_leaves_the_audit_as_it_is_and_chains_go_on(tmp_path: Path) -> None:
    store = MemoryStore()
    async with world_on(store, tmp_path) as world:
        await world.furnish()
        await world.commit(Txn("peers").put(kinds.CLUSTER, CLUSTER_ID, Cluster(name="test", epoch=1)))
        content = [chunk async for chunk in backup(store, world.clock, "1")]
        await world.vm("web")
        known = await audits(world)

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in content:
                yield chunk

        async for _ in Restore(store, world.clock, await read(chunks()), "alice").run():
            pass
        await world.core.mutations.freshen()
        assert "web" not in {each.name for each in world.cache.view.all(kinds.VM)}
        assert await audits(world) == known
        await world.vm("db")
        assert [each.object_name for each in (await audits(world))[len(known) :]] == ["db"]
        assert await broken(world) == []
