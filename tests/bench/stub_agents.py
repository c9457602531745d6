"""Agents without a node: real streams over gRPC and mTLS, many in one process, that say at once that all is as it was told.

They keep no ledger and touch nothing, so that what is measured beside them is the controller. Run in a process of its own by
tests/bench/fanout.py; `Counters` is what both processes see.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final

import grpc.aio
from cairn.agent.sync import is_cancelled, unpacked
from cairn.proto.capabilities import of_agent
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Pair
from cairn.proto.rpc import GrpcTransport, StaticCredentials
from cairn.proto.v1.agent_pb2 import (
    Desired,
    Heartbeat,
    Hello,
    ImageReport,
    PortReport,
    Report,
    SyncRequest,
    SyncResponse,
    Upsert,
    VmReport,
    VolumeReport,
)
from cairn.proto.v1.agent_pb2_grpc import AgentServiceStub
from cairn.proto.v1.node_pb2 import NodeFacts

HEARTBEAT_S: Final = 3.0
# Handshakes at a time.
CONNECTING_MAX: Final = 8
RETRY_S: Final = 0.5
GIB: Final = 1 << 30


def _counter() -> Synchronized[int]:
    return multiprocessing.get_context("spawn").Value("q", 0)


@dataclass
class Counters:
    """What happened so far."""

    connected: Synchronized[int] = field(default_factory=_counter)
    running: Synchronized[int] = field(default_factory=_counter)
    messages: Synchronized[int] = field(default_factory=_counter)
    # Upserts of forwards and peers.
    shared: Synchronized[int] = field(default_factory=_counter)


@dataclass(frozen=True)
class Node:
    """Whom a stub speaks for."""

    id: str
    vtep: str
    pair: Pair


def run(endpoint: str, ca_pem: bytes, nodes: Sequence[Node], counters: Counters) -> None:
    """Be all these nodes' agents until the process is ended."""
    # A connection takes several.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def all_of_them() -> None:
        gate = asyncio.Semaphore(CONNECTING_MAX)
        await asyncio.gather(*(StubAgent(endpoint, ca_pem, node, counters).run(gate) for node in nodes))

    asyncio.run(all_of_them())


def facts(node: Node) -> NodeFacts:
    """A large server."""
    result = NodeFacts(arch="x86_64", memory_bytes=1024 * GIB, hostname=node.id, vtep=node.vtep, underlay_mtu=9000)
    result.cpu.threads = 256
    result.hypervisor.accelerator = "kvm"
    result.hypervisor.archs.append("x86_64")
    result.pools.add(type="local", total_bytes=16 << 40, free_bytes=15 << 40)
    return result


class StubAgent:
    """One stream."""

    def __init__(self, endpoint: str, ca_pem: bytes, node: Node, counters: Counters) -> None:
        self._endpoint, self._ca_pem, self._node, self._counters = endpoint, ca_pem, node, counters
        self._out: asyncio.Queue[SyncRequest] = asyncio.Queue()
        self._running: set[str] = set()

    async def run(self, gate: asyncio.Semaphore) -> None:
        """Connect, and answer for ever."""
        transport = GrpcTransport(StaticCredentials(self._ca_pem, self._node.pair))
        while True:
            async with transport.channel([self._endpoint], server_name=CONTROLLER_SERVER_NAME) as channel:
                try:
                    call: Any = AgentServiceStub(channel).Sync(self._requests())
                    responses = aiter(call)
                    async with gate:
                        self._take(await anext(responses))
                    async for response in responses:
                        self._take(response)
                except asyncio.CancelledError:
                    # gRPC gives a call up on this side now and then when there are many.
                    if is_cancelled():
                        raise
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
            await asyncio.sleep(RETRY_S)

    async def _requests(self) -> AsyncIterator[SyncRequest]:
        yield SyncRequest(
            hello=Hello(
                node=self._node.id, boot_id="boot", agent_version="stub", endpoint="127.0.0.1:1", facts=facts(self._node),
                capabilities=of_agent(["local"]),
            )
        )  # fmt: skip
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    request = await self._out.get()
            except TimeoutError:
                request = SyncRequest(heartbeat=Heartbeat())
            # Not within the time limit: that would cancel whoever sends it.
            yield request

    def _take(self, response: SyncResponse) -> None:
        self._counters.messages.value += 1
        if response.bookmark.snapshot_end:
            self._counters.connected.value += 1
        shared = [content for content in response.changes.upserts if _is_shared(content)]
        self._counters.shared.value += len(shared)
        if len(shared) == len(response.changes.upserts):
            return
        for each in unpacked(response):
            if each.HasField("upsert") and (report := self._report(each.upsert)) is not None:
                self._out.put_nowait(SyncRequest(report=report))

    def _report(self, upsert: Upsert) -> Report | None:
        """Say that it is as wanted; None for what is not reported."""
        report = Report(key=upsert.key, version=upsert.version)
        object: Desired = upsert.object
        match object.WhichOneof("object"):
            case "vm":
                said, vm = VmReport.STATE_RUNNING, object.vm
                report.vm.state, report.vm.power_generation, report.vm.spec_revision = (
                    said,
                    vm.power_generation,
                    vm.spec_revision,
                )
                report.vm.open_volumes.extend(disk.volume for disk in vm.disks)
                if vm.id not in self._running:
                    self._running.add(vm.id)
                    self._counters.running.value += 1
            case "volume":
                report.volume.state, report.volume.size_bytes = VolumeReport.STATE_READY, object.volume.size_bytes
            case "image":
                report.image.state = ImageReport.STATE_READY
            case "port":
                report.port.state = PortReport.STATE_ACTIVE
            case _:
                return None
        return report


def _is_shared(content: bytes) -> bool:
    """Whether an Upsert is about another node, by its first field: tag, length, key."""
    return content[2:10] == b"forward/" or content[2:7] == b"peer/"
