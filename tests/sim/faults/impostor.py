"""Somebody has the certificate of one node, and tries what is another's: to speak for it, and to use the API."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc
import grpc.aio
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Identity
from cairn.proto.v1.agent_pb2 import Hello, SyncRequest
from cairn.proto.v1.agent_pb2_grpc import AgentServiceStub
from cairn.proto.v1.vm_pb2 import ListVmsRequest
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub

from tests.sim.story import FAULT, Event, Size, spread
from tests.sim.transport import SimTransport
from tests.sim.world import SimIds, World

WAIT_S: Final = 20.0


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """A few attempts."""
    for number, at_s in enumerate(spread(draw, size, 2)):
        yield Event(
            at_s, FAULT, draw.choice(("speak_for_another", "node_asks_api")), (number, draw.randrange(8), draw.randrange(8))
        )


async def speak_for_another(world: World, number: int, mine: int, other: int) -> None:
    """Open another node's stream: refused before anything is told or believed."""
    machines = [machine for machine in world.machines.values() if machine.id and not machine.away]
    thief, victim = machines[mine % len(machines)], machines[other % len(machines)]
    if thief is victim:
        return

    async def hello() -> AsyncIterator[SyncRequest]:
        yield SyncRequest(hello=Hello(node=victim.id, boot_id="stolen", endpoint="thief:1", agent_version="stolen"))
        await asyncio.Event().wait()

    async def attempt(channel: Any) -> str:
        call: Any = AgentServiceStub(channel).Sync(hello())
        try:
            first = await anext(aiter(call), None)
        finally:
            call.cancel()
        return f"was told {first.WhichOneof('message')} as {victim.name}" if first is not None else ""

    await _attempt(world, f"{number}/stream", Identity("node", thief.id), attempt)


async def node_asks_api(world: World, number: int, mine: int, _other: int) -> None:
    """List VMs with a node's certificate: refused."""
    machines = [machine for machine in world.machines.values() if machine.id and not machine.away]
    thief = machines[mine % len(machines)]

    async def attempt(channel: Any) -> str:
        await VmServiceStub(channel).ListVms(ListVmsRequest())
        return "could list VMs"

    await _attempt(world, f"{number}/api", Identity("node", thief.id), attempt)


async def _attempt(world: World, what: str, identity: Identity, attempt: Any) -> None:
    """Try it; refusals and an unreachable cloud are right, an answer is not."""
    transport = SimTransport(world.network, "thief", identity, SimIds(f"{world.seed}/impostor/{what}"))
    channel = transport.channel(list(world.endpoints), server_name=CONTROLLER_SERVER_NAME)
    world.network.count("impostor")
    try:
        async with asyncio.timeout(WAIT_S):
            got = await attempt(channel)
        if got:
            world.referee.asked.contradict(f"the holder of {identity.uri} {got}")
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        world.note(f"impostor: {error.code().name if isinstance(error, grpc.aio.AioRpcError) else 'no answer'}")
    finally:
        await channel.close()


ACTS = {"speak_for_another": speak_for_another, "node_asks_api": node_asks_api}
