"""An older backup restored under load, in stories of few workloads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cairn.proto.v1.cluster_pb2 import ForgetUnknownRequest
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, Placement, Vm, VmSpec

from tests.sim import cast
from tests.sim.asked import Asked, AskedVm
from tests.sim.older_backup import Operator
from tests.sim.play import play
from tests.sim.since import Since
from tests.sim.story import FAULT, Event, Size, Story, draw_story

WORKLOADS = ("create_delete", "power", "soft_delete", "user_data")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_guests_run_on_and_nothing_comes_back(seed: int) -> None:
    workloads = [module for module in cast.WORKLOADS if module.__name__.rpartition(".")[2] in WORKLOADS]
    faults = [module for module in cast.FAULTS if module.__name__.endswith(".older_backup")]
    size = Size(controllers=2, nodes=2, users=2, rounds=4, faults=2, duration_s=30.0)
    story = draw_story(f"older-backup-{seed}", workloads, faults, size)
    others = tuple(event for event in story.events if event.actor != FAULT)
    taken = Event(5.0 * seed, FAULT, "older_backup", (40 * seed, 0))
    story = replace(story, events=tuple(sorted((*others, taken), key=lambda event: event.at_s)))
    assert play(story).result["struck"]["older_backup"] == 1


def test_a_backup_has_no_spoiled_record() -> None:
    """Whatever is spoiled when it is taken: nobody would put the good bytes back after it was restored."""
    size = Size(controllers=1, nodes=1, users=1, rounds=1, faults=2, duration_s=40.0)
    events = (
        Event(2.0, "u1", "create_vm", ("kept-u1-0", 1, 128)),
        Event(10.0, FAULT, "unreadable", ("vm", 0, 30.0, False)),
        Event(15.0, FAULT, "older_backup", (0, 0)),
    )
    struck = play(Story("spoiled_backup", size, events)).result["struck"]
    assert (struck["unreadable"], struck["older_backup"]) == (1, 1)


def test_what_was_said_of_a_vm_that_was_nowhere_is_lost_with_its_record() -> None:
    """Deleted since, brought back and told to be off, it fitted nowhere: its node knows that it was deleted, and no more."""
    empty: dict[str, dict[str, Any]] = {kind: {} for kind in ("vm", "volume", "image", "subnet", "vpc", "placement")}
    vm = Vm(id="i-1", name="web", spec=VmSpec(cpus=1, power_state=POWER_STATE_RUNNING))
    records = {**empty, "vm": {"i-1": vm}}
    for held in (False, True):
        placement = {"i-1": Placement(vm="i-1", node="n", cpus=1)} if held else {}
        asked = Asked(vms={"i-1": AskedVm("i-1", "web", "u1", running=False, power_on=False)})
        assert not list(Since(records, {**records, "placement": placement}).lost(asked, records))
        assert asked.vms["i-1"].running is not held, "what its node knows is not lost"


def test_ways_to_guests_that_were_forgotten_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests made since the backup run on, and are reached from other nodes, until somebody lets them go."""

    async def forget(self: Operator, known: Any) -> None:
        self._since.refuse(known.key.partition("/")[2], "let go")
        await self._tried("ForgetUnknown", ForgetUnknownRequest(node=known.node, key=known.key))

    monkeypatch.setattr(Operator, "_one", forget)
    size = Size(controllers=1, nodes=3, users=1, rounds=1, faults=1, duration_s=40.0)
    before = [Event(2.0 + number, "u1", "create_vm", (f"kept-u1-{number}", 1, 128)) for number in range(3)]
    since = [Event(16.0 + number, "u1", "create_vm", (f"made-u1-{number}", 1, 128)) for number in range(3)]
    story = Story("forgotten_guests", size, (*before, Event(14.0, FAULT, "older_backup", (0, 0)), *since))
    assert play(story).result["struck"]["older_backup"] == 1
