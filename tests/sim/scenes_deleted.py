"""Scenes of what becomes of names and of disks: a VM called otherwise than asked, disks of a deleted VM told as attached."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tests.sim.stage import GIB, SCENES, VM, VOLUME, Stage, asked, scene, vm, volume

__all__ = ["SCENES"]


def _disk_of_the_deleted(stage: Stage) -> Any:
    machine = vm()
    machine[2].delete_time.CopyFrom(Timestamp(seconds=1))
    stage.commit(machine, volume(vm=VM))
    stage.host(volumes={VOLUME: GIB})
    disk = volume(vm=VM)[2]
    disk.status.node, disk.status.say = "n1", "a sentence"
    return disk


@scene("views", "says of volume vol1: STATE_ATTACHED")
def a_disk_of_a_deleted_vm_shown_attached(stage: Stage) -> None:
    disk = _disk_of_the_deleted(stage)
    disk.status.state = disk.status.STATE_ATTACHED
    stage.said += stage.checker.listed(stage.cloud, "c1", "volume", [disk])


@scene("views")
def a_disk_of_a_deleted_vm_shown_deleted(stage: Stage) -> None:
    disk = _disk_of_the_deleted(stage)
    disk.status.state = disk.status.STATE_DELETED
    stage.said += stage.checker.listed(stage.cloud, "c1", "volume", [disk])


@scene("as_asked", "i-1 is called other, not web")
def a_vm_with_another_name(stage: Stage) -> None:
    stage.commit(vm(name="other"))
    stage.settle(asked(name="web", running=False))
