"""Users make data volumes, attach and detach them, let them grow, delete them, bring them back, erase them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from cairn.proto.v1.volume_pb2 import VolumeStatus

from tests.sim.asked import AskedVolume
from tests.sim.client import MIB
from tests.sim.story import Event, Size, spread
from tests.sim.user import IMAGE, SUBNET, Code, User

SIZE_BYTES = 64 * MIB
# Twice a second.
LOOKS = 20
_ACTS = (
    "attach", "attach", "attach", "detach", "detach", "grow", "delete_volume", "undelete_volume", "purge_volume",
    "create_with_volumes", "create_attached", "detach_and_look", "detach_and_look",
)  # fmt: skip


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Each user has a few volumes and a VM or two, and moves the ones between the others."""
    for user in size.user_names[: draw.choice((1, 2))]:
        yield Event(round(draw.uniform(0, 5), 2), user, "create_vm", (f"disks-{user}", 1, 128))
        for number in range(draw.choice((1, 2, 3))):
            yield Event(round(draw.uniform(0, 5), 2), user, "create_volume", (f"data-{user}-{number}",))
        for number, at_s in enumerate(spread(draw, size, size.rounds + 2)):
            act, index = draw.choice(_ACTS), draw.randrange(8)
            match act:
                case "attach":
                    yield Event(at_s, user, act, (index, draw.randrange(8)))
                    if draw.random() < 0.3:
                        yield Event(round(at_s + draw.choice((0.0, 0.5, 3.0)), 2), user, "detach", (index,))
                case "create_with_volumes":
                    yield Event(at_s, user, act, (f"loaded-{user}-{number}", index, draw.choice((1, 2))))
                case "create_attached":
                    yield Event(at_s, user, act, (f"extra-{user}-{number}", index))
                case _:
                    yield Event(at_s, user, act, (index,))


async def create_volume(user: User, name: str) -> None:
    """Make one that is attached to nothing."""
    made = await user.client.create_volume(name, SIZE_BYTES)
    user.asked.volumes[made.id] = AskedVolume(made.id, name, user.name, SIZE_BYTES)


async def create_attached(user: User, name: str, index: int) -> None:
    """Make one at a VM."""
    vm = user.vm(index)
    made = await user.client.create_volume(name, SIZE_BYTES, vm.id if vm is not None else "")
    user.asked.volumes[made.id] = AskedVolume(made.id, name, user.name, SIZE_BYTES)
    if vm is not None:
        vm.volumes.add(made.id)


async def create_with_volumes(user: User, name: str, index: int, count: int) -> None:
    """Make a VM with volumes that are free; refused when they are on different nodes."""
    free = [each.id for each in user.asked.volumes_of(user.name) if user.holder(each.id) is None]
    wanted = [free[(index + number) % len(free)] for number in range(min(count, len(free)))]
    made = user.client.create_vm(name, image=IMAGE, subnet=SUBNET, memory_mib=128, volumes=wanted)
    vm = await user.attempt(made, Code.FAILED_PRECONDITION) if len(wanted) > 1 else await made
    if vm is not None:
        user.keep(vm, volumes=set(wanted))


async def attach(user: User, index: int, vm_index: int) -> None:
    """Attach one to a VM; refused while another has it, or when it is on another node."""
    volume, vm = user.volume(index), user.vm(vm_index)
    if volume is None or vm is None:
        return
    holder = user.holder(volume.id)
    changed = await user.attempt(user.client.update_volume(volume.id, vm=vm.id), Code.FAILED_PRECONDITION)
    if changed is None:
        return
    if holder is not None and holder is not vm:
        user.asked.contradict(f"{volume.name} ({volume.id}) is attached to {holder.name} and could be attached to {vm.name}")
    vm.volumes.add(volume.id)


async def detach(user: User, index: int) -> None:
    """Detach one; from nothing: no change."""
    volume = user.volume(index)
    if volume is None:
        return
    await user.client.update_volume(volume.id, vm="")
    holder = user.holder(volume.id)
    if holder is not None:
        holder.volumes.discard(volume.id)


async def detach_and_look(user: User, index: int) -> None:
    """Detach one and wait until it is said to be free: then no guest may have it open, wherever it is."""
    volume = user.volume(index)
    if volume is None:
        return
    asked = await user.client.update_volume(volume.id, vm="")
    holder = user.holder(volume.id)
    if holder is not None:
        holder.volumes.discard(volume.id)
    for _ in range(LOOKS):
        shown = await user.attempt(user.client.get_volume(volume.id, asked.revision), Code.NOT_FOUND, Code.UNAVAILABLE)
        if shown is None:
            return
        cloud = user.world.referee.cloud
        record = cloud.get("volume", volume.id)
        # Not attached anew meanwhile, by another act of this user.
        if record is None or record.spec.vm or record.spec.former_generation != shown.spec.former_generation:
            return
        if shown.status.state == VolumeStatus.STATE_AVAILABLE:
            for host in cloud.hosts.values():
                for guest in host.guests.values():
                    if volume.id in guest.volumes:
                        user.asked.contradict(f"{volume.id} is said to be free, and {guest.id} on {host.name} has it open")
            return
        await asyncio.sleep(0.5)


async def grow(user: User, index: int) -> None:
    """Let one grow; shrinking is refused."""
    volume = user.volume(index)
    if volume is None:
        return
    size_bytes = volume.size_bytes + SIZE_BYTES
    await user.client.update_volume(volume.id, size_bytes=size_bytes)
    volume.size_bytes = size_bytes
    if await user.attempt(user.client.update_volume(volume.id, size_bytes=SIZE_BYTES), Code.INVALID_ARGUMENT) is not None:
        user.asked.contradict(f"{volume.name} ({volume.id}) could shrink")


async def delete_volume(user: User, index: int, *, purge: bool = False) -> None:
    """Put one away; refused while it is attached."""
    volume = user.volume(index)
    if volume is None:
        return
    if user.holder(volume.id) is None:
        await user.client.delete_volume(volume.id, purge=purge)
        volume.deleted = True
        if purge:
            user.asked.erase_volume(volume.id)
        return
    if await user.attempt(user.client.delete_volume(volume.id, purge=purge), Code.FAILED_PRECONDITION) is not None:
        user.asked.contradict(f"{volume.name} ({volume.id}) is attached and could be deleted")


async def purge_volume(user: User, index: int) -> None:
    """Erase one, deleted or not; refused while it is attached."""
    volume = user.volume(index, deleted=True)
    if volume is None:
        await delete_volume(user, index, purge=True)
        return
    await user.client.delete_volume(volume.id)
    user.asked.erase_volume(volume.id)


async def undelete_volume(user: User, index: int) -> None:
    """Bring one back."""
    volume = user.volume(index, deleted=True)
    if volume is not None:
        await user.client.undelete_volume(volume.id)
        volume.deleted = False


ACTS = {
    "create_volume": create_volume,
    "create_attached": create_attached,
    "create_with_volumes": create_with_volumes,
    "attach": attach,
    "detach": detach,
    "detach_and_look": detach_and_look,
    "grow": grow,
    "delete_volume": delete_volume,
    "purge_volume": purge_volume,
    "undelete_volume": undelete_volume,
}
