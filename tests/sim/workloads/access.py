"""Users let others in, and shut them out again.

What was given counts at once wherever one asks. What was taken back changes nothing any more, and shows nothing of later times;
a list that was not asked to be fresh may be a moment old.

Those who are let in (named t...) have clients of their own, which ask any controller.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import grpc
from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, CreateBindingRequest, DeleteBindingRequest, Subject
from cairn.proto.v1.binding_pb2_grpc import BindingServiceStub
from cairn.proto.v1.user_pb2 import CreateUserRequest, DeleteUserRequest, UpdateUserRequest, UserSpec
from cairn.proto.v1.user_pb2 import User as UserRecord
from cairn.proto.v1.user_pb2_grpc import UserServiceStub
from cairn.proto.v1.vm_pb2 import ListVmsRequest
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub

from tests.sim.client import MIB, SimClient
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

# Calls that are under way when somebody is shut out.
WHILE = 4
_REFUSED = (Code.PERMISSION_DENIED, Code.NOT_FOUND)


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Some are let in to look, some to work, and each way of shutting somebody out is tried."""
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 3))):
        role = draw.choice(("viewer", "viewer", "member"))
        way = draw.choice(("unbind", "disable", "delete"))
        yield Event(at_s, draw.choice(size.user_names), "let_in", (number, role, way, draw.choice((0.1, 2.0, 10.0))))


async def let_in(user: User, number: int, role: str, way: str, for_s: float) -> None:
    """Make a user, give him a role, have him use it; some time later take it back and have him try again."""
    name = f"t{number}-{user.name}"
    made = await user.client.call(UserServiceStub, "CreateUser", CreateUserRequest(user=UserRecord(name=name)))
    spec = BindingSpec(role=role, subject=Subject(user=made.id))
    binding = Binding(project="default", spec=spec)
    bound = await user.client.call(BindingServiceStub, "CreateBinding", CreateBindingRequest(binding=binding))
    his = user.world.connect(name)
    await _asks(user, his, name, number, role)
    await asyncio.sleep(for_s)
    working = asyncio.create_task(_works_on(user, his, name))
    revision = await _shut_out(user, made, bound, way)
    await working
    for number in range(WHILE):
        # Also those whose answer he was not told any more.
        await user.attempt(user.client.delete_volume(f"while-{name}-{number}", purge=True), Code.NOT_FOUND)
    if revision and await _seen(his, revision):
        user.asked.contradict(f"{name} was shut out ({way}), and sees VMs")
    if await user.attempt(his.create_volume(f"late-{name}", MIB), *_REFUSED) is not None:
        user.asked.contradict(f"{name} was shut out ({way}), and has made a volume")
    if way != "delete":
        await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=made.id))


async def _asks(user: User, his: SimClient, name: str, number: int, role: str) -> None:
    """What he was given is his at once, and no more than that."""
    try:
        await his.call(VmServiceStub, "ListVms", ListVmsRequest())
    except grpc.aio.AioRpcError as error:
        user.asked.contradict(f"{name} was made {role}, and may not look: {error.details()}")
    volume = await user.attempt(his.create_volume(f"of-{name}", MIB), *_REFUSED)
    if (volume is not None) != (role == "member"):
        user.asked.contradict(f"{name} is {role}, and has{'' if volume is not None else ' not'} made a volume")
    if volume is not None:
        await user.client.delete_volume(volume.id, purge=True)


async def _works_on(user: User, his: SimClient, name: str) -> None:
    """Make volumes, several at a time, while the right to it is taken back: what is made before that is his to make."""
    tries = [user.attempt(his.create_volume(f"while-{name}-{number}", MIB), *_REFUSED) for number in range(WHILE)]
    await asyncio.gather(*tries)


async def _shut_out(user: User, made: Any, bound: Any, way: str) -> int:
    """Return the revision it is so at, 0 when the answer does not tell."""
    if way == "unbind":
        await user.client.call(BindingServiceStub, "DeleteBinding", DeleteBindingRequest(id=bound.id))
    elif way == "disable":
        change = UpdateUserRequest(user=UserRecord(id=made.id, spec=UserSpec(disabled=True)), allow_stale=True)
        change.update_mask.paths.append("spec.disabled")
        return int((await user.client.call(UserServiceStub, "UpdateUser", change)).revision)
    else:
        await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=made.id))
    return 0


async def _seen(his: SimClient, revision: int) -> bool:
    """Tell whether he is shown anything of the cloud as it was at a revision, or later."""
    try:
        return bool((await his.call(VmServiceStub, "ListVms", ListVmsRequest(read_revision=revision))).vms)
    except grpc.aio.AioRpcError as error:
        if error.code() not in _REFUSED:
            raise
        return False


ACTS = {"let_in": let_in}
