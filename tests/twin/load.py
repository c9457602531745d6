"""Users of the real cloud: the acts of the simulation's workloads, one after the other with pauses, drawn from a seed.

A guest here costs a core for some seconds, so each user has few at a time and erases the oldest before making another. Left out
are storms (there is no room for them) and guests of images that do not boot. A guest crashes when its QEMU is killed, and shuts
down by itself when its agent, inside, is asked to.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

import grpc

from tests.lab.hosts import run
from tests.lab.lab import Lab
from tests.sim import cast
from tests.sim.client import MIB, SimClient
from tests.sim.user import User
from tests.twin.eyes import Eyes

# With less the demo guest's kernel panics.
MEMORY_MIB_MIN: Final = 96
VMS_MAX: Final = 2
SUBNETS_MAX, VOLUMES_MAX, IMAGES_MAX, CONTESTS_MAX = 3, 3, 2, 3
# How long a guest that was asked to shut down from inside is waited for.
SHUTDOWN_S: Final = 20.0
Drawn = tuple[str, tuple[Any, ...]]


class Place(Protocol):
    """What acts see of where they play."""

    lab: Lab
    eyes: Eyes

    def note(self, text: str) -> None:
        """Log."""
        ...


class TwinClient(SimClient):
    """Counts calls, and gives VMs what the demo guest needs to boot."""

    answered = 0

    async def call(self, service: Any, method: str, request: Any, *, first: int | None = None, final: Any = ()) -> Any:
        """Call until answered."""
        spec = request.vm.spec if method == "CreateVm" else None
        if spec is not None:
            spec.memory_bytes = max(spec.memory_bytes, MEMORY_MIB_MIN * MIB)
        answer = await super().call(service, method, request, first=first, final=final)
        self.answered += 1
        return answer


def _by_index(draw: random.Random, _name: str, _number: int) -> tuple[Any, ...]:
    return (draw.randrange(8),)


def _by_two(draw: random.Random, _name: str, _number: int) -> tuple[Any, ...]:
    return (draw.randrange(8), draw.randrange(8))


_PAUSES_S = (0.0, 0.0, 0.2, 1.0, 5.0)
Args = Callable[[random.Random, str, int], tuple[Any, ...]]
# Those that make a VM, with their weights.
_MAKING: Final[dict[str, tuple[int, Args]]] = {
    "create_vm": (8, lambda draw, name, _: (f"web-{name}", draw.choice((1, 1, 2)), draw.choice((96, 128, 192)))),
    "create_with_policy": (8, lambda draw, name, _: (f"power-{name}", draw.choice(("always", "never", "on_failure")))),
    "vm_in_subnets": (6, lambda draw, name, _: (f"net-vm-{name}", draw.randrange(8), draw.choice((1, 2)))),
    "create_with_volumes": (6, lambda draw, name, _: (f"loaded-{name}", draw.randrange(8), draw.choice((1, 2)))),
    "create_as_planned": (3, lambda draw, name, _: (f"planned-{name}", draw.choice((0.0, 1.0)))),
    "send_twice": (3, lambda draw, name, number: (number, draw.choice((1, 2)))),
}
_CONTESTS: Final = ("take_name", "take_address", "take_volume")
_OTHER: Final[dict[str, tuple[int, Args]]] = {
    **dict.fromkeys(("start", "stop", "stop_hard", "reboot", "reboot_hard", "crash_inside"), (3, _by_index)),
    **dict.fromkeys(("shut_down_inside", "purge_vm", "delete", "undelete", "purge_deleted"), (2, _by_index)),
    **dict.fromkeys(("detach", "grow", "purge_volume", "undelete_volume", "delete_volume"), (2, _by_index)),
    **dict.fromkeys(("overlap", "remove_subnet", "remove_vpc", "remove_image", "resize_too_far"), (1, _by_index)),
    "attach": (5, _by_two),
    "write_on_old": (1, _by_two),
    "brought_back": (2, lambda draw, _, __: (draw.randrange(8), draw.choice(_PAUSES_S))),
    "back_and_erased": (2, lambda draw, _, __: (draw.randrange(8), draw.choice(_PAUSES_S), draw.choice(_PAUSES_S))),
    "erase_as_planned": (1, lambda draw, _, __: (draw.randrange(8), draw.choice((0.0, 1.0)))),
    "resize": (3, lambda draw, _, __: (draw.randrange(8), draw.choice((1, 2)), draw.choice((96, 128, 192)))),
    "create_volume": (4, lambda _, name, __: (f"data-{name}",)),
    "create_attached": (3, lambda draw, name, _: (f"extra-{name}", draw.randrange(8))),
    "make_vpc": (2, lambda draw, name, _: (f"net-{name}", draw.choice((1, 2)))),
    "add_subnet": (1, lambda draw, name, number: (draw.randrange(8), f"more-{name}", 100 + number % 100)),
    "import_image": (1, lambda draw, name, _: (f"image-{name}", draw.randrange(3))),
    "import_wrong": (1, lambda draw, name, _: (f"wrong-{name}", draw.randrange(3))),
    "import_cancelled": (1, lambda draw, name, _: (f"cancelled-{name}", draw.randrange(3), draw.random() < 0.5)),
}
_WEIGHTED: Final = {**_MAKING, **_OTHER, **dict.fromkeys(_CONTESTS, (1, _by_index))}
# What a user has of a kind before he makes no more of it.
_ENOUGH: Final[dict[str, tuple[int, Callable[[User], Collection[Any]]]]] = {
    "make_vpc": (1, lambda user: user.asked.subnets_of(user.name)),
    "add_subnet": (SUBNETS_MAX, lambda user: user.asked.subnets_of(user.name)),
    "create_volume": (VOLUMES_MAX, lambda user: user.asked.volumes_of(user.name)),
    "create_attached": (VOLUMES_MAX, lambda user: user.asked.volumes_of(user.name)),
    "import_image": (IMAGES_MAX, lambda user: user.asked.images_of(user.name)),
    **{name: (CONTESTS_MAX, lambda user: user.asked.contests) for name in _CONTESTS},
}


class Load:
    """One user's stream of acts."""

    def __init__(self, user: User, seed: str) -> None:
        self._user, self._draw, self._number = user, random.Random(f"{seed}/{user.name}"), 0
        self.done: Counter[str] = Counter()

    async def run(self, until_s: float) -> None:
        """Do one thing after the other until then (the loop's time)."""
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            (name, args), pause_s = self._next(), self._draw.uniform(0.2, 3.0)
            await self._do(name, args)
            await asyncio.sleep(max(0.0, min(pause_s, until_s - loop.time())))

    def _next(self) -> Drawn:
        self._number += 1
        name = self._draw.choices(list(_WEIGHTED), [weight for weight, _ in _WEIGHTED.values()])[0]
        if name in _CONTESTS:
            return name, (len(self._user.asked.contests), 2)
        return name, _WEIGHTED[name][1](self._draw, f"{self._user.name}-{self._number}", self._number)

    async def _do(self, name: str, args: tuple[Any, ...]) -> None:
        user = self._user
        if name in _ENOUGH and len(_ENOUGH[name][1](user)) >= _ENOUGH[name][0]:
            return
        mine = [*user.asked.vms_of(user.name), *user.asked.vms_of(user.name, deleted=True)]
        if name in _MAKING and len(mine) >= VMS_MAX:
            await ACTS["purge_vm"](user, 0)
        user.world.note(f"{user.name}: {name}{args!r}")
        self.done[name] += 1
        try:
            await ACTS[name](user, *args)
        except grpc.aio.AioRpcError as error:
            raise AssertionError(f"{user.name}: {name}{args!r} was refused: {error.code().name} {error.details()}") from error


