"""Files of the audit: what the store lets go of is kept, searched and verified with the rest; on a folder and in memory."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api.audits import SOME_MISSING
from cairn.controller.archive import Archive
from cairn.controller.audit_bound import AuditBound
from cairn.controller.audit_files import AuditFiles, FakeFiles, FilesError, FolderFiles
from cairn.controller.segments import Segment, content_of, sealed
from cairn.controller.store.base import Conflict
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.pki import Authority, Identity, Pair, PkiError
from cairn.proto.v1.audit_pb2 import Audit, AuditVerdict, ListAuditsRequest
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, GetVmRequest
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, Vpc, VpcSpec

from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_audit import audits, vpcs, walked
from tests.conformance.test_api_together import Counted

KEPT = 7


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> AuditFiles:
    return FolderFiles(tmp_path / "audit") if request.param == "folder" else FakeFiles()


@pytest.fixture
async def world(tmp_path: Path, files: AuditFiles) -> AsyncIterator[World]:
    async with world_on(Counted(MemoryStore()), tmp_path, files) as world:
        await world.furnish()
        yield world


def bound(world: World, **limits: int) -> AuditBound:
    return AuditBound(world.store, world.clock, KEPT, archive=world.core.archive, **limits)


async def filed(world: World, count: int = 250) -> list[Audit]:
    """Make so many records, let all but a few go, and return all there were."""
    await vpcs(world, count)
    whole = await audits(world)
    world.clock.ahead += timedelta(hours=1)
    await bound(world).look()
    return whole


async def live(world: World) -> int:
    return len((await world.store.read(kinds.AUDIT.prefix))[0])


async def verify(world: World) -> AuditVerdict:
    return (await walked(world))[-1].verdict


async def rewritten(files: AuditFiles, name: str, content: bytes | None) -> None:
    """Write a file behind everybody's back; None: take it away."""
    if isinstance(files, FakeFiles):
        files.held.pop(name)
        if content is not None:
            files.held[name] = content
    else:
        path = Path(str(files._folder)) / name
        path.unlink() if content is None else path.write_bytes(content)


# --- places for files ------------------------------------------------------------------------------------------------------


async def test_a_file_is_there_as_it_was_written(files: AuditFiles) -> None:
    assert await files.names() == []
    await files.write("b.audit", b"2")
    await files.write("a.gap", b"1")
    await files.write("b.audit", b"3")
    assert await files.names() == ["a.gap", "b.audit"]
    assert await files.read("b.audit") == b"3"
    with pytest.raises(FilesError, match=r"c\.audit|No such file"):
        await files.read("c.audit")


async def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    no_folder, fake = FolderFiles(tmp_path / "file" / "audit"), FakeFiles()
    fake.fails = "no space"
    for files in (no_folder, fake):
        with pytest.raises(FilesError):
            await files.write("a.audit", b"1")
    assert await fake.names() == []


# --- segments --------------------------------------------------------------------------------------------------------------


def test_a_name_says_what_is_in_it() -> None:
    for segment in (
        Segment("c1", "0a1b2c3d", 1, 100, (5, 900), (1_900_000_000, 1_900_000_100)),
        Segment("ctl.example.org", "", 101, 120, (5, 5), (7, 7)),
        Segment("c-1", "x", 7, 9, gap=True),
    ):
        assert Segment.parse(segment.name) == segment
    for name in ("", "c1", "c1.0.1-2.3-4.5-6.txt", "c1.0.1.3-4.5-6.audit", "c1.0.a-b.3-4.5-6.audit", ".new"):
        assert Segment.parse(name) is None


# --- the audit over both ---------------------------------------------------------------------------------------------------


