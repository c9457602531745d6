"""What an operator does after an older backup was restored: decide about each thing that nodes know better.

All through the API, as the command line does it. What nodes still have of what users asked for is adopted; everything else that
came after the backup, or came back with it, is deleted or forgotten. What nobody can know any more (a record no node ever heard
of, made since the backup) is excused: users are not held to it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
import grpc.aio
from cairn.proto import kinds
from cairn.proto.v1 import cluster_pb2
from cairn.proto.v1.backup_pb2 import BackupClusterRequest, RestoreClusterRequest, RestoreOptions
from cairn.proto.v1.cluster_pb2_grpc import ClusterServiceStub

from tests.sim.asked import Asked
from tests.sim.client import SimClient
from tests.sim.user import IMAGE
from tests.sim.world import World

CALL_S: Final = 60.0
ROUNDS_MAX: Final = 40
LOOK_S: Final = 2.0
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

    def __init__(self, world: World, asked: Asked) -> None:
        self._world, self._client, self._asked = world, world.client, asked

    async def decide(self) -> None:
        """Adopt, forget, delete; AssertionError when there is no end of it."""
        for _ in range(ROUNDS_MAX):
            listed = await self._listed()
            for each in sorted(listed, key=lambda each: (each.key.startswith("volume/"), not each.removed, each.key)):
                await self._one(each)
            undecided = await self._settle_records()
            if not listed and not undecided:
                return
            await asyncio.sleep(LOOK_S)
        raise AssertionError(f"there is no end of what nodes know better: {[each.key for each in listed][:5]}")

    async def _listed(self) -> list[Any]:
        async def found(channel: Any) -> list[Any]:
            call = ClusterServiceStub(channel).ListUnknown(cluster_pb2.ListUnknownRequest(), timeout=CALL_S)
            return [each async for response in call for each in response.objects]

        return list(await self._client._repeat("ListUnknown", found))

    async def _one(self, known: Any) -> None:
        """Adopt what users asked for and what was removed; forget the rest."""
        kind, _, id = known.key.partition("/")
        wanted = id in self._asked.vms or id in self._asked.volumes
        if known.contested or wanted:
            request = {"vm": cluster_pb2.AdoptVmRequest, "volume": cluster_pb2.AdoptVolumeRequest}[kind]
            if await self._tried(f"Adopt{kind.title()}", request(node=known.node, id=id)) or known.contested:
                return
            self._excuse(id)
        if kind == "volume" and any(id in vm.volumes for vm in self._asked.vms.values()):
            return
        if kind == "volume" and await self._belongs_to_asked(id):
            return
        await self._tried("ForgetUnknown", cluster_pb2.ForgetUnknownRequest(node=known.node, key=known.key))

    async def _belongs_to_asked(self, volume: str) -> bool:
        """Tell whether a volume is a disk of a VM that users asked for: it comes with that."""
        for record in self._records(kinds.UNKNOWN):
            vm = record.desired.vm
            if vm.id in self._asked.vms and any(disk.volume == volume for disk in vm.disks):
                return True
        return False

    async def _tried(self, method: str, request: Any) -> bool:
        try:
            await self._client.call(ClusterServiceStub, method, request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise
            self._world.note(f"{method} refused: {error.details()}")
            return False
        return True

    def _excuse(self, id: str) -> None:
        self._asked.vms.pop(id, None)
        self._asked.volumes.pop(id, None)
        for vm in self._asked.vms.values():
            vm.volumes.discard(id)

    def _records(self, kind: Any) -> list[Any]:
        """Return the records of a kind as they are in the store."""
        items = self._world.backend.scan(kind.prefix, kind.prefix[:-1] + "0", 0, 0)
        return [kind.message.FromString(item.value) for item in items]

    async def _settle_records(self) -> bool:
        """Delete what came back and nobody asked for, start what waits for a word; tell whether there was any of it."""
        busy = False
        held = {each.key.partition("/")[2] for each in await self._listed()}
        vms = {vm.id: vm for vm in self._records(kinds.VM)}
        placed = {each.vm for each in self._records(kinds.PLACEMENT) if each.node}
        for id, vm in vms.items():
            wanted = self._asked.vms.get(id)
            if id in held or vm.HasField("delete_time"):
                continue
            if wanted is None or wanted.deleted:
                busy = True
                await self._done(self._client.delete_vm(id, purge=wanted is None))
            elif id not in placed:
                busy = True
                await self._done(self._client.start_vm(id))
        volumes = {volume.id: volume for volume in self._records(kinds.VOLUME)}
        for id, volume in volumes.items():
            if id in held or volume.HasField("delete_time") or volume.spec.vm or id in self._asked.volumes:
                continue
            busy = True
            await self._done(self._client.delete_volume(id))
        for id in [id for id in self._asked.vms if id not in vms and id not in held]:
            self._excuse(id)
        for id in [id for id in self._asked.volumes if id not in volumes and id not in held]:
            self._excuse(id)
        return busy

    async def _done(self, call: Any) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise
            self._world.note(f"refused: {error.details()}")

    async def delete_all(self) -> None:
        """Delete all VMs and volumes there are, for good: nobody is held to what was asked for any more; removed images too."""
        asked = self._asked
        for _ in range(ROUNDS_MAX):
            vms = [vm.id for vm in self._records(kinds.VM) if vm.purge_time != vm.delete_time or not vm.HasField("delete_time")]
            volumes = [each for each in self._records(kinds.VOLUME) if each.id in asked.volumes or not each.spec.vm]
            if not self._records(kinds.VM) and not volumes and not await self._listed():
                break
            for id in vms:
                await self._done(self._client.delete_vm(id))
            for each in volumes:
                await self._done(self._client.delete_volume(each.id))
            await asyncio.sleep(LOOK_S)
        # Those that came back although they were removed: nobody has their bytes any more.
        for image in self._records(kinds.IMAGE):
            if image.id not in asked.images and image.name != IMAGE:
                await self._done(self._client.delete_image(image.id))
        for table in (asked.vms, asked.volumes):
            asked.erased.update(dict.fromkeys(table))
            table.clear()
