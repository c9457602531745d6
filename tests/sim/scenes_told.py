"""Scenes of the checker told: what it must see, and what it must not mind."""

from __future__ import annotations

from cairn.proto.v1.event_pb2 import Event, EventRef

from tests.sim.stage import SCENES, VM, Stage, scene

__all__ = ["SCENES"]


def _event(object: str = VM) -> tuple[str, str, Event]:
    return "event", "ev-1", Event(id="ev-1", object=object)


def _reference() -> tuple[str, str, EventRef]:
    return "event_of", f"{VM}/ev-1", EventRef(event="ev-1")


@scene("told")
def told_and_forgotten(stage: Stage) -> None:
    stage.commit(_event(), _reference())
    stage.commit(("event", "ev-1", None), ("event_of", f"{VM}/ev-1", None))
    stage.commit(_event(""))


@scene("told", "event/ev-1 is not found by i-1")
def told_without_a_reference(stage: Stage) -> None:
    stage.commit(_event())


@scene("told", "is gone, and still found by i-1")
def forgotten_by_half(stage: Stage) -> None:
    stage.commit(_event(), _reference())
    stage.commit(("event", "ev-1", None))


@scene("told", "leads to no event")
def found_and_never_told(stage: Stage) -> None:
    stage.commit(_reference())
