"""Scenes of those who watch: what they believe, and what a list says."""

from __future__ import annotations

from typing import Any

from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.vm_pb2 import Vm, VmStatus

from tests.sim.asked import Asked
from tests.sim.pictures import Picture
from tests.sim.stage import SCENES as SCENES
from tests.sim.stage import VM, Stage, scene


def _vm(say: str = "running on n1", state: Any = VmStatus.STATE_RUNNING) -> Vm:
    return Vm(id=VM, status=VmStatus(state=state, say=say))


def _compared(stage: Stage, picture: Picture, *listed: Vm) -> None:
    stage.settle(Asked(pictures=[picture]))
    stage.said += stage.checker.listed(stage.cloud, "c1", "vm", listed)


def _picture(*shown: Vm, filter: str = "", complete: bool = True) -> Picture:
    return Picture("vm", filter, complete=complete, shown={each.id: each for each in shown})


@scene("pictures")
def believed_and_true(stage: Stage) -> None:
    _compared(stage, _picture(_vm()), _vm())


@scene("pictures")
def what_does_not_pass_is_not_missed(stage: Stage) -> None:
    _compared(stage, _picture(filter="status.state=RUNNING"), _vm(state=VmStatus.STATE_STOPPED))


@scene("pictures", r"misses \[\] and believes in \['i-1'\]")
def one_that_left_the_filter(stage: Stage) -> None:
    _compared(stage, _picture(_vm(), filter="status.state=RUNNING"), _vm(state=VmStatus.STATE_STOPPED))


@scene("pictures", r"misses \['i-1'\]")
def one_that_was_never_told(stage: Stage) -> None:
    _compared(stage, _picture(), _vm())


@scene("pictures", "believes 'running on n1' of i-1, c1 says 'running on n2'")
def an_old_sentence(stage: Stage) -> None:
    _compared(stage, _picture(_vm()), _vm("running on n2"))


@scene("pictures", "who watches events with 'warning=true' misses \\['ev-2'\\] and believes in \\[\\]")
def an_event_that_was_never_told(stage: Stage) -> None:
    told, untold, other = (Event(id=f"ev-{number}", warning=number < 3, message="told") for number in (1, 2, 3))
    picture = Picture("event", "warning=true", complete=True, shown={told.id: told})
    stage.settle(Asked(pictures=[picture]))
    stage.said += stage.checker.listed(stage.cloud, "c1", "event", [told, untold, other])


@scene("pictures", "has not been told of the state it began with")
def a_watch_without_a_bookmark(stage: Stage) -> None:
    _compared(stage, _picture(complete=False))
