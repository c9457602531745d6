"""Somebody who uses the cloud: what the acts of workloads are given."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from tests.sim.asked import Asked, AskedVm, AskedVolume
from tests.sim.client import SimClient
from tests.sim.world import World

# What is there before a story begins.
IMAGE: Final = "demo"
SUBNET: Final = "demo"
T = TypeVar("T")
Code = grpc.StatusCode


@dataclass
class User:
    """A client, and what users were told. Everything a user does was decided when the story was drawn."""

    name: str
    world: World
    client: SimClient
    asked: Asked

    def vm(self, index: int, *, deleted: bool = False) -> AskedVm | None:
        """Return one of the user's VMs, None when there is none."""
        return pick(self.asked.vms_of(self.name, deleted=deleted), index)

    def volume(self, index: int, *, deleted: bool = False) -> AskedVolume | None:
        """Return one of the user's data volumes."""
        return pick(self.asked.volumes_of(self.name, deleted=deleted), index)

    def holder(self, volume: str) -> AskedVm | None:
        """Return the VM a data volume is attached to."""
        return next((vm for vm in self.asked.vms.values() if volume in vm.volumes), None)

    def keep(self, vm: Any, *, owner: str = "", **more: Any) -> AskedVm:
        """Note a VM the user was answered with."""
        spec = vm.spec
        asked = AskedVm(vm.id, vm.name, owner or self.name, cpus=spec.cpus, memory_bytes=spec.memory_bytes, **more)
        self.asked.vms[vm.id] = asked
        return asked

    async def attempt(self, call: Awaitable[T], *refusals: grpc.StatusCode) -> T | None:
        """Return the answer; None when it is refused with one of these, which the user has to expect."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() not in refusals:
                raise
            return None


def pick(items: Sequence[T], index: int) -> T | None:
    """Return an item, however many there are."""
    return items[index % len(items)] if items else None
