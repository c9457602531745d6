"""Servers come and go: they join with a token, are closed to new VMs for a while, leave when nothing of a user's is on them."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import grpc.aio
from cairn.agent import identity
from cairn.agent.identity import Files, JoinError
from cairn.controller.api.join_tokens import TTL_S_MAX
from cairn.proto.pki import TokenContent
from cairn.proto.v1.node_pb2 import CreateJoinTokenRequest, DeleteJoinTokenRequest, DeleteNodeRequest, Node, UpdateNodeRequest
from cairn.proto.v1.node_pb2_grpc import NodeServiceStub

from tests.sim.client import PASSING, SimClient, of_full_store
from tests.sim.machine import Machine
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User, pick
from tests.sim.world import World


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user looks after the servers."""
    user = draw.choice(size.user_names)
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        match draw.choice(("join", "join", "visit", "cordon", "leave", "leave")):
            case "join":
                yield Event(at_s, user, "join", (f"m{number}",))
            case "visit":
                yield Event(at_s, user, "visit", (f"m{number}", draw.choice((0.0, 1.0, 5.0))))
            case "cordon":
                yield Event(at_s, user, "cordon", (draw.randrange(8), draw.choice((0.5, 5.0, 15.0))))
            case "leave":
                yield Event(at_s, user, "leave", (draw.randrange(8),))
    if draw.random() < 0.3:
        yield Event(draw.uniform(0.0, size.duration_s), user, "take_token_back", ("m-none",))


async def join(user: User, name: str) -> None:
    """A new server becomes a node."""
    machine = user.world.add_machine(name)
    machine.away = True
    await become_node(user.world, user.client, machine)


async def become_node(world: World, client: SimClient, machine: Machine) -> None:
    """Have a server join, with whatever is on it."""
    name = machine.name
    # Controllers' clocks may be hours apart: the one that looks at it is not the one that made it.
    request = CreateJoinTokenRequest(node_name=name, ttl_s=TTL_S_MAX)
    token = (await client.call(NodeServiceStub, "CreateJoinToken", request)).token
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                membership = await identity.join(Files(Path(folder)), name, token, lambda _ca_pem: world.stranger(name))
                break
            except JoinError as error:
                # Nobody answered for a minute, or the store was full: whoever installs the server tries again.
                why = error.__cause__
                if not isinstance(why, grpc.aio.AioRpcError) or not (why.code() in PASSING or of_full_store(why)):
                    raise
                world.note(f"{name} cannot join yet: {error}")
                await asyncio.sleep(1.0)
    machine.id, machine.away = membership.node, False
    world.look()
    world.restart(name)


async def take_token_back(user: User, name: str) -> None:
    """A token is taken back; whoever has it does not become a node with it."""
    world = user.world
    request = CreateJoinTokenRequest(node_name=name, ttl_s=TTL_S_MAX)
    token = (await user.client.call(NodeServiceStub, "CreateJoinToken", request)).token
    gone = user.client.call(NodeServiceStub, "DeleteJoinToken", DeleteJoinTokenRequest(id=TokenContent.decode(token).id))
    # Not found: an answer was lost, and it was done.
    await user.attempt(gone, Code.NOT_FOUND)
    with tempfile.TemporaryDirectory() as folder:
        try:
            await identity.join(Files(Path(folder)), name, token, lambda _ca_pem: world.stranger(name))
        except JoinError as error:
            world.note(f"{name} does not join: {error}")
        else:
            user.asked.contradict(f"{name} joined with a token that had been taken back")


async def cordon(user: User, index: int, for_s: float) -> None:
    """Close a node to new VMs, and open it again."""
    machine = pick(_members(user), index)
    if machine is not None:
        await _cordon(user, machine, on=True)
        await asyncio.sleep(for_s)
        await _cordon(user, machine, on=False)


async def leave(user: User, index: int) -> None:
    """Remove a node that holds nothing of a user's; else it stays, and is open again."""
    machine = pick(_members(user), index)
    if machine is not None:
        await _cordon(user, machine, on=True)
        await _leave(user, machine)


async def visit(user: User, name: str, for_s: float) -> None:
    """A server joins, is closed to VMs at once, and leaves soon."""
    await join(user, name)
    machine = user.world.machines[name]
    await _cordon(user, machine, on=True)
    await asyncio.sleep(for_s)
    await _leave(user, machine)


async def _leave(user: User, machine: Machine) -> None:
    world = user.world
    gone = user.client.call(NodeServiceStub, "DeleteNode", DeleteNodeRequest(id=machine.id))
    if await user.attempt(gone, Code.FAILED_PRECONDITION) is None:
        await _cordon(user, machine, on=False)
        return
    world.note(f"{machine.name} has left")
    machine.away = True
    world.crash(machine.name)
    world.look()


async def _cordon(user: User, machine: Machine, *, on: bool) -> None:
    request = UpdateNodeRequest(node=Node(id=machine.id), allow_stale=True)
    request.node.spec.cordoned = on
    request.update_mask.paths.append("spec.cordoned")
    await user.client.call(NodeServiceStub, "UpdateNode", request)


def _members(user: User) -> list[Machine]:
    return [machine for machine in user.world.machines.values() if machine.id and not machine.away]


ACTS = {"join": join, "take_token_back": take_token_back, "cordon": cordon, "leave": leave, "visit": visit}
