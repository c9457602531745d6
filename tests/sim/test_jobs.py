"""Every job ends, done or wholly unwound, whatever happens at whichever of its steps.

Each road of job_roads.py is walked undisturbed, and once for each state it enters and each way in which the commit that enters
it can go wrong: the controllers are killed right before or right after it, its answer is lost, or it arrives only when the step
has been taken a second time. The tables' edges, and the ways to stop, are all walked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from cairn.controller.jobs.machine import FAILED, Machine, check_table, walk
from cairn.controller.store.base import Batch, Conflict, Indeterminate, Txn
from cairn.proto import kinds

from tests.sim import cast
from tests.sim.job_roads import CANCEL, LATE, ROADS, Edge, Road, Site, machines
from tests.sim.loop import run
from tests.sim.referee import Referee
from tests.sim.store import SimStore
from tests.sim.world import World

DISTURBANCES: Final = ("killed before", "killed after", "answer lost", "twice")
DOWN_S: Final = 2.0
LATE_S: Final = 1.5
REST_S: Final = 200.0
STILL_S: Final = 3.0
# A walk takes some thousands: a job that turns in circles is found out soon.
STEPS_MAX: Final = 300_000
MACHINES: Final = {machine.kind: machine for machine in machines()}
# The state of a job that has not begun: all kinds there are begin so.
(FIRST,) = {machine.first for machine in MACHINES.values()}


@dataclass
class Strike:
    """What goes wrong, at the first commit that brings a job into a state. how "": nothing."""

    world: World
    how: str = ""
    state: str = ""
    struck: bool = False
    # Every step from one state to another that was committed.
    walked: dict[Edge, None] = field(default_factory=dict)

    def observe(self, batch: Batch, _txn: Txn | None) -> None:
        """Note the steps of a revision."""
        for change in batch.changes:
            if change.key.startswith(kinds.JOB_STATE.prefix) and change.value is not None:
                before = self.world.backend.find(change.key, batch.revision - 1)
                step = _state(before.value) if before is not None else FIRST, _state(change.value)
                if step[0] != step[1]:
                    self.walked[step] = None

    def concerns(self, store: SimStore, txn: Txn) -> bool:
        """Tell whether this commit is the one."""
        if self.struck or not self.how:
            return False
        for key, put in txn.puts.items():
            before = store.backend.find(key)
            if key.startswith(kinds.JOB.prefix) and before is None and self.state == FIRST:
                return True
            if key.startswith(kinds.JOB_STATE.prefix) and _state(put.value) == self.state:
                return (_state(before.value) if before is not None else FIRST) != self.state
        return False

    async def commit(self, store: SimStore, txn: Txn) -> int:
        """Let it go wrong."""
        loop = self.world.loop
        if self.how != "killed before" and self.how != "twice":
            store.backend.apply(txn)
        self.struck = True
        self.world.note(f"at {self.state!r}: {self.how}")
        if self.how.startswith("killed"):
            for name in self.world.controllers:
                self.world.crash(name)
            await asyncio.Event().wait()
        if self.how == "twice":
            loop.call_later(LATE_S, self._arrive, store, txn)
        raise Indeterminate("the answer did not come")

    def _arrive(self, store: SimStore, txn: Txn) -> None:
        try:
            store.backend.apply(txn)
        except Conflict as error:
            self.world.note(f"the first of two came second: {error}")


def _state(value: bytes) -> str:
    return kinds.JOB_STATE.message.FromString(value).state


@contextmanager
def _striking(strike: Strike) -> Iterator[None]:
    """Have every controller's store commit through it."""
    original = SimStore.commit

    async def commit(store: SimStore, txn: Txn) -> int:
        if strike.concerns(store, txn):
            return await strike.commit(store, txn)
        return await original(store, txn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimStore, "commit", commit)
        yield


