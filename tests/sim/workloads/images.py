"""Users import images, make VMs of them, remove them; some imports are cancelled, some bring other bytes than they promised."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from cairn.proto.v1.image_pb2 import ImageStatus
from cairn.proto.v1.job_pb2 import CancelJobRequest
from cairn.proto.v1.job_pb2_grpc import JobServiceStub

from tests.sim.asked import AskedImage
from tests.sim.client import digest_of
from tests.sim.story import Event, Size, spread
from tests.sim.user import SUBNET, Code, User, pick

_BYTES = 64 << 10
# The node that was to take the bytes has a full disk; so the import has failed.
_REFUSED = (Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION)


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user; two images may have the same bytes."""
    user = draw.choice(size.user_names)
    yield Event(round(draw.uniform(0, 5), 2), user, "import_image", (f"image-{user}", draw.randrange(3)))
    for number, at_s in enumerate(spread(draw, size, size.rounds)):
        name = f"image-{user}-{number}"
        match draw.choice(("import_image", "vm_of_image", "vm_of_image", "remove_image", "import_wrong", "import_cancelled")):
            case "vm_of_image":
                yield Event(at_s, user, "vm_of_image", (f"of-{name}", draw.randrange(8)))
            case "remove_image":
                yield Event(at_s, user, "remove_image", (draw.randrange(8),))
            case "import_cancelled":
                yield Event(at_s, user, "import_cancelled", (name, draw.randrange(3), draw.random() < 0.5))
            case act:
                yield Event(at_s, user, act, (name, draw.randrange(3)))


async def import_image(user: User, name: str, content: int) -> None:
    """Import one, and wait until VMs can be made of it. A node whose disk is full refuses the bytes: then it is removed."""
    image = await user.client.create_image(name, _content(content))
    sent = user.client.upload_image(image.id, _content(content))
    if await user.attempt(sent, *_REFUSED) is not None and await _ready(user, image.id):
        user.asked.images[image.id] = AskedImage(image.id, name, user.name)
    else:
        await user.client.delete_image(image.id)


async def import_wrong(user: User, name: str, content: int) -> None:
    """Send other bytes than the digest promised: refused, and no VM can be made of it."""
    image = await user.client.create_image(name, _content(content + 10), digest_of(_content(content + 20)))
    sent = user.client.upload_image(image.id, _content(content + 10))
    if await user.attempt(sent, Code.INVALID_ARGUMENT, *_REFUSED) is not None:
        user.asked.contradict(f"{name} ({image.id}) was accepted though its bytes are not what was promised")
    made = user.client.create_vm(f"of-{name}", image=image.id, subnet=SUBNET, memory_mib=64)
    if await user.attempt(made, Code.FAILED_PRECONDITION) is not None:
        user.asked.contradict(f"a VM could be made of {name} ({image.id}), whose bytes never came")
    await user.client.delete_image(image.id)


async def import_cancelled(user: User, name: str, content: int, sent: bool) -> None:
    """Cancel the import, before or after the bytes were sent: then they are there already, and stay."""
    image = await user.client.create_image(name, _content(content + 30))
    if sent:
        await user.attempt(user.client.upload_image(image.id, _content(content + 30)), *_REFUSED)
    request = CancelJobRequest(id=image.status.job)
    await user.attempt(user.client.call(JobServiceStub, "CancelJob", request), Code.FAILED_PRECONDITION)
    await user.client.delete_image(image.id)


async def vm_of_image(user: User, name: str, index: int) -> None:
    """Make a VM of one."""
    image = pick(user.asked.images_of(user.name), index)
    if image is not None:
        image.used = True
        vm = await user.client.create_vm(name, image=image.id, subnet=SUBNET, memory_mib=128)
        user.keep(vm, image=image.id)


async def remove_image(user: User, index: int) -> None:
    """Remove one; refused while a disk is a copy of it, also that of a VM that is deleted and not erased."""
    image = pick(user.asked.images_of(user.name), index)
    if image is None:
        return
    call = user.client.delete_image(image.id)
    if await (user.attempt(call, Code.FAILED_PRECONDITION) if image.used else call) is None:
        return
    del user.asked.images[image.id]
    for vm in user.asked.vms.values():
        if vm.image == image.id:
            user.asked.contradict(f"{image.name} ({image.id}) could be removed though {vm.name} ({vm.id}) is made of it")


async def _ready(user: User, id: str) -> bool:
    """Wait until the import has got as far as needed, or has failed."""
    while True:
        state = (await user.client.image(id)).status.state
        if state in (ImageStatus.STATE_AVAILABLE, ImageStatus.STATE_FAILED):
            return bool(state == ImageStatus.STATE_AVAILABLE)
        await asyncio.sleep(0.5)


def _content(number: int) -> bytes:
    return random.Random(f"image {number}").randbytes(_BYTES)


ACTS = {
    "import_image": import_image,
    "import_wrong": import_wrong,
    "import_cancelled": import_cancelled,
    "vm_of_image": vm_of_image,
    "remove_image": remove_image,
}