async def test_what_the_store_lets_go_of_is_listed_and_verified_with_the_rest(world: World, files: AuditFiles) -> None:
    whole = await filed(world)
    assert await live(world) == KEPT
    assert await audits(world) == whole
    pages, token = list[Audit](), ""
    while True:
        answer = await world.api.audits.ListAudits(ListAuditsRequest(page_size=60, page_token=token))
        pages += answer.audits
        token = answer.next_page_token
        if not token:
            break
    assert pages == whole
    third = whole[2]
    assert third in await audits(world, since=third.time)
    assert third not in await audits(world, until=third.time)
    assert await audits(world, object="v7") == [each for each in whole if each.object_name == "v7"]
    found = await verify(world)
    (chain,) = found.chains
    assert (list(found.broken), list(chain.missing)) == ([], [])
    assert (chain.filed_first, chain.filed_last, chain.cut) == (1, chain.number, chain.number - KEPT)
    await vpcs_more(world)
    await bound(world).look()
    assert len(await audits(world)) == len(whole) + 3
    assert list((await verify(world)).broken) == []
    assert len(await files.names()) >= 3


async def vpcs_more(world: World) -> None:
    for number in range(3):
        await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=Vpc(name=f"more{number}", spec=VpcSpec(cidr="10.8.0.0/16"))))


async def test_what_is_young_stays(world: World) -> None:
    await vpcs(world, 120)
    count = await live(world)
    await bound(world).look()
    assert await live(world) == count, "others may not have it yet"


@pytest.mark.parametrize("how", ["forged", "other", "gone", "moved", "half"])
async def test_a_file_that_is_not_what_was_written_is_found(world: World, files: AuditFiles, how: str) -> None:
    await filed(world)
    name = (await files.names())[1]
    stored = await files.read(name)
    content = content_of(stored)
    pair = world.authority.issue(Identity("controller", "c1"))
    if how == "forged":
        record = Audit.FromString(content.records[3].record)
        record.who = "bob"
        content.records[3].record = record.SerializeToString(deterministic=True)
        await rewritten(files, name, sealed(pair, content))
    elif how == "other":
        stranger = Authority.create("other", world.clock, world.ids).issue(Identity("controller", "c1"))
        await rewritten(files, name, sealed(stranger, content))
    elif how == "gone":
        await rewritten(files, name, None)
    elif how == "moved":
        await rewritten(files, name, await files.read((await files.names())[0]))
    else:
        await rewritten(files, name, stored[: len(stored) // 2])
    said = {
        "forged": "does not follow record",
        "other": "the certificate is not of this cluster's CA",
        "gone": "No such file" if isinstance(files, FolderFiles) else "no such file",
        "moved": "its name is not that of what is in it",
        "half": "it cannot be read",
    }
    # As the one that runs sees it, and the one that starts.
    for archive in (world.core.archive, world.archive("c1", files)):
        object.__setattr__(world.core, "archive", archive)
        broken = "; ".join((await verify(world)).broken)
        assert said[how] in broken or (how == "gone" and "are in no file, and none says" in broken)
    assert await audits(world, who="nobody") == []


async def test_a_controller_that_was_away_says_what_it_does_not_have(world: World) -> None:
    await filed(world, 120)
    away = FakeFiles()
    second = AuditBound(world.store, world.clock, KEPT, archive=world.archive("c2", away))
    await second.look()
    await vpcs_of(world, "early", 110)
    await second.look()
    assert len(await away.names()) == 1, "begun where the store begins"
    await vpcs_of(world, "late", 250)
    world.clock.ahead += timedelta(hours=1)
    await bound(world).look()
    await vpcs_of(world, "last", 120)
    await second.look()
    object.__setattr__(world.core, "archive", world.archive("c2", away))
    found = await verify(world)
    assert list(found.broken) == []
    (chain,) = found.chains
    (missing,) = chain.missing
    assert "were let go of while they were not kept here" in missing
    assert any(name.endswith(".gap") for name in await away.names())


async def vpcs_of(world: World, name: str, count: int) -> None:
    for number in range(count):
        vpc = Vpc(name=f"{name}{number}", spec=VpcSpec(cidr="10.8.0.0/16"))
        await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=vpc))


async def test_killed_between_the_file_and_the_store_nothing_is_lost_or_told_twice(world: World, files: AuditFiles) -> None:
    await vpcs(world, 250)
    whole = await audits(world)
    world.clock.ahead += timedelta(hours=1)
    store: Any = world.store
    one = bound(world)
    await one.file()
    store.faults = ["conflict"]
    with pytest.raises(Conflict):
        await one.cut()
    assert await audits(world) == whole
    # Another life of it knows its files by their names.
    archive = world.archive("c1", files)
    object.__setattr__(world.core, "archive", archive)
    await AuditBound(world.store, world.clock, KEPT, archive=archive).look()
    assert await live(world) == KEPT
    assert await audits(world) == whole
    assert list((await verify(world)).broken) == []