async def _walk(road: Road, how: str, state: str) -> None:
    """Walk a road in a new cloud, and look at what is left."""
    world = World(
        f"{road.name}/{how}/{state}",
        controllers=2,
        nodes=3,
        skew_s=0.0,
        referee=lambda loop: Referee(cast.all_checkers(), loop.fail),
    )
    site, strike = Site(world), Strike(world, how, state)
    await world.start()
    world.backend.observers.append(strike.observe)
    with _striking(strike):
        again = asyncio.create_task(_revive(site, strike), name="revive")
        await road.walk(site)
        await site.until(f"the job to be {road.ends}", lambda: _ended(site))
        if how:
            await site.until(f"the step to {state!r}", lambda: strike.struck)
        again.cancel()
    site.restart_controllers()
    world.restart_all()
    await _rest(site)
    _judge(site, road, strike)
    await _forget(site)


async def _revive(site: Site, strike: Strike) -> None:
    """Start controllers that were killed."""
    while not strike.struck:
        await asyncio.sleep(0.1)
    await asyncio.sleep(DOWN_S)
    site.restart_controllers()


def _ended(site: Site) -> bool:
    return site.status().done


async def _rest(site: Site) -> None:
    """Wait until no checker complains, for a while."""
    world = site.world
    until_s = world.loop.time() + REST_S
    quiet_s = world.loop.time()
    while world.loop.time() - quiet_s < STILL_S:
        await asyncio.sleep(0.5)
        world.look()
        said = world.referee.unsettled()
        if said:
            quiet_s = world.loop.time()
            assert quiet_s < until_s, said
    world.referee.settled()


def _judge(site: Site, road: Road, strike: Strike) -> None:
    """It ended as it had to, by the steps it had to take, and nothing of a failed one is left."""
    status, content, pools = site.status(), site.content(), [m.pool for m in site.world.machines.values()]
    assert status.state == road.ends
    assert status.failed == (road.ends == FAILED)
    assert status.HasField("end_time")
    assert set(road.edges) <= strike.walked.keys()
    holders = [pool for pool in pools if site.digest in pool.images]
    if road.ends == FAILED:
        assert status.error
        assert road.error in status.error
        assert not content.nodes
        assert not holders
        assert content.failed or site.record(kinds.IMAGE, site.image) is None
    else:
        assert not status.error
        assert content.virtual_size_bytes
        assert len(holders) >= len(content.nodes) > 0


async def _forget(site: Site) -> None:
    """Delete the image: no byte of it is left anywhere, nor any record but the job's own."""
    if site.record(kinds.IMAGE, site.image) is not None:
        await site.world.client.delete_image(site.image)

    def gone() -> bool:
        kept = [machine for machine in site.world.machines.values() if machine.pool.images or machine.pool.partials]
        return not kept and site.record(kinds.IMAGE_CONTENT, site.image) is None

    await site.until("every trace of the image to be gone", gone)
    await _rest(site)
    assert site.record(kinds.JOB, site.job) is not None
    assert site.status().done
    left: list[Any] = [id for kind in (kinds.IMAGE, kinds.IMAGE_CONTENT) for id in site.world.referee.cloud.all(kind.name)]
    assert not left


def _walks() -> list[Any]:
    """Return every (road, what goes wrong, at which state)."""
    found = []
    for kind, roads in ROADS.items():
        for road in roads:
            found.append(pytest.param(road, "", "", id=f"{kind}: {road.name}"))
            for state in road.states:
                found += [pytest.param(road, how, state, id=f"{kind}: {road.name}: {how} {state}") for how in DISTURBANCES]
    return found


@pytest.mark.parametrize(("road", "how", "state"), _walks())
def test_a_job_ends_done_or_unwound(road: Road, how: str, state: str) -> None:
    outcome = run(f"{road.name}/{how}/{state}", lambda: _walk(road, how, state), steps_max=STEPS_MAX)
    assert not outcome.faults


def test_every_kind_of_job_has_roads() -> None:
    assert MACHINES.keys() == ROADS.keys(), "a new kind of job needs roads in tests/sim/job_roads.py"


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda machine: machine.kind)
def test_all_edges_are_walked(machine: Machine) -> None:
    assert not check_table(machine)
    roads = ROADS[machine.kind]
    edges = {edge for road in roads for edge in road.edges}
    assert edges == set(walk(machine))
    assert {state for road in roads for state in road.states} >= machine.states.keys()
    stoppable = {name for name, state in machine.states.items() if state.stoppable}
    assert {road.stops for road in roads if road.stops} == {(name, way) for name in stoppable for way in (CANCEL, LATE)}
