"""Nodes that each believe a volume of a shared pool is theirs, and are killed at any step: what rbd.py promises of it.

The pool is in memory, and as unkind as a real one: a call of a killed process may be done before, later, or never.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.storage.base import StorageError, Superseded
from cairn.storage.rbd import RbdVolumes
from cairn.storage.rbd_pool import Place, RbdError, Silent, Stat
from cairn.storage.rbd_record import Record

MIB = 1 << 20
ID = "vol-00000001"
OBJECT = f"cairn.volume.{ID}"


class Truth:
    """What the cluster holds."""

    def __init__(self) -> None:
        self.records: dict[str, str] = {}
        self.images: dict[str, int] = {}
        # Clone -> what it was cloned from.
        self.parents: dict[str, str] = {}
        # How often an image's file was copied.
        self.copied = 0
        self.late: list[asyncio.Task[None]] = []

    def swap(self, object: str, old: str | None, new: str) -> bool:
        if self.records.get(object) != old:
            return False
        before, after = Record.read(old, object), Record.read(new, object)
        assert after.generation >= before.generation, "an older one had its way"
        self.records[object] = new
        return True

    def make(self, name: str, size_bytes: int) -> None:
        if name in self.images:
            raise RbdError("it is there", 17)
        self.images[name] = size_bytes

    def grow(self, name: str, size_bytes: int) -> None:
        if name not in self.images:
            raise RbdError("it is not there", 2)
        self.images[name] = max(self.images[name], size_bytes)

    def clone(self, parent: str, name: str) -> None:
        if parent not in self.images:
            raise RbdError("its parent is not there", 2)
        self.make(name, self.images[parent])
        self.parents[name] = parent

    def has_children(self, name: str) -> bool:
        return name in self.parents.values()

    def remove(self, name: str) -> None:
        object = f"cairn.volume.{name.split('.')[0]}"
        held = Record.read(self.records.get(object), object)
        assert not (held.made and held.image == name), "the volume itself was removed"
        if self.has_children(name):
            raise RbdError("it has children", 39)
        self.images.pop(name, None)
        self.parents.pop(name, None)


class OneNodesPool:
    """A node's way there: implements BlockPool."""

    def __init__(self, truth: Truth, draw: random.Random, kills: float, ways: Sequence[str]) -> None:
        self.place = Place("ceph.conf", "cairn", "vms")
        self._truth, self._draw, self._kills, self._ways = truth, draw, kills, ways

    async def read(self, object: str) -> str | None:
        return await self._do(lambda: self._truth.records.get(object))

    async def swap(self, object: str, old: str | None, new: str) -> bool:
        return await self._do(lambda: self._truth.swap(object, old, new))

    async def make(self, name: str, size_bytes: int) -> None:
        await self._do(lambda: self._truth.make(name, size_bytes))

    async def freeze(self, name: str) -> None:
        await self._do(lambda: None)

    async def clone(self, parent: str, name: str) -> None:
        await self._do(lambda: self._truth.clone(parent, name))

    async def fill(self, name: str, path: Path, format: str, size_bytes: int) -> None:
        self._truth.copied += 1
        await self._do(lambda: self._truth.grow(name, size_bytes))

    async def grow(self, name: str, size_bytes: int) -> None:
        await self._do(lambda: self._truth.grow(name, size_bytes))

    async def stat(self, name: str) -> Stat | None:
        size = await self._do(lambda: self._truth.images.get(name))
        return Stat(size, 4096) if size is not None else None

    async def remove(self, name: str) -> None:
        await self._do(lambda: self._truth.remove(name))

    async def has_children(self, name: str) -> bool:
        return await self._do(lambda: self._truth.has_children(name))

    async def names(self, prefix: str) -> list[str]:
        return await self._do(lambda: sorted(name for name in self._truth.images if name.startswith(prefix)))

    async def room(self) -> tuple[int, int]:
        return 0, 1 << 40

    async def _do(self, act: Callable[[], Any]) -> Any:
        await self._pass()
        if self._draw.random() < self._kills:
            await self._die(act)
        answer = act()
        await self._pass()
        return answer

    async def _die(self, act: Callable[[], Any]) -> None:
        """It is killed: what it had sent is done now, or later, or never."""
        way = self._draw.choice(self._ways)

        async def later() -> None:
            for _ in range(self._draw.choice((1, 10, 100)) if way == "later" else 0):
                await asyncio.sleep(0)
            with suppress(RbdError):
                act()

        if way != "never":
            self._truth.late.append(asyncio.create_task(later()))
        raise Silent("it was killed")

    async def _pass(self) -> None:
        for _ in range(self._draw.randrange(4)):
            await asyncio.sleep(0)