async def crash_inside(user: User, index: int) -> None:
    """Kill a guest's QEMU: it is started again, unless its policy is never to."""
    vm, place = user.vm(index), user.world
    found = place.eyes.process_of(vm.id) if vm is not None else None
    if found is not None:
        host, process = found
        place.note(f"kill -9 the guest {process.guest} on {host.name}")
        os.kill(process.pid, signal.SIGKILL)


async def shut_down_inside(user: User, index: int) -> None:
    """Let the guest shut itself down, and see it go. Whether it or something else ended it first nobody knows."""
    vm, place = user.vm(index), user.world
    found = place.eyes.process_of(vm.id) if vm is not None and vm.running else None
    if vm is None or found is None:
        return
    host, process = found
    vm.may_be_off = not vm.always_restarts
    uri = f"qemu+unix:///system?socket={host.folder}/libvirt/run/libvirt-sock"
    argv = ("timeout", "10", "virsh", "-c", uri, "shutdown", vm.id, "--mode", "agent")
    done = await asyncio.to_thread(run, *argv, check=False)
    place.note(f"the guest {vm.id} is asked to shut down: {(done.stdout + done.stderr).strip()}")
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SHUTDOWN_S
    while process.lives() and loop.time() < until_s:
        await asyncio.sleep(0.2)


ACTS: Final[dict[str, Any]] = {
    **cast.acts(cast.WORKLOADS),
    "crash_inside": crash_inside,
    "shut_down_inside": shut_down_inside,
}
