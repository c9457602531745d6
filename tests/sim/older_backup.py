"""What an operator does after an older backup was restored: decide about what nodes know better, do again what was done.

All through the API, as the command line does it. What nodes still have of what users asked for is adopted; what users had
removed since, and came back with the backup, is removed again, as is what nobody asked for. Then nothing is left that cannot be
adopted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import grpc
import grpc.aio
from cairn.proto import kinds
from cairn.proto.v1 import cluster_pb2
from cairn.proto.v1.backup_pb2 import BackupClusterRequest, RestoreClusterRequest, RestoreOptions
from cairn.proto.v1.cluster_pb2_grpc import ClusterServiceStub

from tests.sim.asked import Asked
from tests.sim.client import SimClient
from tests.sim.since import Since
from tests.sim.world import World

CALL_S: Final = 60.0
ROUNDS_MAX: Final = 40
LOOK_S: Final = 2.0
# As the command line takes them: a VM is made of an image, and brings its volumes.
ORDER: Final = ("image", "vm", "volume")
CHUNK_BYTES: Final = 64 << 10
REFUSALS: Final = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def backup(client: SimClient) -> bytes:
    """Return a backup, taken through whichever controller answers."""

    async def chunks(channel: Any) -> bytes:
        call = ClusterServiceStub(channel).BackupCluster(BackupClusterRequest(), timeout=CALL_S)
        return b"".join([response.chunk async for response in call])

    return bytes(await client._repeat("BackupCluster", chunks))


async def restore(client: SimClient, content: bytes, cluster: str) -> None:
    """Put a backup in place, as often as it breaks off."""

    async def requests() -> Any:
        yield RestoreClusterRequest(options=RestoreOptions(cluster=cluster))
        for at in range(0, len(content), CHUNK_BYTES):
            yield RestoreClusterRequest(chunk=content[at : at + CHUNK_BYTES])

    async def whole(channel: Any) -> None:
        answers = [each async for each in ClusterServiceStub(channel).RestoreCluster(requests(), timeout=CALL_S)]
        assert answers[-1].WhichOneof("part") == "result"

    await client._repeat("RestoreCluster", whole)


class Operator:
    """Decides, until nothing is left to decide."""

    def __init__(self, world: World, asked: Asked, since: Since) -> None:
        self._world, self._client, self._asked, self._since = world, world.client, asked, since
        # Why something could not be adopted when it was tried last, by id.
        self._why: dict[str, str] = {}

    async def decide(self) -> None:
        """Adopt, forget, delete; AssertionError when there is no end of it."""
        for _ in range(ROUNDS_MAX):
            listed = await self._listed()
            for each in sorted(listed, key=lambda each: (ORDER.index(each.key.partition("/")[0]), not each.removed, each.key)):
                await self._one(each)
            undecided = await self._settle_records()
            if not listed and not undecided:
                return
            await asyncio.sleep(LOOK_S)
        why = [f"{each.key}: {self._why.get(each.key.partition('/')[2], '')}" for each in listed]
        raise AssertionError(f"there is no end of what nodes know better, or came back: {(why or undecided)[:5]}")

    async def _listed(self) -> list[Any]:
        async def found(channel: Any) -> list[Any]:
            call = ClusterServiceStub(channel).ListUnknown(cluster_pb2.ListUnknownRequest(), timeout=CALL_S)
            return [each async for response in call for each in response.objects]

        return list(await self._client._repeat("ListUnknown", found))

    async def _one(self, known: Any) -> None:
        """Adopt what users asked for and what was changed or removed since; forget the rest."""
        kind, _, id = known.key.partition("/")
        if kind == "image" and id in self._since.before["image"]:
            name = self._since.before["image"][id].name
            self._why[id] = await self._tried("AdoptImage", cluster_pb2.AdoptImageRequest(node=known.node, id=id, name=name))
            return
        if known.contested or self._is_wanted(kind, id):
            if kind == "volume" and not known.contested and self._comes_with_vm(id):
                return
            request = {"vm": cluster_pb2.AdoptVmRequest, "volume": cluster_pb2.AdoptVolumeRequest}[kind]
            self._why[id] = await self._tried(f"Adopt{kind.title()}", request(node=known.node, id=id))
            return
        if kind == "volume" and self._comes_with_vm(id):
            return
        if kind == "volume" and self._world.backend.find(kinds.VOLUME.key(id)) is not None:
            # Its record does not know where it is: that of a VM's own disk which was made since.
            self._why[id] = await self._tried("AdoptVolume", cluster_pb2.AdoptVolumeRequest(node=known.node, id=id))
            return
        await self._tried("ForgetUnknown", cluster_pb2.ForgetUnknownRequest(node=known.node, key=known.key))

    def _is_wanted(self, kind: str, id: str) -> bool:
        table: Any = {"vm": self._asked.vms, "volume": self._asked.volumes}.get(kind, {})
        return id in table and id not in self._since.refused and not (kind == "vm" and table[id].deleted)

    def _comes_with_vm(self, volume: str) -> bool:
        """Tell whether a volume is a disk of a VM that is unknown, too: it comes or goes with that."""
        for record in self._records(kinds.UNKNOWN):
            vm = record.desired.vm
            if self._is_wanted("vm", vm.id) and not vm.absent and any(disk.volume == volume for disk in vm.disks):
                return True
        return False

    async def _tried(self, method: str, request: Any) -> str:
        """Return why it was refused, "" when it was not."""
        return await self._done(self._client.call(ClusterServiceStub, method, request))

    async def _done(self, call: Any) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise
            self._world.note(f"refused: {error.details()}")
            return str(error.details())
        return ""

    def _records(self, kind: Any) -> list[Any]:
        """Return the records of a kind as they are in the store."""
        items = self._world.backend.scan(kind.prefix, kind.prefix[:-1] + "0", 0, 0)
        return [kind.message.FromString(item.value) for item in items]

    async def _settle_records(self) -> list[str]:
        """Do again what users had done since; return what there was of it."""
        held = {each.key.partition("/")[2] for each in await self._listed()}
        busy = [f"{say}: {await self._done(call)}" for say, call in (*self._vms(held), *self._volumes(held))]
        if not busy:
            busy = [f"{say}: {await self._done(call)}" for say, call in self._stuck(held)]
        if not busy:
            busy = [f"{say}: {await self._done(call)}" for say, call in self._others()]
        return busy

    def _vms(self, held: set[str]) -> Iterator[tuple[str, Any]]:
        placed, client = {each.vm for each in self._records(kinds.PLACEMENT) if each.node}, self._client
        for vm in self._records(kinds.VM):
            wanted, is_deleted = self._asked.vms.get(vm.id), vm.HasField("delete_time")
            if vm.id in held:
                continue
            if wanted is None and self._stays(vm.spec.root_volume):
                yield f"{vm.spec.root_volume} goes with {vm.id} again", client.keep_disk(vm.spec.root_volume)
            elif wanted is None:
                if vm.purge_time != vm.delete_time or not is_deleted:
                    yield f"{vm.id} came back", client.delete_vm(vm.id)
            elif wanted.deleted != is_deleted:
                call = client.delete_vm(vm.id, purge=False) if wanted.deleted else client.undelete_vm(vm.id)
                yield f"{vm.id} is deleted: {is_deleted}", call
            elif vm.id not in placed and not is_deleted and self._waits(vm):
                call = client.start_vm(vm.id) if wanted.power_on else client.stop_vm(vm.id, force=True)
                yield f"{vm.id} waits for a word", call

    def _stuck(self, held: set[str]) -> Iterator[tuple[str, Any]]:
        """VMs that wait for each other's disks: by an own word one is as its record says, and lets go of them."""
        for id in sorted(held & self._asked.vms.keys()):
            if "adopt or change that one first" in self._why.get(id, ""):
                wanted = self._asked.vms[id]
                call = self._client.start_vm(id) if wanted.power_on else self._client.stop_vm(id, force=True)
                yield f"{id} and others wait for each other", call
                return

    def _stays(self, root: str) -> bool:
        """Tell whether a VM's own disk is a volume of its own since, and the records do not know."""
        item = self._world.backend.find(kinds.VOLUME.key(root)) if root in self._asked.volumes else None
        return item is not None and bool(kinds.VOLUME.message.FromString(item.value).spec.delete_with_vm)

    def _waits(self, vm: Any) -> bool:
        """Tell whether a VM without a node is as the restore has it: nobody decides about it."""
        item = self._world.backend.find(kinds.VM.key(vm.id))
        return item is not None and item.mod_revision <= self._cluster().restored.revision

    def _cluster(self) -> Any:
        return self._records(kinds.CLUSTER)[0]

    def _volumes(self, held: set[str]) -> Iterator[tuple[str, Any]]:
        client, holders = self._client, {id: vm.id for vm in self._asked.vms.values() for id in vm.volumes if not vm.deleted}
        for volume in self._records(kinds.VOLUME):
            wanted, is_deleted = self._asked.volumes.get(volume.id), volume.HasField("delete_time")
            if volume.id in held and self._comes_with_vm(volume.id) and volume.spec.vm and volume.spec.vm not in held:
                # By the records it is another's: the VM that it comes with can be adopted only then.
                yield f"{volume.id} is attached to {volume.spec.vm}", client.update_volume(volume.id, vm="")
            if volume.id in held or (volume.spec.boot and volume.spec.vm):
                continue
            if wanted is None and not volume.spec.vm and self._comes_with_vm(volume.id):
                # Its own disk, of a VM that was deleted then.
                continue
            if wanted is None:
                if volume.spec.vm and volume.spec.vm not in held:
                    yield f"{volume.id} is attached again", client.update_volume(volume.id, vm="")
                elif not volume.spec.vm and (volume.purge_time != volume.delete_time or not is_deleted):
                    yield f"{volume.id} came back", client.delete_volume(volume.id)
            elif wanted.deleted and not is_deleted and volume.spec.vm:
                # It was detached first then, too.
                if volume.spec.vm not in held:
                    yield f"{volume.id} is to be deleted and is attached", client.update_volume(volume.id, vm="")
            elif wanted.deleted != is_deleted:
                call = client.delete_volume(volume.id, purge=False) if wanted.deleted else client.undelete_volume(volume.id)
                yield f"{volume.id} is deleted: {is_deleted}", call
            elif (holder := holders.get(volume.id, "")) != volume.spec.vm and not {holder, volume.spec.vm} & held:
                yield f"{volume.id} is attached to {volume.spec.vm}", client.update_volume(volume.id, vm=holder)
            elif holder != volume.spec.vm and volume.spec.vm and volume.spec.vm not in held:
                # Who has it since can be adopted only then; the node of this one never gave it to its guest again.
                yield f"{volume.id} is attached to {volume.spec.vm}", client.update_volume(volume.id, vm="")

    def _others(self) -> Iterator[tuple[str, Any]]:
        """Images and networks that came back: what is in them is gone by now."""
        client, before = self._client, self._since.before
        for image in self._records(kinds.IMAGE):
            if image.id not in before["image"]:
                yield f"{image.name} came back", client.delete_image(image.id)
        for subnet in self._records(kinds.SUBNET):
            if subnet.id not in before["subnet"]:
                yield f"{subnet.name} came back", client.delete_subnet(subnet.id)
        for vpc in self._records(kinds.VPC):
            if vpc.id not in before["vpc"]:
                yield f"{vpc.name} came back", client.delete_vpc(vpc.id)
