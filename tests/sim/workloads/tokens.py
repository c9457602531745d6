"""Users give tokens to programs of theirs, and take them back.

A token made through any controller is good at all of them at once, for what it is narrowed to and no more. What was taken back
changes nothing any more, and an open stream ends with what it was opened by. Clocks are wrong by minutes: when one that ends by
itself is still let in is for the checker of records to judge.

Programs (named p...) have no certificate: they ask where none is asked for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from cairn.proto.v1.api_token_pb2 import (
    ApiToken,
    ApiTokenSpec,
    CreateApiTokenRequest,
    DeleteApiTokenRequest,
    UpdateApiTokenRequest,
)
from cairn.proto.v1.api_token_pb2_grpc import ApiTokenServiceStub
from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, CreateBindingRequest, Subject
from cairn.proto.v1.binding_pb2_grpc import BindingServiceStub
from cairn.proto.v1.user_pb2 import CreateUserRequest, DeleteUserRequest, UserSpec
from cairn.proto.v1.user_pb2 import User as UserRecord
from cairn.proto.v1.user_pb2_grpc import UserServiceStub
from cairn.proto.v1.vm_pb2 import ListVmsRequest
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub
from cairn.proto.v1.volume_pb2 import WatchVolumesRequest
from cairn.proto.v1.volume_pb2_grpc import VolumeServiceStub

from tests.sim.client import MIB, SimClient
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

_REFUSED = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.NOT_FOUND)
# Calls that are under way when a token is taken back.
WHILE = 4
# Of one that ends by itself.
TTL_S = 10
# A stream that is still open then is never ended: no fault lasts as long.
ENDS_WITHIN_S = 200.0
_NARROWED = {"all": (), "looks": ("*.see",), "works": ("volume.*", "*.see")}


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Tokens that are narrowed and that are not, and each way to take one back."""
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 3))):
        way = draw.choice(("delete", "delete", "disable", "user", "end"))
        narrowed = draw.choice(sorted(_NARROWED))
        yield Event(at_s, draw.choice(size.user_names), "give_token", (number, narrowed, way, draw.choice((0.1, 2.0, 10.0))))


async def give_token(user: User, number: int, narrowed: str, way: str, for_s: float) -> None:
    """Make a program and a token for it, have it used; some time later take it back, and have it tried again."""
    name = f"p{number}-{user.name}"
    program = UserRecord(name=name, spec=UserSpec(type=UserSpec.TYPE_SERVICE))
    made = await user.client.call(UserServiceStub, "CreateUser", CreateUserRequest(user=program))
    binding = Binding(project="default", spec=BindingSpec(role="member", subject=Subject(user=made.id)))
    await user.client.call(BindingServiceStub, "CreateBinding", CreateBindingRequest(binding=binding))
    spec = ApiTokenSpec(user=made.id, permissions=_NARROWED[narrowed])
    asked = CreateApiTokenRequest(api_token=ApiToken(name=name, spec=spec), ttl_s=TTL_S if way == "end" else 0)
    answer = await user.client.call(ApiTokenServiceStub, "CreateApiToken", asked)
    await _makes_key(user, made, f"key-{name}")
    his, token = user.world.connect_by_token(name, answer.token), answer.api_token
    if way != "end":
        await _asks(user, his, name, narrowed)
    following = asyncio.create_task(follows(his))
    await asyncio.sleep(for_s)
    working = asyncio.create_task(works_on(user, his, name))
    revision = await _take_back(user, token, made, way)
    await working
    for each in range(WHILE):
        # Also those whose answer it was not told any more.
        await user.attempt(user.client.delete_volume(f"while-{name}-{each}", purge=True), Code.NOT_FOUND)
    if way == "end":
        await asyncio.sleep(TTL_S)
    late = await user.attempt(his.create_volume(f"late-{name}", MIB), *_REFUSED)
    if late is not None:
        await user.client.delete_volume(late.id, purge=True)
        if way != "end":
            user.asked.contradict(f"the token of {name} was taken back ({way}), and has made a volume")
    await ends(user, following, name, way, revision)
    if way != "user":
        await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=made.id))
    if way == "end":
        # By a controller whose clock is behind it may have been made all the same, for a request that came twice.
        await user.attempt(user.client.delete_volume(f"late-{name}", purge=True), Code.NOT_FOUND)


