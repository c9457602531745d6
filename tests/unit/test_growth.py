"""A volume that another node made larger, and what its guest sees of it: the agent's part, and what is told and said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from cairn.agent.actions import GrowDisk
from cairn.agent.growth import LOOK_AGAIN_S, plan_growth, to_ask
from cairn.agent.hypervisor.base import Domain, DomainState
from cairn.agent.verdict import Wanted
from cairn.controller.api import nouns
from cairn.controller.api.dependents import affected
from cairn.controller.model.where import volume_node
from cairn.controller.outbox import Outbox
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.assignments import Assignments
from cairn.controller.reconcilers.placement import Placements
from cairn.proto import kinds
from cairn.proto.capabilities import DISK_SIZES, of_agent
from cairn.proto.v1.agent_pb2 import (
    VM_PAUSE_BY_HAND,
    Desired,
    DesiredVm,
    DesiredVolume,
    SeenVolume,
    Upsert,
    VmDisk,
    VmReport,
    VolumeReport,
    VolumeTrouble,
)
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED
from cairn.proto.v1.volume_pb2 import VolumeStatus
from cairn.storage.fake_shared import SharedPool

from tests.unit.agent_kit import MIB, Machine, elapse, ran, run, until, vm_objects
from tests.unit.cloud_kit import GIB, Cloud

VM, DATA = "i-00000001", "vol-0000000d"
RUNS = Domain(VM, DomainState.RUNNING, volumes=("vol-00000001", DATA))


def told(size_bytes: int) -> DesiredVm:
    disk = VmDisk(volume=DATA, type="fake-shared", pool="fake-shared/tank", slot=1, size_bytes=size_bytes)
    return DesiredVm(id=VM, disks=[VmDisk(volume="vol-00000001", boot=True), disk])


# --- decided ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "size", "held", "action", "again"),
    [
        (1, 2, 2, 2, 0.0),
        (1, 2, 3, 3, 0.0),  # The pool has more by now: less than that would cut it.
        (1, 2, 1, None, LOOK_AGAIN_S),  # Somebody saw it larger than this node does: it is not made so from here.
        (2, 2, 2, None, 0.0),
        (3, 2, 2, None, 0.0),  # Never smaller.
        (None, 2, 2, None, LOOK_AGAIN_S),  # Its process could not be asked.
        (1, 0, 2, None, 0.0),  # An older controller tells of no sizes.
    ],
)
def test_a_guest_is_shown_what_is_there_and_never_less_than_it_sees(
    seen: int | None, size: int, held: int, action: int | None, again: float
) -> None:
    domain = dataclasses.replace(RUNS, seen=((DATA, seen),) if seen is not None else ())
    expected = (GrowDisk(VM, DATA, action),) if action is not None else ()
    assert plan_growth(Wanted(told(size), None, sizes={DATA: held}), domain) == (expected, again)


def test_a_disk_that_is_not_plugged_in_yet_waits_for_that() -> None:
    domain = dataclasses.replace(RUNS, volumes=("vol-00000001",))
    assert plan_growth(Wanted(told(2), None, sizes={DATA: 2}), domain) == ((), 0.0)


def test_a_process_is_asked_only_while_its_guest_may_see_less_and_can_answer() -> None:
    assert to_ask(told(2), RUNS, {}) == [DATA]
    assert to_ask(told(2), RUNS, {DATA: 1}) == [DATA]
    assert to_ask(told(2), RUNS, {DATA: 2}) == []
    assert to_ask(told(0), RUNS, {}) == [], "nobody told of a size: all of a node's own pools"
    for state in (DomainState.PAUSED, DomainState.STARTING, DomainState.SHUT_OFF):
        assert to_ask(told(2), dataclasses.replace(RUNS, state=state), {}) == []
    stopped = told(2)
    stopped.power_state = POWER_STATE_STOPPED
    assert to_ask(stopped, RUNS, {}) == []


# --- done by agents --------------------------------------------------------------------------------------------------------


class Pair:
    """A node that administers a volume, and another that runs a guest with it."""

    def __init__(self) -> None:
        self.tank = SharedPool("tank")
        self.maker, self.runner = Machine(tank=self.tank), Machine(tank=self.tank)

    async def start(self) -> None:
        self.runner.hold_image()
        self.first, self.second = self.maker.agent(), self.runner.agent()
        await self.first.start()
        await self.second.start()
        await self.maker.snapshot(self.first, {f"volume/{DATA}": self.volume(64)})
        await until("it to be made", lambda: DATA in self.tank.volumes)
        await self.runner.snapshot(self.second, self.guest(64))
        await ran(self.second, VM)

    async def stop(self) -> None:
        await self.first.stop()
        await self.second.stop()

    @staticmethod
    def volume(mib: int) -> Desired:
        pool = {"type": "fake-shared", "pool": "fake-shared/tank"}
        return Desired(volume=DesiredVolume(id=DATA, size_bytes=mib * MIB, generation=1, **pool))

    @staticmethod
    def guest(mib: int) -> dict[str, Desired]:
        objects = vm_objects()
        objects[f"vm/{VM}"].vm.disks.append(told(mib * MIB).disks[1])
        return objects

    async def grow(self, mib: int) -> None:
        """Its administrator makes it larger; nobody tells the guest's node."""
        await self.maker.upsert(self.first, {f"volume/{DATA}": self.volume(mib)})
        await until("it to have grown", lambda: self.has == mib)

    async def tell(self, mib: int) -> None:
        await self.runner.upsert(self.second, {f"vm/{VM}": self.guest(mib)[f"vm/{VM}"]})

    @property
    def has(self) -> int:
        return self.tank.volumes[DATA].size_bytes // MIB

    @property
    def sees(self) -> int:
        live = self.runner.host.guests[VM].live
        return live.seen[DATA] // MIB if live is not None else 0

    @property
    def said(self) -> VmReport:
        report = self.second.reports.latest(f"vm/{VM}")
        return report.vm if report is not None else VmReport()

    @property
    def said_seen(self) -> list[tuple[str, int]]:
        return [(each.volume, each.size_bytes // MIB) for each in self.said.seen]


def test_a_running_guest_sees_what_another_node_grew_once_its_node_is_told() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        assert pair.said_seen == [(DATA, 64)], "of volumes of its own pools nothing is told, and nothing said"
        await pair.grow(128)
        await elapse(5)
        assert pair.sees == 64
        await pair.tell(128)
        await until("it to be seen", lambda: pair.said_seen == [(DATA, 128)])
        assert (pair.sees, pair.has) == (128, 128)
        done = pair.second.guests.actions
        await pair.grow(256)
        await pair.grow(512)
        await pair.tell(256)
        await until("all of it to be seen", lambda: pair.said_seen == [(DATA, 512)])
        assert (pair.sees, pair.has) == (512, 512), "it is told what is there, not what was heard of: that would cut it"
        await elapse(120)
        assert pair.second.guests.actions == done + 1
        await pair.stop()

    run(scenario)


def test_nothing_is_made_larger_from_a_guests_node() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        await pair.tell(128)
        await elapse(60)
        assert (pair.sees, pair.has) == (64, 64)
        assert pair.said.spec_revision, "the guest is as its record says, whatever it sees"
        await pair.grow(128)
        await until("it to be seen", lambda: pair.said_seen == [(DATA, 128)])
        await pair.stop()

    run(scenario)


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
def test_one_that_could_not_be_told_is_said_and_tried_again_also_by_the_next_agent(when: str) -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        await pair.grow(128)
        getattr(pair.runner.knobs, when)["grow_disk"] = 1
        await pair.tell(128)
        await until("it to be said", lambda: "having the guest see how large a disk is failed" in pair.said.error)
        assert [(each.volume, "on purpose" in each.error) for each in pair.said.volume_troubles] == [(DATA, True)]
        await pair.runner.crash(pair.second)
        pair.second = pair.runner.agent()
        await pair.second.start()
        await until("it to be seen", lambda: pair.said_seen == [(DATA, 128)])
        assert not pair.said.volume_troubles
        assert (pair.sees, pair.has) == (128, 128)
        await pair.stop()

    run(scenario)


def test_what_its_process_does_not_tell_is_said_and_keeps_nothing_else_waiting() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        await pair.grow(128)
        await pair.runner.crash(pair.second)
        pair.runner.knobs.fail_before["seen_bytes"] = 1000
        pair.second = pair.runner.agent()
        await pair.second.start()
        await pair.tell(128)
        await until("it to be said", lambda: bool(pair.said.volume_troubles))
        assert pair.said.state == VmReport.STATE_RUNNING
        assert "on purpose" in pair.said.volume_troubles[0].error
        pair.runner.knobs.fail_before.clear()
        await until("it to be seen", lambda: pair.said_seen == [(DATA, 128)])
        await until("the trouble to be over", lambda: not pair.said.volume_troubles)
        await pair.stop()

    run(scenario)


def test_one_that_is_paused_sees_it_when_it_goes_on_and_one_that_is_off_when_it_starts() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        pair.runner.host.suspend(VM)
        await pair.grow(128)
        await pair.tell(128)
        await elapse(60)
        assert pair.sees == 64
        pair.runner.host.resume_by_hand(VM)
        await until("it to be seen", lambda: pair.said_seen == [(DATA, 128)])
        pair.runner.host.crash(VM)
        await pair.grow(256)
        await pair.tell(256)
        await until("it to run again and see it", lambda: pair.said_seen == [(DATA, 256)])
        await pair.stop()

    run(scenario)


# --- told by controllers, and said ------------------------------------------------------------------------------------------


class Site:
    """Two nodes that reach a pool: a volume of 1 GiB in it, attached to a VM that runs on one of them."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        nodes = [self.cloud.node(f"n{number}", shared={"tank": 100 * GIB}) for number in (1, 2)]
        self.vm = self.cloud.vm("web", node=nodes[0])
        self.volume = self.cloud.volume("data", type="net", vm=self.vm)
        self.cloud.settle([Placements(), Assignments()])
        self.node, self.knows = nodes[0], of_agent(["local", "net"])
        self.maker = volume_node(self.cloud.view, self.volume)
        self.presence = Presence(self.cloud.view)
        self.has(1)
        self.sees(1)

    def has(self, gib: int) -> dict[str, set[str]]:
        """Its administrator says how large it is; return which objects that may change."""
        self.cloud.take()
        self.cloud.report(self.maker, f"volume/{self.volume}", state=VolumeReport.STATE_READY, size_bytes=gib * GIB)
        return self.presence.follow(self.cloud.view, self.cloud.take()).objects

    def sees(self, gib: int | None, **more: Any) -> None:
        """The guest's node says what the guest sees."""
        seen = [SeenVolume(volume=self.volume, size_bytes=gib * GIB)] if gib is not None else []
        said = {"state": VmReport.STATE_RUNNING, "open_volumes": [self.volume], "volumes_generation": 1, "seen": seen, **more}
        self.cloud.report(self.node, f"vm/{self.vm}", **said)

    def ask(self, gib: int) -> None:
        volume = self.cloud.edit(kinds.VOLUME, self.volume)
        volume.spec.size_bytes = gib * GIB
        self.cloud.put(kinds.VOLUME, self.volume, volume)
        self.cloud.settle([Placements(), Assignments()])

    @property
    def told(self) -> int:
        """What its node is sent of the volume's size, by what it said itself of what it knows."""
        outbox, sent = Outbox(self.node, self.knows), dict[str, Desired]()
        outbox.begin(self.cloud.view, self.presence)
        while outbox.pending:
            for content in outbox.take(self.cloud.view, self.presence).upserts:
                upsert = Upsert.FromString(content)
                sent[upsert.key] = upsert.object
        sizes = {disk.volume: disk.size_bytes for disk in sent[f"vm/{self.vm}"].vm.disks}
        assert not sum(size for volume, size in sizes.items() if volume != self.volume), "of the root disk nothing is told"
        return sizes[self.volume] // GIB

    def shown(self, *, settled: bool) -> str:
        volume = nouns.VOLUME.of(self.cloud.view, self.volume)
        assert volume is not None
        assert volume.status.state == VolumeStatus.STATE_ATTACHED
        assert (volume.reconciling, bool(volume.status.observed_revision)) == (not settled, settled)
        return str(volume.status.say)


def test_a_guests_node_is_told_once_the_administrator_has_said_that_it_grew() -> None:
    site = Site()
    assert site.told == 1
    site.ask(2)
    assert site.told == 1, "it is asked for, and not there"
    maker = site.cloud.view.get(kinds.NODE, site.maker)
    assert maker is not None
    assert site.shown(settled=False) == f"{maker.name} is growing it to 2 GiB"
    assert f"vm/{site.vm}" in site.has(2)[site.node]
    assert site.told == 2
    assert site.shown(settled=False) == "waits for n1 to have VM web see its 2 GiB"
    trouble = VolumeTrouble(volume=site.volume, error="no answer")
    site.sees(1, volume_troubles=[trouble])
    assert site.shown(settled=False) == "n1 could not have VM web see its 2 GiB: no answer; trying again"
    site.sees(2)
    assert site.shown(settled=True) == "attached to web, in pool net/tank"
    assert ("volume", site.volume) in set(affected(site.cloud.view, kinds.OBSERVED, f"{site.node}/vm/{site.vm}"))


def test_what_another_administrator_said_before_stays_true() -> None:
    site = Site()
    site.has(2)
    other = next(id for id in site.cloud.view.ids(kinds.NODE) if id != site.maker)
    site.cloud.report(other, f"volume/{site.volume}", state=VolumeReport.STATE_CREATING)
    assert site.told == 2


def test_a_guest_that_does_not_run_sees_it_when_it_runs() -> None:
    site = Site()
    site.ask(2)
    site.has(2)
    site.sees(1, pause=VM_PAUSE_BY_HAND)
    assert site.shown(settled=True) == "VM web, which is paused, sees its 2 GiB when it runs again"
    site.sees(None, state=VmReport.STATE_STOPPED, open_volumes=[])
    assert site.shown(settled=True) == "attached to web, in pool net/tank"


def test_a_node_that_does_not_answer_is_named() -> None:
    site = Site()
    site.ask(2)
    site.has(2)
    site.cloud.delete(kinds.NODE_SESSION, site.node)
    assert site.shown(settled=False) == "VM web sees only 1 GiB of its 2 GiB: n1 does not answer"
    site.sees(None)
    assert site.shown(settled=True) == "VM web sees how much of it is not known: n1 does not answer"


def test_an_older_agent_is_told_no_size_and_its_guests_see_it_at_their_next_start() -> None:
    site = Site()
    site.ask(2)
    site.has(2)
    site.knows = sorted({*of_agent(["local", "net"])} - {DISK_SIZES})
    site.cloud.connect(site.node, knows=site.knows)
    assert site.told == 0
    site.sees(None)
    later = "VM web sees a new size when it starts next, as the agent of n1 does not know disk-sizes: upgrade it"
    assert site.shown(settled=True) == later
    site.knows = of_agent(["local", "net"])
    site.cloud.connect(site.node)
    assert site.told == 2
    assert site.shown(settled=False) == "waits for n1 to have VM web see its 2 GiB"


def test_a_node_that_comes_back_is_told_what_it_was_told_before_its_session_is_known() -> None:
    """Its objects are made up before: what is left out then is not sent later (seed 84)."""
    site = Site()
    site.ask(2)
    site.has(2)
    assert site.told == 2
    site.cloud.delete(kinds.NODE_SESSION, site.node)
    assert site.told == 2
