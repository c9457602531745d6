"""A user of the API: real requests over the simulated network, repeated with the same request id until they are answered."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any, Final

import grpc
import grpc.aio
from cairn.proto.errors import status_of
from cairn.proto.pki import CONTROLLER_SERVER_NAME
from cairn.proto.v1 import image_pb2, subnet_pb2, vm_pb2, volume_pb2, vpc_pb2
from cairn.proto.v1.image_pb2_grpc import ImageServiceStub
from cairn.proto.v1.subnet_pb2_grpc import SubnetServiceStub
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub
from cairn.proto.v1.volume_pb2_grpc import VolumeServiceStub
from cairn.proto.v1.vpc_pb2_grpc import VpcServiceStub
from google.rpc import error_details_pb2

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

# Refusals for the state of things (and that a plan is over), and what is said to who asks again when what he made was erased.
LASTING: Final = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
ERASED: Final = "was made by this request and has been erased since"


def of_full_store(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a call was refused because nothing can be written, or put on record, for now."""
    details = status_of(error).details
    quota = error_details_pb2.QuotaFailure()
    return any(each.Unpack(quota) and quota.violations[0].subject in ("store", "audit") for each in details)


class SimClient:
    """See the module. Methods return the answer or raise AioRpcError for a permanent refusal."""

    def __init__(
        self,
        transport: Any,
        endpoints: Sequence[str],
        ids: Any,
        note: Callable[[str], None],
        refused: dict[str, str] | None = None,
    ) -> None:
        """refused: where to write down which requests were refused, by id, and why."""
        self._transport, self._endpoints, self._ids, self._note = transport, tuple(endpoints), ids, note
        self._refused = {} if refused is None else refused
        # Calls that have not been answered yet.
        self.waiting = 0

    def request_id(self) -> str:
        """Return a fresh one."""
        return str(self._ids.uuid())

    async def call(
        self, service: Any, method: str, request: Any, *, first: int | None = None, final: Collection[grpc.StatusCode] = ()
    ) -> Any:
        """Call until answered. first: number of the controller to begin with; final: codes that are an answer here."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = self.request_id()
        begin = lambda channel: getattr(service(channel), method)(request, timeout=CALL_S)  # noqa: E731
        try:
            return await self._repeat(method, begin, first=first, final=final)
        except grpc.aio.AioRpcError as error:
            lasts = error.code() in LASTING or (error.code() is grpc.StatusCode.ABORTED and getattr(request, "plan_id", ""))
            if getattr(request, "request_id", "") and lasts and ERASED not in str(error.details()):
                self._refused[request.request_id] = f"{method} {error.code().name} {error.details()}"
            raise

    async def _repeat(
        self,
        method: str,
        begin: Callable[[Any], Any],
        *,
        first: int | None = None,
        final: Collection[grpc.StatusCode] = (),
    ) -> Any:
        turn = int(self._ids.jitter() * len(self._endpoints)) if first is None else first
        self.waiting += 1
        try:
            while True:
                turn += 1
                channel = self.channel(turn)
                try:
                    answer = await begin(channel)
                    self._note(f"{method} answered {getattr(answer, 'id', '')}")
                    return answer
                except grpc.aio.AioRpcError as error:
                    self._note(f"{method} {error.code().name} {error.details()}")
                    if error.code() in final or not (error.code() in PASSING or of_full_store(error)):
                        raise
                finally:
                    await channel.close()
                await asyncio.sleep(0.1 + self._ids.jitter())
        finally:
            self.waiting -= 1

    def channel(self, turn: int) -> Any:
        """Return a channel that begins with another controller each turn."""
        turn %= len(self._endpoints)
        endpoints = [*self._endpoints[turn:], *self._endpoints[:turn]]
        return self._transport.channel(endpoints, server_name=CONTROLLER_SERVER_NAME)

    # --- images and networks -------------------------------------------------------------------------------------------------

    async def import_image(self, name: str, content: bytes = CONTENT, digest: str = "") -> str:
        """Make an image and upload its bytes. digest: promise this one, whatever the bytes are."""
        image = await self.create_image(name, content, digest)
        await self.upload_image(image.id, content)
        return str(image.id)

    async def create_image(self, name: str, content: bytes, digest: str = "") -> Any:
        """Announce an image."""
        spec = image_pb2.ImageSpec(
            digest=digest or digest_of(content),
            size_bytes=len(content),
            format=image_pb2.ImageFormat.IMAGE_FORMAT_RAW,
            arch="x86_64",
        )
        request = image_pb2.CreateImageRequest(image=image_pb2.Image(name=name, spec=spec))
        return await self.call(ImageServiceStub, "CreateImage", request)

    async def upload_image(self, id: str, content: bytes) -> Any:
        """Send its bytes."""

        async def parts() -> AsyncIterator[image_pb2.UploadImageRequest]:
            yield image_pb2.UploadImageRequest(image=id)
            for start in range(0, len(content), MIB // 4):
                yield image_pb2.UploadImageRequest(chunk=content[start : start + MIB // 4])

        upload = lambda channel: ImageServiceStub(channel).UploadImage(parts(), timeout=CALL_S * 6)  # noqa: E731
        return await self._repeat("UploadImage", upload)

    async def image(self, id: str) -> Any:
        """Return it."""
        return await self.call(ImageServiceStub, "GetImage", image_pb2.GetImageRequest(id=id))

    async def delete_image(self, id: str) -> Any:
        """Remove it."""
        return await self.call(ImageServiceStub, "DeleteImage", image_pb2.DeleteImageRequest(id=id))

    async def create_subnet(self, name: str, cidr: str = "10.1.0.0/16", subnet: str = "10.1.1.0/24") -> str:
        """Make a VPC with one subnet."""
        await self.create_vpc(name, cidr)
        return str((await self.create_subnet_in(name, name, subnet)).id)

    async def create_vpc(self, name: str, cidr: str) -> Any:
        """Make a VPC."""
        vpc = vpc_pb2.Vpc(name=name, spec=vpc_pb2.VpcSpec(cidr=cidr))
        return await self.call(VpcServiceStub, "CreateVpc", vpc_pb2.CreateVpcRequest(vpc=vpc))

    async def create_subnet_in(self, vpc: str, name: str, cidr: str) -> Any:
        """Make a subnet of a VPC."""
        subnet = subnet_pb2.Subnet(name=name, spec=subnet_pb2.SubnetSpec(vpc=vpc, cidr=cidr))
        return await self.call(SubnetServiceStub, "CreateSubnet", subnet_pb2.CreateSubnetRequest(subnet=subnet))

    async def delete_subnet(self, id: str) -> Any:
        """Remove it."""
        return await self.call(SubnetServiceStub, "DeleteSubnet", subnet_pb2.DeleteSubnetRequest(id=id))

    async def delete_vpc(self, id: str) -> Any:
        """Remove it."""
        return await self.call(VpcServiceStub, "DeleteVpc", vpc_pb2.DeleteVpcRequest(id=id))

    # --- VMs ----------------------------------------------------------------------------------------------------------------

    async def create_vm(self, name: str, **more: Any) -> Vm:
        """Make a VM (see vm_of)."""
        vm: Vm = await self.call(VmServiceStub, "CreateVm", vm_pb2.CreateVmRequest(vm=vm_of(name, **more)))
        return vm

    async def start_vm(self, id: str) -> Vm:
        """Run it."""
        vm: Vm = await self.call(VmServiceStub, "StartVm", vm_pb2.StartVmRequest(id=id))
        return vm

    async def stop_vm(self, id: str, *, force: bool = False) -> Vm:
        """Ask its guest to shut down, or cut its power."""
        vm: Vm = await self.call(VmServiceStub, "StopVm", vm_pb2.StopVmRequest(id=id, force=force))
        return vm

    async def reboot_vm(self, id: str, *, force: bool = False) -> Vm:
        """Restart its guest."""
        vm: Vm = await self.call(VmServiceStub, "RebootVm", vm_pb2.RebootVmRequest(id=id, force=force))
        return vm

    async def update_vm(self, vm: Vm, *paths: str, stale: bool = True) -> Vm:
        """Change these fields; stale: whatever revision is there, else an old etag is refused (ABORTED)."""
        request = vm_pb2.UpdateVmRequest(vm=vm, allow_stale=stale)
        request.update_mask.paths.extend(paths)
        changed: Vm = await self.call(VmServiceStub, "UpdateVm", request, final=() if stale else (grpc.StatusCode.ABORTED,))
        return changed

    async def delete_vm(self, id: str, *, purge: bool = True) -> Any:
        """Delete one, for good or for a while."""
        return await self.call(VmServiceStub, "DeleteVm", vm_pb2.DeleteVmRequest(id=id, purge=purge))

    async def undelete_vm(self, id: str, name: str = "") -> Vm:
        """Bring it back. name: another one, when somebody has its own."""
        vm: Vm = await self.call(VmServiceStub, "UndeleteVm", vm_pb2.UndeleteVmRequest(id=id, name=name))
        return vm

    async def vm(self, id: str, revision: int = 0) -> Vm:
        """Return it, at least as fresh as that revision."""
        vm: Vm = await self.call(VmServiceStub, "GetVm", vm_pb2.GetVmRequest(id=id, read_revision=revision))
        return vm

    async def vms(self) -> list[Vm]:
        """Return all of them."""
        answer = await self.call(VmServiceStub, "ListVms", vm_pb2.ListVmsRequest())
        return list(answer.vms)

    # --- volumes ------------------------------------------------------------------------------------------------------------

    async def create_volume(self, name: str, size_bytes: int, vm: str = "", type: str = "") -> Any:
        """Make a data volume, attached when a VM is given."""
        spec = volume_pb2.VolumeSpec(size_bytes=size_bytes, vm=vm, type=type)
        request = volume_pb2.CreateVolumeRequest(volume=volume_pb2.Volume(name=name, spec=spec))
        return await self.call(VolumeServiceStub, "CreateVolume", request)

    async def update_volume(self, id: str, *, vm: str | None = None, size_bytes: int | None = None) -> Any:
        """Attach it, detach it (vm empty), grow it."""
        volume, paths = volume_pb2.Volume(id=id), []
        if vm is not None:
            volume.spec.vm = vm
            paths.append("spec.vm")
        if size_bytes is not None:
            volume.spec.size_bytes = size_bytes
            paths.append("spec.size_bytes")
        request = volume_pb2.UpdateVolumeRequest(volume=volume, allow_stale=True)
        request.update_mask.paths.extend(paths)
        return await self.call(VolumeServiceStub, "UpdateVolume", request)

    async def keep_disk(self, id: str) -> Any:
        """Have a VM's own disk stay when the VM goes."""
        request = volume_pb2.UpdateVolumeRequest(volume=volume_pb2.Volume(id=id), allow_stale=True)
        request.update_mask.paths.append("spec.delete_with_vm")
        return await self.call(VolumeServiceStub, "UpdateVolume", request)

    async def get_volume(self, id: str, revision: int = 0) -> Any:
        """Return one, as of a state at least that fresh."""
        return await self.call(VolumeServiceStub, "GetVolume", volume_pb2.GetVolumeRequest(id=id, read_revision=revision))

    async def delete_volume(self, id: str, *, purge: bool = True) -> Any:
        """Delete a data volume, for good or for a while."""
        return await self.call(VolumeServiceStub, "DeleteVolume", volume_pb2.DeleteVolumeRequest(id=id, purge=purge))

    async def undelete_volume(self, id: str) -> Any:
        """Bring it back."""
        return await self.call(VolumeServiceStub, "UndeleteVolume", volume_pb2.UndeleteVolumeRequest(id=id))


def digest_of(content: bytes) -> str:
    """Return what an image of these bytes is known by."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def vm_of(
    name: str,
    *,
    image: str = "demo",
    subnet: str = "demo",
    subnets: Sequence[str] = (),
    address: str = "",
    cpus: int = 1,
    memory_mib: int = 256,
    volumes: Sequence[str] = (),
    **more: Any,
) -> Vm:
    """Return a VM to be asked for. subnets: one card in each, instead of one in `subnet`; more: fields of its spec."""
    nics = [vm_pb2.Nic(subnet=each) for each in subnets] or [vm_pb2.Nic(subnet=subnet, address=address)]
    spec = vm_pb2.VmSpec(cpus=cpus, memory_bytes=memory_mib * MIB, image=image, nics=nics, volumes=volumes, **more)
    return Vm(name=name, spec=spec)
