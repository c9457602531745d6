"""Asks one controller, and no other, for everything it knows."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from cairn.proto.pki import Identity
from cairn.proto.v1 import event_pb2, image_pb2, job_pb2, node_pb2, port_pb2, subnet_pb2, vm_pb2, volume_pb2, vpc_pb2
from cairn.proto.v1.audit_pb2 import VerifyAuditsRequest, VerifyAuditsResponse
from cairn.proto.v1.audit_pb2_grpc import AuditServiceStub
from cairn.proto.v1.event_pb2_grpc import EventServiceStub
from cairn.proto.v1.image_pb2_grpc import ImageServiceStub
from cairn.proto.v1.job_pb2_grpc import JobServiceStub
from cairn.proto.v1.node_pb2_grpc import NodeServiceStub
from cairn.proto.v1.port_pb2_grpc import PortServiceStub
from cairn.proto.v1.subnet_pb2_grpc import SubnetServiceStub
from cairn.proto.v1.usage_pb2 import ReportUsageRequest, UsageGroup
from cairn.proto.v1.usage_pb2_grpc import UsageServiceStub
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub
from cairn.proto.v1.volume_pb2_grpc import VolumeServiceStub
from cairn.proto.v1.vpc_pb2_grpc import VpcServiceStub

from tests.sim.client import CALL_S, SimClient
from tests.sim.transport import SimTransport
from tests.sim.world import START, SimIds, World

PAGE: Final = 1000
ALL_PROJECTS: Final = "-"
# Kind -> service, method, request, and the field of the answer that holds the objects.
_LISTS: Final[dict[str, tuple[Any, str, Any, str]]] = {
    "vm": (VmServiceStub, "ListVms", vm_pb2.ListVmsRequest(show_deleted=True), "vms"),
    "volume": (VolumeServiceStub, "ListVolumes", volume_pb2.ListVolumesRequest(show_deleted=True), "volumes"),
    "port": (PortServiceStub, "ListPorts", port_pb2.ListPortsRequest(), "ports"),
    "vpc": (VpcServiceStub, "ListVpcs", vpc_pb2.ListVpcsRequest(), "vpcs"),
    "subnet": (SubnetServiceStub, "ListSubnets", subnet_pb2.ListSubnetsRequest(), "subnets"),
    "image": (ImageServiceStub, "ListImages", image_pb2.ListImagesRequest(), "images"),
    "job": (JobServiceStub, "ListJobs", job_pb2.ListJobsRequest(), "jobs"),
    "node": (NodeServiceStub, "ListNodes", node_pb2.ListNodesRequest(), "nodes"),
    "event": (EventServiceStub, "ListEvents", event_pb2.ListEventsRequest(), "events"),
}


async def everything(world: World, controller: str) -> dict[str, list[Any]]:
    """Return kind -> objects, as that controller shows them without being asked to be fresh."""
    return await listed(_client(world, controller))


async def broken(world: World, controller: str) -> list[str]:
    """Return what a controller finds wrong with the records of who did what, in the store and in its files."""

    async def walked(channel: Any) -> list[VerifyAuditsResponse]:
        return [each async for each in AuditServiceStub(channel).VerifyAudits(VerifyAuditsRequest(), timeout=CALL_S)]

    *_, last = await _client(world, controller)._repeat("VerifyAudits", walked)
    assert last.HasField("verdict"), last
    return [f"audited: {controller} says: {text}" for text in last.verdict.broken]


async def used(world: World, controller: str) -> list[Any]:
    """Return what a controller reports as used by each object since before there was any: page by page."""
    return await used_since(_client(world, controller), START - timedelta(days=1))


async def used_since(client: SimClient, since: datetime) -> list[Any]:
    """Return the pages of a report of all since a whole hour, by object, as whoever answers this client reports it."""
    asked, found = ReportUsageRequest(project=ALL_PROJECTS, group_by=UsageGroup.USAGE_GROUP_OBJECT, page_size=PAGE), []
    asked.from_time.FromDatetime(since)
    while True:
        answer = await client.call(UsageServiceStub, "ReportUsage", asked)
        found.append(answer)
        if not answer.next_page_token:
            return found
        asked.page_token = answer.next_page_token


def _client(world: World, controller: str) -> SimClient:
    ids = SimIds(f"{world.seed}/auditor/{controller}/{world.loop.time()}")
    transport = SimTransport(world.network, "user-auditor", Identity("user", "admin"), ids)
    return SimClient(transport, (f"{controller}:7443",), ids, lambda _text: None)


async def listed(client: SimClient) -> dict[str, list[Any]]:
    """Return kind -> objects, as whoever answers this client shows them."""
    found = {}
    for kind, (service, method, request, field) in _LISTS.items():
        asked = type(request)()
        asked.CopyFrom(request)
        asked.page_size, asked.project = PAGE, ALL_PROJECTS
        found[kind] = []
        while True:
            answer = await client.call(service, method, asked)
            found[kind] += getattr(answer, field)
            if not answer.next_page_token:
                break
            asked.page_token = answer.next_page_token
    return found