async def _makes_key(user: User, made: Any, name: str) -> None:
    """Make an access key, ask for it again: it is the same. It goes with its user, whoever that is taken from."""
    spec = ApiTokenSpec(user=made.id, type=ApiTokenSpec.TYPE_SIGNING)
    asked = CreateApiTokenRequest(api_token=ApiToken(name=name, spec=spec), request_id=user.client.request_id())
    first = await user.client.call(ApiTokenServiceStub, "CreateApiToken", asked)
    again = await user.client.call(ApiTokenServiceStub, "CreateApiToken", asked)
    if (first.api_token.id, first.secret) != (again.api_token.id, again.secret):
        user.asked.contradict(
            f"the access key {name} was asked for twice, and is {first.api_token.id} and {again.api_token.id}"
        )


async def _asks(user: User, his: SimClient, name: str, narrowed: str) -> None:
    """It may what its user may, at once, and no more than it is narrowed to."""
    try:
        await his.call(VmServiceStub, "ListVms", ListVmsRequest())
    except grpc.aio.AioRpcError as error:
        user.asked.contradict(f"{name} has a token, and may not look: {error.details()}")
    volume = await user.attempt(his.create_volume(f"of-{name}", MIB), *_REFUSED)
    if (volume is not None) != (narrowed != "looks"):
        user.asked.contradict(f"{name} has a token for {narrowed}, and has{'' if volume is not None else ' not'} made a volume")
    if volume is not None:
        await user.client.delete_volume(volume.id, purge=True)


async def works_on(user: User, his: SimClient, name: str) -> None:
    """Make volumes, several at a time, while the token is taken back: what is made before that is lawful."""
    tries = [user.attempt(his.create_volume(f"while-{name}-{number}", MIB), *_REFUSED) for number in range(WHILE)]
    await asyncio.gather(*tries)


async def follows(his: SimClient) -> int:
    """Watch volumes until that is ended; return the revision of the last message."""
    last = 0
    async with his.channel(0) as channel:
        call = VolumeServiceStub(channel).WatchVolumes(WatchVolumesRequest())
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                last = max(last, response.revision)
        except grpc.aio.AioRpcError as error:
            if error.code() is Code.INTERNAL:
                raise
    return last


async def _take_back(user: User, token: Any, made: Any, way: str) -> int:
    """Return the revision it is so at, 0 when the answer does not tell."""
    if way == "delete":
        await user.client.call(ApiTokenServiceStub, "DeleteApiToken", DeleteApiTokenRequest(id=token.id))
    elif way == "disable":
        change = UpdateApiTokenRequest(api_token=ApiToken(id=token.id, spec=ApiTokenSpec(disabled=True)), allow_stale=True)
        change.update_mask.paths.append("spec.disabled")
        return int((await user.client.call(ApiTokenServiceStub, "UpdateApiToken", change)).revision)
    elif way == "user":
        await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=made.id))
    return 0


async def ends(user: User, following: asyncio.Task[int], name: str, way: str, revision: int) -> None:
    """The stream ends, and has shown nothing of later than its token was good."""
    if way == "end":
        # Clocks that were set back may give it minutes.
        following.cancel()
        await asyncio.wait([following])
        return
    done, _ = await asyncio.wait([following], timeout=ENDS_WITHIN_S)
    if not done:
        following.cancel()
        user.asked.contradict(f"the token of {name} was taken back ({way}), and its stream is open")
    elif revision and following.result() > revision:
        say = f"the token of {name} was taken back at revision {revision}, and its stream has shown {following.result()}"
        user.asked.contradict(say)


ACTS = {"give_token": give_token}
