"""A user of the API: real requests over the simulated network, repeated with the same request id until they are answered."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio
from cairn.proto.pki import CONTROLLER_SERVER_NAME
from cairn.proto.v1 import image_pb2, subnet_pb2, vm_pb2, volume_pb2, vpc_pb2
from cairn.proto.v1.image_pb2_grpc import ImageServiceStub
from cairn.proto.v1.subnet_pb2_grpc import SubnetServiceStub
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub
from cairn.proto.v1.volume_pb2_grpc import VolumeServiceStub
from cairn.proto.v1.vpc_pb2_grpc import VpcServiceStub

MIB: Final = 1 << 20
CONTENT: Final = b"\x5a" * MIB
DIGEST: Final = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
CALL_S: Final = 10.0
PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
    }
)


class SimClient:
    """See the module. Methods return the answer or raise AioRpcError for a permanent refusal."""

    def __init__(self, transport: Any, endpoints: Sequence[str], ids: Any, note: Callable[[str], None]) -> None:
        self._transport, self._endpoints, self._ids, self._note = transport, tuple(endpoints), ids, note
        # Calls that have not been answered yet.
        self.waiting = 0

    async def call(self, service: Any, method: str, request: Any) -> Any:
        """Call until answered."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = self._ids.uuid()
        return await self._repeat(method, lambda channel: getattr(service(channel), method)(request, timeout=CALL_S))

    async def _repeat(self, method: str, begin: Callable[[Any], Any]) -> Any:
        turn, self.waiting = int(self._ids.jitter() * len(self._endpoints)), self.waiting + 1
        try:
            while True:
                turn = (turn + 1) % len(self._endpoints)
                endpoints = [*self._endpoints[turn:], *self._endpoints[:turn]]
                channel = self._transport.channel(endpoints, server_name=CONTROLLER_SERVER_NAME)
                try:
                    answer = await begin(channel)
                    self._note(f"{method} answered {getattr(answer, 'id', '')}")
                    return answer
                except grpc.aio.AioRpcError as error:
                    self._note(f"{method} {error.code().name} {error.details()}")
                    if error.code() not in PASSING:
                        raise
                finally:
                    await channel.close()
                await asyncio.sleep(0.1 + self._ids.jitter())
        finally:
            self.waiting -= 1

    # --- what people do ------------------------------------------------------------------------------------------------------

    async def import_image(self, name: str) -> str:
        """Make an image and upload its bytes."""
        spec = image_pb2.ImageSpec(
            digest=DIGEST, size_bytes=len(CONTENT), format=image_pb2.ImageFormat.IMAGE_FORMAT_RAW, arch="x86_64"
        )
        request = image_pb2.CreateImageRequest(image=image_pb2.Image(name=name, spec=spec))
        image = await self.call(ImageServiceStub, "CreateImage", request)

        async def parts() -> AsyncIterator[image_pb2.UploadImageRequest]:
            yield image_pb2.UploadImageRequest(image=image.id)
            for start in range(0, len(CONTENT), MIB // 4):
                yield image_pb2.UploadImageRequest(chunk=CONTENT[start : start + MIB // 4])

        await self._repeat("UploadImage", lambda channel: ImageServiceStub(channel).UploadImage(parts(), timeout=CALL_S * 6))
        return str(image.id)

    async def create_subnet(self, name: str) -> str:
        """Make a VPC with one subnet."""
        vpc = vpc_pb2.Vpc(name=name, spec=vpc_pb2.VpcSpec(cidr="10.1.0.0/16"))
        await self.call(VpcServiceStub, "CreateVpc", vpc_pb2.CreateVpcRequest(vpc=vpc))
        subnet = subnet_pb2.Subnet(name=name, spec=subnet_pb2.SubnetSpec(vpc=name, cidr="10.1.1.0/24"))
        made = await self.call(SubnetServiceStub, "CreateSubnet", subnet_pb2.CreateSubnetRequest(subnet=subnet))
        return str(made.id)

    async def create_vm(
        self, name: str, *, image: str = "demo", subnet: str = "demo", cpus: int = 1, memory_mib: int = 256
    ) -> Vm:
        """Make a VM."""
        spec = vm_pb2.VmSpec(cpus=cpus, memory_bytes=memory_mib * MIB, image=image, nics=[vm_pb2.Nic(subnet=subnet)])
        vm: Vm = await self.call(VmServiceStub, "CreateVm", vm_pb2.CreateVmRequest(vm=Vm(name=name, spec=spec)))
        return vm

    async def delete_vm(self, id: str) -> None:
        """Delete one for good."""
        await self.call(VmServiceStub, "DeleteVm", vm_pb2.DeleteVmRequest(id=id, purge=True))

    async def delete_volume(self, id: str) -> None:
        """Delete a data volume for good."""
        await self.call(VolumeServiceStub, "DeleteVolume", volume_pb2.DeleteVolumeRequest(id=id, purge=True))

    async def vm(self, id: str) -> Vm:
        """Return it."""
        vm: Vm = await self.call(VmServiceStub, "GetVm", vm_pb2.GetVmRequest(id=id))
        return vm

    async def vms(self) -> list[Vm]:
        """Return all of them."""
        answer = await self.call(VmServiceStub, "ListVms", vm_pb2.ListVmsRequest())
        return list(answer.vms)