async def test_nothing_is_changed_rather_than_unrecorded(tmp_path: Path) -> None:
    files, store = FakeFiles(), MemoryStore()
    async with world_on(store, tmp_path, files) as world:
        await world.furnish()
        await world.vm("web")
        await vpcs(world, 30)
        full = bound(world, over_max=10)
        world.core.mutations.closed = full.closed
        world.clock.ahead += timedelta(hours=1)
        files.fails = "/var/lib/cairn/audit: No space left on device"
        before = await audits(world)
        await full.look()
        request = DeleteVmRequest(id="web", request_id=world.ids.uuid())
        with pytest.raises(grpc.aio.AioRpcError, match=r"the audit cannot be kept: .*No space left on device") as caught:
            await world.api.vms.DeleteVm(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await world.api.vms.GetVm(GetVmRequest(id="web"))).name == "web"
        await world.refusals.tell(math.inf)
        assert await audits(world, done=True) == before
        files.fails = ""
        await full.look()
        assert (await world.api.vms.DeleteVm(request)).name == "web"
        assert list((await verify(world)).broken) == []


async def test_files_that_cannot_be_read_are_told_and_the_rest_is_listed(world: World, files: AuditFiles) -> None:
    ann = await world.user("ann", "project-admin", project="default")
    await ann.audits.ListAudits(ListAuditsRequest())
    whole = await filed(world)
    first, second, third = await files.names()
    await rewritten(files, first, b"\xff")
    await rewritten(files, second, None)
    answer = await world.api.audits.ListAudits(ListAuditsRequest(page_size=1000))
    assert list(answer.audits) == whole[200:]
    assert [say.partition(": ")[0] for say in answer.missing] == [first, second]
    assert list((await ann.audits.ListAudits(ListAuditsRequest())).missing) == [SOME_MISSING]
    await rewritten(files, third, b"")
    answer = await world.api.audits.ListAudits(ListAuditsRequest(page_size=1000))
    assert (len(answer.audits), len(answer.missing)) == (KEPT, 3)


async def test_a_last_file_that_cannot_be_read_is_named(
    world: World, files: AuditFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever starts with it lets nothing go, and says which file it is."""
    await filed(world)
    last = (await files.names())[-1]
    await rewritten(files, last, b"\xff")
    await vpcs_of(world, "more", 5)
    world.clock.ahead += timedelta(hours=1)
    again = AuditBound(world.store, world.clock, KEPT, 0, world.archive("c1", files))
    await again.look()
    assert await live(world) > KEPT
    why = again.closed()
    assert why is not None
    assert last in why.say


async def test_without_its_certificate_a_controller_files_nothing_and_goes_on(world: World, files: AuditFiles) -> None:
    def no_pair() -> Pair:
        raise PkiError("/etc/cairn/pki/controller.key does not fit its certificate")

    await vpcs(world, 120)
    world.clock.ahead += timedelta(hours=1)
    archive = Archive(files, no_pair, world.authority.cert_pem, world.clock, "c1")
    blind = AuditBound(world.store, world.clock, KEPT, 0, archive)
    await blind.look()
    assert await files.names() == []
    why = blind.closed()
    assert why is not None
    assert "controller.key does not fit" in why.say


async def test_files_of_another_store_are_left_alone(tmp_path: Path) -> None:
    files = FakeFiles()
    async with world_on(MemoryStore(), tmp_path / "a", files) as world:
        await world.furnish()
        await filed(world)
    old = await files.names()
    async with world_on(MemoryStore(), tmp_path / "b", files) as world:
        await world.furnish()
        whole = await filed(world, 120)
        assert await audits(world) == whole
        assert [list(each.missing) for each in (await verify(world)).chains] == [[]]
        assert set(old) < set(await files.names())
