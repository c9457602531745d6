"""The audit verified as a stream: long walks keep nobody waiting, hold little, and are right while records come and go."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest
from cairn.controller.api import selection, verification
from cairn.controller.api.chain import Link, record_id
from cairn.controller.api.verification import BROKEN_MAX, MISSING_MAX, TELL_EVERY, verified
from cairn.controller.archive import SEGMENT_MAX, Archive
from cairn.controller.audit_bound import AuditBound
from cairn.controller.audit_files import FakeFiles
from cairn.controller.store.base import Item
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.pki import Authority, Identity
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.audit_pb2 import Audit, AuditCut, AuditProgress, AuditVerdict, VerifyAuditsRequest

from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_audit import raw, vpcs

CHAIN, SERIES = "c1", "0a1b2c3d"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path, FakeFiles()) as world:
        await world.furnish()
        yield world


class Large:
    """A store, and a controller's files, with a chain of so many records: those let go of are in files alone."""

    def __init__(self) -> None:
        self.store, self.files = MemoryStore(), FakeFiles()
        clock = SystemClock()
        authority = Authority.create("cairn test", clock, SystemIds())
        pair = authority.issue(Identity("controller", CHAIN))
        self.archive = Archive(self.files, lambda: pair, authority.cert_pem, clock, CHAIN)

    async def fill(self, filed: int, live: int) -> None:
        link = Link(CHAIN, series=SERIES)
        for _ in range(0, filed, SEGMENT_MAX):
            previous = link.hash
            items, link = records(link, SEGMENT_MAX)
            await self.archive.keep(CHAIN, SERIES, previous, items)
        cut = AuditCut(chain=CHAIN, number=link.number, hash=link.hash, series=SERIES)
        await raw(self.store, {kinds.AUDIT_CUT.key(CHAIN): cut.SerializeToString()})
        for _ in range(0, live, SEGMENT_MAX):
            items, link = records(link, SEGMENT_MAX)
            puts = {item.key: item.value for item in items}
            await raw(self.store, puts | {kinds.AUDIT_HEAD.key(CHAIN): link.head.SerializeToString()})


def records(link: Link, count: int) -> tuple[list[Item], Link]:
    """Return so many records that follow, and the end of the chain then."""
    items = []
    for _ in range(count):
        record, link = link.added(Audit(caller="user", who="ann", method="CreateVpc", object=f"vpc/v{link.number}"))
        key = kinds.AUDIT.key(record_id(CHAIN, record.number))
        items.append(Item(key, record.SerializeToString(deterministic=True), record.number, record.number))
    return items, link


async def walk(
    large: Large, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> tuple[list[AuditProgress], AuditVerdict]:
    """Return how far it said it was, and what it found."""
    told: list[AuditProgress] = []
    async with aclosing(verified(large.store, large.archive)) as answers:
        async for answer in answers:
            if answer.HasField("verdict"):
                return told, answer.verdict
            told.append(answer.progress)
            if meanwhile is not None:
                await meanwhile()
    raise AssertionError("there was no verdict")


async def test_others_have_their_turn_after_each_bit_of_a_hundred_thousand_records(monkeypatch: pytest.MonkeyPatch) -> None:
    filed, live = 80_000, 20_000
    large = Large()
    await large.fill(filed, live)
    # Every slice is over at once: how often others come to their turn is how finely the walk is cut.
    monkeypatch.setattr(selection, "SLICE_S", 0.0)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(others())
    told, found = await walk(large)
    other.cancel()
    assert turns >= live + filed // SEGMENT_MAX
    assert list(found.broken) == []
    (chain,) = found.chains
    assert (chain.records, chain.number, chain.cut, chain.filed_last) == (filed + live, filed + live, filed, filed)
    assert [each.records for each in told] == [1, *range(TELL_EVERY + 1, live, TELL_EVERY), *range(20_100, 100_000, TELL_EVERY)]
    assert {each.whole for each in told} == {filed + live}
    assert (told[0].file, Path(told[-1].file).suffix) == ("", ".audit")


async def test_what_a_walk_holds_does_not_grow_with_the_files() -> None:
    held = []
    for filed in (2_000, 8_000):
        large = Large()
        await large.fill(filed, 100)
        tracemalloc.start()
        await walk(large)
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] < 1.5 * held[0]


