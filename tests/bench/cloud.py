"""A lab of one server that can carry guests: the whole cloud, for figures about guests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc.aio
from cairn.proto.pki import CONTROLLER_SERVER_NAME
from cairn.proto.rpc import FileCredentials, GrpcTransport
from cairn.proto.v1 import vm_pb2_grpc
from cairn.proto.v1.common_pb2 import CHANGE_TYPE_DELETE
from cairn.proto.v1.vm_pb2 import CreateVmRequest, DeleteVmRequest, Nic, Vm, VmSpec, VmStatus, WatchVmsRequest

from tests.lab import etcd, libvirtd
from tests.lab.demo import CACHE
from tests.lab.guest import build as build_guest
from tests.lab.lab import Lab

GUEST_S = 60.0
MEMORY_BYTES = 128 << 20


def missing() -> str:
    """Why there can be no lab here; empty: there can."""
    return libvirtd.missing() or ("" if etcd.available() else "etcd is not installed")


@contextmanager
def cloud() -> Iterator[Lab]:
    """Bring one up with an image and a network; removed with the block."""
    lab = Lab(f"bench{os.getpid()}", nodes=1)
    image = Path(CACHE / "demo.qcow2")
    try:
        lab.up()
        build_guest(image)
        lab.cairn("image", "import", "demo", "--file", str(image))
        lab.cairn("vpc", "create", "demo", "--cidr", "10.1.0.0/16")
        lab.cairn("subnet", "create", "blue", "--vpc", "demo", "--cidr", "10.1.1.0/24")
        yield lab
    finally:
        lab.down()


@asynccontextmanager
async def administrator(lab: Lab) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to the lab's controller."""
    credentials = FileCredentials(lab.pki / "ca.crt", lab.pki / "admin.crt", lab.pki / "admin.key")
    async with GrpcTransport(credentials).channel(lab.endpoints, server_name=CONTROLLER_SERVER_NAME) as channel:
        yield channel


def request(name: str) -> CreateVmRequest:
    spec = VmSpec(cpus=1, memory_bytes=MEMORY_BYTES, image="demo", nics=[Nic(subnet="blue")])
    return CreateVmRequest(vm=Vm(name=name, spec=spec))


async def create(lab: Lab, name: str) -> Vm:
    """Create a VM and return it when it runs."""
    async with administrator(lab) as channel:
        vms = vm_pb2_grpc.VmServiceStub(channel)
        made = await vms.CreateVm(request(name))
        return await running(vms, made)


async def running(vms: vm_pb2_grpc.VmServiceStub, made: Vm) -> Vm:
    """Watch until it runs."""
    async with asyncio.timeout(GUEST_S):
        call = vms.WatchVms(WatchVmsRequest(filter=f'id = "{made.id}"'))
        async for change in call:
            if change.vm.status.state == VmStatus.STATE_RUNNING:
                call.cancel()
                seen: Vm = change.vm
                return seen
    raise AssertionError("the watch ended")


async def erase(vms: vm_pb2_grpc.VmServiceStub, made: Vm) -> None:
    """Delete it for good, and wait until nothing is left."""
    async with asyncio.timeout(GUEST_S):
        call = vms.WatchVms(WatchVmsRequest(filter=f'id = "{made.id}"'))
        await vms.DeleteVm(DeleteVmRequest(id=made.id, purge=True))
        async for change in call:
            if change.type == CHANGE_TYPE_DELETE and change.vm.id == made.id:
                call.cancel()
                return