class OneImage:
    """Every node holds it."""

    @asynccontextmanager
    async def lent(self, digest: str) -> AsyncIterator[tuple[Path, str, int]]:
        yield Path("image"), "raw", 4 * MIB


class SetClock(SystemClock):
    """The hours of all nodes."""

    def __init__(self) -> None:
        self.hours = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=self.hours)


class DrawnIds(SystemIds):
    """A story is the same whenever it is told."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def uuid(self) -> str:
        return f"{self._draw.getrandbits(128):032x}"


WAYS = ("now", "later", "never")


def driver(
    truth: Truth,
    draw: random.Random,
    kills: float,
    ways: Sequence[str] = WAYS,
    *,
    node: str = "n1",
    clock: SetClock | None = None,
) -> RbdVolumes:
    return RbdVolumes(OneNodesPool(truth, draw, kills, ways), OneImage(), DrawnIds(draw), clock or SetClock(), node=node)


async def insist(act: Callable[[], Awaitable[None]]) -> bool:
    """Do it until it is done; return whether, or another node was found to act since."""
    while True:
        try:
            await act()
            return True
        except Superseded:
            return False
        except StorageError as error:
            if "is not here" in str(error):
                return False
            if not error.retryable:
                raise


async def administer(volumes: RbdVolumes, generation: int, steps: list[str]) -> bool:
    """Do these in the name of a generation, one after the other; return whether all were done."""
    for step in steps:
        verb, _, size = step.partition(" ")
        if verb == "create":
            volume = DesiredVolume(id=ID, size_bytes=int(size) * MIB, generation=generation)
            done = await insist(lambda volume=volume: volumes.create(volume))
        elif verb == "grow":
            done = await insist(lambda size=size: volumes.resize(ID, int(size) * MIB, generation=generation))
        else:
            done = await insist(lambda: volumes.delete(ID, generation=generation))
        if not done:
            return False
    return True


async def story(seed: int) -> None:
    draw, truth, kills = random.Random(seed), Truth(), (0.0, 0.03, 0.1)[seed % 3]
    grown = ["create 8", "grow 12"]
    lives = [["create 8"], grown, ["create 8", "delete"], ["grow 12"], ["delete"], [*grown, "delete"]]
    last = draw.choice([["create 16"], ["create 8", "grow 16"], ["delete"], ["create 8", "delete"]])
    older = [asyncio.create_task(administer(driver(truth, draw, kills), each, draw.choice(lives))) for each in (1, 1, 2)]
    for _ in range(draw.randrange(60)):
        await asyncio.sleep(0)
    assert await administer(driver(truth, draw, kills), 3, last), "nobody is newer"
    kept = truth.records[OBJECT]
    await asyncio.gather(*older)
    await asyncio.gather(*truth.late)
    assert truth.records[OBJECT] == kept or Record.read(kept, OBJECT).left, "who is older has changed it"
    calm = driver(truth, draw, 0.0)
    if kills:
        await calm.sweep()
    held, found = Record.read(truth.records[OBJECT], OBJECT), await calm.observe([ID])
    if last[-1] == "delete":
        assert found == [] or kills
        await calm.delete(ID, generation=3)
        assert truth.images == {}
    else:
        (volume,) = found
        # One that an older node made is as large as that made it.
        assert volume.size_bytes // MIB in ((16,) if "grow" in last[-1] else (8, 12, 16))
        assert set(truth.images) - set(held.left) == {held.image}
        await calm.delete(ID, generation=3)
        assert truth.images == {}, "what was left goes with the volume"


@pytest.mark.parametrize("seed", range(300))
def test_whoever_is_newest_has_his_way_and_nothing_is_left(seed: int) -> None:
    asyncio.run(story(seed))


@pytest.mark.parametrize("seed", range(100))
def test_one_that_is_killed_at_any_step_loses_sight_of_nothing(seed: int) -> None:
    """Whatever it has made by then is in the record, and goes by the same call again, or with the volume."""

    async def scenario() -> None:
        draw, truth = random.Random(seed), Truth()
        volumes = driver(truth, draw, 0.2, ("now", "never"))
        for steps in (["create 8"], ["grow 12"], ["delete"], ["create 8", "delete"]):
            await administer(volumes, 1, steps)
            await asyncio.gather(*truth.late)
            held = Record.read(truth.records[OBJECT], OBJECT)
            assert set(truth.images) <= {held.image, *held.left}
        assert truth.images == {}

    asyncio.run(scenario())


DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize("seed", range(200))
def test_an_image_is_copied_for_all_and_goes_with_the_last_that_needs_it(seed: int) -> None:
    """Nodes copy it at the same moment, are killed in it, sweep while others clone, and a day passes now and then."""

    async def scenario() -> None:
        draw, truth, clock = random.Random(seed), Truth(), SetClock()
        kills = (0.0, 0.05)[seed % 2]
        nodes = [driver(truth, draw, kills, node=name, clock=clock) for name in ("n1", "n2", "n3")]

        async def life(number: int) -> None:
            volumes = draw.choice(nodes)
            volume = DesiredVolume(id=f"vol-{number:08d}", size_bytes=8 * MIB, image_digest=DIGEST, generation=1)
            await insist(lambda: volumes.create(volume))
            (found,) = await insist_on(lambda: volumes.observe([volume.id]))
            assert found.size_bytes == 8 * MIB
            held = Record.read(truth.records[f"cairn.volume.{volume.id}"], "it")
            assert truth.parents[held.image] in truth.images, "what it was cloned from is there as long as it is"
            await insist(lambda: volumes.delete(volume.id, generation=1))

        async def tidy() -> None:
            for _ in range(draw.randrange(6)):
                clock.hours += draw.choice((0.0, 0.5, 30.0))
                with suppress(StorageError):
                    await draw.choice(nodes).sweep()

        await asyncio.gather(*(life(number) for number in range(5)), tidy(), tidy())
        await asyncio.gather(*truth.late)
        for node in ("n1", "n2", "n3"):
            clock.hours += 30
            calm = driver(truth, draw, 0.0, node=node, clock=clock)
            await calm.sweep()
        assert truth.images == {}

    asyncio.run(scenario())


async def insist_on(ask: Callable[[], Awaitable[Any]]) -> Any:
    """As `insist`, of a question."""
    while True:
        with suppress(Silent):
            return await ask()


async def test_volumes_of_one_node_have_an_image_copied_once() -> None:
    draw, truth = random.Random(1), Truth()
    volumes = driver(truth, draw, 0.0)
    wanted = [DesiredVolume(id=f"vol-{n:08d}", size_bytes=8 * MIB, image_digest=DIGEST, generation=1) for n in range(8)]
    await asyncio.gather(*(volumes.create(volume) for volume in wanted))
    assert truth.copied == 1


async def test_copies_that_fail_leave_nothing_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*_: Any) -> None:
        raise StorageError("Unknown driver 'rbd'")

    draw, truth = random.Random(1), Truth()
    monkeypatch.setattr(OneNodesPool, "fill", refuses)
    volumes = driver(truth, draw, 0.0)
    volume = DesiredVolume(id=ID, size_bytes=8 * MIB, image_digest=DIGEST, generation=1)
    for _ in range(5):
        with pytest.raises(StorageError, match="Unknown driver"):
            await volumes.create(volume)
    assert truth.images == {}
    assert [Record.read(text, "it").left for text in truth.records.values()] == [()]


async def test_a_volume_whose_record_was_lost_is_left_alone() -> None:
    """Its image may be all that is left of it."""
    draw, truth = random.Random(1), Truth()
    volumes = driver(truth, draw, 0.0)
    await volumes.create(DesiredVolume(id=ID, size_bytes=8 * MIB, generation=1))
    kept = dict(truth.images)
    truth.records.clear()
    await volumes.sweep()
    assert truth.images == kept