async def test_of_very_much_that_is_broken_or_missing_the_first_is_told() -> None:
    large = Large()
    await large.fill(15_000, 20_000)
    names = await large.files.names()
    for name in names:
        large.files.held[name] = b"\xff"
    _, found = await walk(large)
    assert len(found.broken) == BROKEN_MAX
    gaps = Large()
    link = Link(CHAIN, series=SERIES)
    for first in range(1, 10_000, SEGMENT_MAX):
        await gaps.archive.pass_over(CHAIN, SERIES, first, first + SEGMENT_MAX - 1, b"h")
    await raw(gaps.store, {kinds.AUDIT_HEAD.key(CHAIN): link.head.SerializeToString()})
    _, found = await walk(gaps)
    (chain,) = found.chains
    assert len(chain.missing) == MISSING_MAX + 1
    assert chain.missing[-1] == "and more"


async def test_it_is_right_while_records_are_written_filed_and_let_go_of(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "TELL_EVERY", 1)
    await vpcs(world, 250)
    world.clock.ahead += timedelta(hours=1)
    bound = AuditBound(world.store, world.clock, 120, archive=world.core.archive)
    await bound.look()
    cut_max = AuditBound(world.store, world.clock, 7, archive=world.core.archive)
    heads, _ = await world.store.read(kinds.AUDIT_HEAD.prefix)
    at_first, made = kinds.AUDIT_HEAD.message.FromString(heads[0].value).number, 0
    async with aclosing(verified(world.store, world.core.archive)) as answers:
        async for answer in answers:
            if answer.HasField("verdict"):
                break
            if answer.progress.records % 10 == 1:
                made += 1
                await world.vm(f"more{made}")
                world.clock.ahead += timedelta(hours=1)
                await cut_max.look()
    assert made > 10
    (chain,) = answer.verdict.chains
    assert (list(answer.verdict.broken), list(chain.missing), chain.number) == ([], [], at_first)
    assert chain.records == at_first


async def test_whoever_goes_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read any more for a caller who is gone."""
    await vpcs(world, 450)
    world.clock.ahead += timedelta(hours=1)
    await AuditBound(world.store, world.clock, 7, archive=world.core.archive).look()
    archive = world.core.archive
    assert archive is not None
    reading, ended = asyncio.Event(), asyncio.Event()

    async def slow(_name: str) -> bytes:
        reading.set()
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    monkeypatch.setattr(archive._files, "read", slow)
    call = world.api.audits.VerifyAudits(VerifyAuditsRequest())
    first = await call.read()
    async with asyncio.timeout(10):
        await reading.wait()
        assert not ended.is_set()
        call.cancel()
        await ended.wait()
    assert first.progress.records == 1


async def test_files_written_while_their_names_are_read_stay_known(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Large()
    await large.fill(200, 100)
    again = Archive(large.files, large.archive._pair, large.archive._ca_pem, SystemClock(), CHAIN)
    names, going = large.files.names, asyncio.Event()

    async def late() -> list[str]:
        read = await names()
        await going.wait()
        return read

    monkeypatch.setattr(large.files, "names", late)
    slow = asyncio.create_task(again.segments(CHAIN, SERIES))
    await asyncio.sleep(0)
    monkeypatch.setattr(large.files, "names", names)
    number, hash = await again.end(CHAIN, SERIES)
    items, _ = records(Link(CHAIN, number, hash), SEGMENT_MAX)
    await again.keep(CHAIN, SERIES, hash, items)
    going.set()
    assert [each.last for each in await slow] == [100, 200, 300]
    assert (await again.end(CHAIN, SERIES))[0] == 300
