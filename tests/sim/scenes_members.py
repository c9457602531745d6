"""Scenes of the checker expected: who is there, and who is thought to be."""

from __future__ import annotations

from cairn.proto.v1.cluster_pb2 import ControllerMember, ControllerSession
from google.protobuf.timestamp_pb2 import Timestamp

from tests.sim.stage import SCENES, Stage, scene

__all__ = ["SCENES"]


@scene("expected")
def all_there(stage: Stage) -> None:
    stage.commit(("controller", "c1", ControllerSession(name="c1")))
    stage.commit(("controller_member", "c1", ControllerMember(name="c1")))
    stage.commit(("controller_member", "c2", ControllerMember(name="c2", missing_time=Timestamp(seconds=1))))
    stage.settle()


@scene("expected", "controller c1 is there and not expected")
def somebody_new(stage: Stage) -> None:
    stage.commit(("controller", "c1", ControllerSession(name="c1")))
    stage.settle()


@scene("expected", "controller c1 is there and told as missing")
def somebody_back(stage: Stage) -> None:
    stage.commit(("controller", "c1", ControllerSession(name="c1")))
    stage.commit(("controller_member", "c1", ControllerMember(name="c1", missing_time=Timestamp(seconds=1))))
    stage.settle()
