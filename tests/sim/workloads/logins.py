"""People log in at an identity provider, work by what their groups may, and are out at once when they are to be.

Each has a provider of his own, so that it can be taken away; all are the one outside of the cloud (network.issuer), which
faults silence and give other keys. An ID token may be judged too old or come twice, as clocks and the network are: then another
one is asked for, as a person would. When all controllers' clocks are wrong, somebody sets them, as the refusals ask.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import grpc
from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, CreateBindingRequest, DeleteBindingRequest, Subject
from cairn.proto.v1.binding_pb2_grpc import BindingServiceStub
from cairn.proto.v1.identity_provider_pb2 import (
    CreateIdentityProviderRequest,
    DeleteIdentityProviderRequest,
    IdentityProvider,
    IdentityProviderSpec,
    UpdateIdentityProviderRequest,
)
from cairn.proto.v1.identity_provider_pb2_grpc import IdentityProviderServiceStub
from cairn.proto.v1.login_pb2 import LoginRequest
from cairn.proto.v1.login_pb2_grpc import LoginServiceStub
from cairn.proto.v1.user_pb2 import DeleteUserRequest, UpdateUserRequest
from cairn.proto.v1.user_pb2 import User as UserRecord
from cairn.proto.v1.user_pb2_grpc import UserServiceStub

from tests.sim.client import MIB, SimClient
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User
from tests.sim.workloads.tokens import WHILE, ends, follows, works_on
from tests.sim.world import SimIds, World

ISSUER = "https://id.example"
CLIENT = "cairn"
TEAM = "/team"
SESSION_S = 24 * 3600
TRIES = 40
PAUSE_S = 5.0
# Between the provider's answer and its use: keys may change.
BETWEEN_S = 1.0
_REFUSED = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.NOT_FOUND)


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """Each way to have somebody out."""
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 3))):
        way = draw.choice(("provider", "user", "unlink", "group"))
        yield Event(at_s, draw.choice(size.user_names), "log_in", (number, way, draw.choice((0.1, 2.0, 10.0))))


async def log_in(user: User, number: int, way: str, for_s: float) -> None:
    """Trust a provider, log in by it and work; some time later be out, and try again."""
    name = f"l{number}-{user.name}"
    provider = await _trusted(user, name)
    spec = BindingSpec(role="member", subject=Subject(group=f"g-{name}"))
    asked = CreateBindingRequest(binding=Binding(project="default", spec=spec))
    bound = await user.client.call(BindingServiceStub, "CreateBinding", asked)
    answer = await _logged_in(user, name)
    his = user.world.connect_by_token(name, answer.token)
    volume = await user.attempt(his.create_volume(f"of-{name}", MIB), *_REFUSED)
    if volume is None:
        user.asked.contradict(f"{name} has logged in, is in a group that may, and has not made a volume")
    else:
        await user.client.delete_volume(volume.id, purge=True)
    following = asyncio.create_task(follows(his))
    await asyncio.sleep(for_s)
    working = asyncio.create_task(works_on(user, his, name))
    revision = await _is_out(user, answer, provider, way)
    await working
    for each in range(WHILE):
        # Also those whose answer he was not told any more.
        await user.attempt(user.client.delete_volume(f"while-{name}-{each}", purge=True), Code.NOT_FOUND)
    if await user.attempt(his.create_volume(f"late-{name}", MIB), *_REFUSED) is not None:
        user.asked.contradict(f"{name} is out ({way}), and has made a volume")
    await ends(user, following, name, way, revision)
    await user.client.call(BindingServiceStub, "DeleteBinding", DeleteBindingRequest(id=bound.id))
    if way != "user":
        await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=answer.api_token.spec.user))
    gone = DeleteIdentityProviderRequest(id=provider.id)
    await user.client.call(IdentityProviderServiceStub, "DeleteIdentityProvider", gone)


async def _trusted(user: User, name: str) -> Any:
    spec = IdentityProviderSpec(issuer=ISSUER, client_id=CLIENT, create_users=True, session_s=SESSION_S)
    spec.groups[TEAM] = f"g-{name}"
    asked = CreateIdentityProviderRequest(identity_provider=IdentityProvider(name=f"idp-{name}", spec=spec))
    return await user.client.call(IdentityProviderServiceStub, "CreateIdentityProvider", asked)


async def _logged_in(user: User, name: str) -> Any:
    """Return the answer; each ID token is good for one. AssertionError when there is no end of trying."""
    world = user.world
    endpoints = tuple(f"{each}:7444" for each in world.controllers)
    ids = SimIds(f"{world.seed}/nobody/{name}")
    nobody = SimClient(world.stranger(f"at-{name}"), endpoints, ids, world.note, user.asked.refused)
    why = ""
    for number in range(TRIES):
        nonce = f"{name}-{number}"
        issued = world.network.issuer.issued(
            ISSUER, f"s-{name}", nonce, world.now(), audience=CLIENT, name=name, groups=(TEAM, "/other")
        )
        request = LoginRequest(provider=f"idp-{name}", id_token=issued, nonce=nonce)
        await asyncio.sleep(BETWEEN_S)
        try:
            answer = await nobody.call(LoginServiceStub, "Login", request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (Code.UNAUTHENTICATED, Code.UNAVAILABLE):
                raise
            why = str(error.details())
            if number == TRIES // 2 and "and here it is" in why:
                _set_clocks(world)
            await asyncio.sleep(PAUSE_S)
            continue
        again = await user.attempt(nobody.call(LoginServiceStub, "Login", request), Code.UNAUTHENTICATED, Code.UNAVAILABLE)
        if again is not None:
            user.asked.contradict(f"{name} has logged in twice by one ID token")
        return answer
    raise AssertionError(f"{name} cannot log in: {why}")


def _set_clocks(world: World) -> None:
    for name in world.controllers:
        if name in world.processes:
            world.processes[name].clock.skew_s = 0.0


async def _is_out(user: User, answer: Any, provider: Any, way: str) -> int:
    """Return the revision it is so at, 0 when the answer does not tell."""
    owner = answer.api_token.spec.user
    if way == "user":
        await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=owner))
        return 0
    if way == "unlink":
        change = UpdateUserRequest(user=UserRecord(id=owner), allow_stale=True)
        change.update_mask.paths.append("spec.login")
        return int((await user.client.call(UserServiceStub, "UpdateUser", change)).revision)
    spec = IdentityProviderSpec(disabled=True) if way == "provider" else IdentityProviderSpec()
    update = UpdateIdentityProviderRequest(identity_provider=IdentityProvider(id=provider.id, spec=spec), allow_stale=True)
    update.update_mask.paths.append("spec.disabled" if way == "provider" else "spec.groups")
    return int((await user.client.call(IdentityProviderServiceStub, "UpdateIdentityProvider", update)).revision)


ACTS = {"log_in": log_in}
