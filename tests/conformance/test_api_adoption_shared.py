"""Adopting volumes of pools that several nodes reach: one record, one administrator, whoever tells of it; and removing one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.model.assigned import VOLUME_WORK, assignment
from cairn.controller.model.attachments import holders
from cairn.controller.model.restored import GENERATION_BITS
from cairn.controller.model.where import in_shared_pool, volume_claimed_bytes, volume_node, where
from cairn.controller.nodespec import desired
from cairn.controller.presence import Presence
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.capabilities import of_agent
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, DesiredVolume, NodeHeard, Report, Unknown, VmDisk, VmReport
from cairn.proto.v1.cluster_pb2 import AdoptVmRequest, AdoptVolumeRequest, Cluster, ForgetUnknownRequest
from cairn.proto.v1.node_pb2 import NodeFacts, NodeSession
from cairn.proto.v1.volume_pb2 import Volume

from tests.conformance.api_world import GIB, World, world_on

VOLUME, VM, POOL, TYPE = "vol-tank0000", "i-since000", "net/tank", "net"
KEY = f"volume/{VOLUME}"
EPOCH = 2_000_000_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A restored cloud of two nodes that reach a pool."""
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        for id in list(world.cache.view.ids(kinds.NODE)):
            facts, known = NodeFacts(), world.cache.view.get(kinds.NODE_FACTS, id)
            assert known is not None
            facts.CopyFrom(known)
            facts.pools.add(type=TYPE, name="tank", total_bytes=100 * GIB, free_bytes=100 * GIB)
            session = NodeSession(node=id, controller="c1", endpoint="127.0.0.1:1", capabilities=of_agent(["local", TYPE]))
            await world.commit(Txn("sync").put(kinds.NODE_FACTS, id, facts).put(kinds.NODE_SESSION, id, session))
            await world.commit(Txn("sync").put(kinds.NODE_HEARD, id, NodeHeard(node=id, epoch=EPOCH)))
        cluster = Cluster(name="test", epoch=EPOCH)
        cluster.restored.revision = world.cache.view.revision
        cluster.restored.restore_time.CopyFrom(timestamp(world.clock.now()))
        await world.commit(Txn("peers").put(kinds.CLUSTER, "self", cluster))
        yield world


def node(world: World, name: str) -> str:
    return next(each.id for each in world.cache.view.all(kinds.NODE) if each.name == name)


async def tell(world: World, name: str, object: Desired) -> None:
    kind: Any = object.WhichOneof("object")
    id, key = node(world, name), f"{kind}/{getattr(object, kind).id}"
    await world.commit(Txn("sync").put(kinds.UNKNOWN, f"{id}/{key}", Unknown(key=key, node=id, desired=object)))


def told(size_bytes: int = GIB, generation: int = 4) -> Desired:
    given = {"id": VOLUME, "size_bytes": size_bytes, "type": TYPE, "pool": POOL, "generation": generation, "made": True}
    return Desired(volume=DesiredVolume(**given))  # type: ignore[arg-type]


def guest(**more: Any) -> Desired:
    disks = [VmDisk(volume=VOLUME, boot=True, type=TYPE, pool=POOL)]
    return Desired(vm=DesiredVm(id=VM, name="young", cpus=1, memory_bytes=GIB, arch="x86_64", disks=disks, **more))


def held(world: World, name: str) -> Desired | None:
    view = world.cache.view
    return desired(view, Presence(view), node(world, name), KEY)


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(error.value.details())


async def test_it_is_one_volume_whoever_tells_of_it(world: World) -> None:
    await tell(world, "n1", told(GIB, generation=3))
    await tell(world, "n2", told(2 * GIB, generation=4))
    adopted = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    assert (adopted.spec.size_bytes, adopted.spec.type) == (2 * GIB, TYPE), "as large as the largest they tell of"
    view = world.cache.view
    work = assignment(view, VOLUME_WORK, VOLUME)
    assert work is not None
    assert (work.node, work.made) == (node(world, "n2"), True), "who had it last goes on with it"
    assert work.generation >= EPOCH << GENERATION_BITS, "above all that the pool remembers"
    assert in_shared_pool(view, VOLUME)
    claims = view.get(kinds.POOL_CLAIMS, POOL)
    assert claims is not None
    assert (claims.disk_bytes, volume_claimed_bytes(view, VOLUME)) == (2 * GIB, 2 * GIB), "its room is claimed once"
    mine, other = held(world, "n2"), held(world, "n1")
    assert mine is not None
    assert other is not None
    assert (mine.volume.size_bytes, mine.volume.generation, mine.volume.elsewhere) == (2 * GIB, work.generation, False)
    assert (other.volume.elsewhere, other.volume.absent) == (True, False), "the other is to let go of it, no more"
    again = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    assert again.revision == adopted.revision, "and nothing is written"


async def test_it_comes_with_the_vm_of_another_node(world: World) -> None:
    await tell(world, "n1", told())
    await tell(world, "n2", guest())
    vm = await world.api.cluster.AdoptVm(AdoptVmRequest(node="n2", id=VM))
    assert (vm.spec.root_volume, vm.spec.volume_type) == (VOLUME, TYPE)
    view = world.cache.view
    assert (where(view, VM).owner, volume_node(view, VOLUME)) == (node(world, "n2"), node(world, "n1"))
    volume = view.get(kinds.VOLUME, VOLUME)
    assert volume is not None
    assert (volume.spec.vm, volume.spec.delete_with_vm) == (VM, True)


async def test_a_vm_waits_for_who_administered_its_disk(world: World) -> None:
    await tell(world, "n2", guest())
    say = await refused(world.api.cluster.AdoptVm(AdoptVmRequest(node="n2", id=VM)))
    assert VOLUME in say
    assert POOL in say


async def test_one_that_grew_since_is_as_large_as_it_is_though_another_node_has_it_by_the_records(world: World) -> None:
    await tell(world, "n1", told())
    await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    await tell(world, "n2", told(3 * GIB, generation=9))
    assert held(world, "n2") is None, "what it knows better is not said to be anothers"
    grown = await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n2", id=VOLUME))
    assert grown.spec.size_bytes == 3 * GIB
    assert volume_node(world.cache.view, VOLUME) == node(world, "n1")
    other = held(world, "n2")
    assert other is not None
    assert other.volume.elsewhere


async def test_it_is_not_let_go_while_somebody_has_it(world: World) -> None:
    await tell(world, "n1", told())
    await tell(world, "n2", guest())
    forget = ForgetUnknownRequest(node="n1", key=KEY)
    assert f"VM young ({VM}) on n2 has it" in await refused(world.api.cluster.ForgetUnknown(forget))
    await world.commit(Txn("sync").delete(kinds.UNKNOWN, f"{node(world, 'n2')}/vm/{VM}"))
    made = await world.vm("web")
    seen = Report(vm=VmReport(state=VmReport.STATE_RUNNING, open_volumes=[VOLUME]))
    await world.report(node(world, "n2"), f"vm/{made.id}", seen)
    assert "VM web has it" in await refused(world.api.cluster.ForgetUnknown(forget))
    await world.commit(Txn("sync").delete(kinds.OBSERVED, f"{node(world, 'n2')}/vm/{made.id}"))
    await world.commit(Txn("sync").delete(kinds.NODE_HEARD, node(world, "n2")))
    assert "n2" in await refused(world.api.cluster.ForgetUnknown(forget)), "nobody knows what runs there"


async def test_letting_go_of_it_is_one_word_for_all_nodes_and_excludes_its_adoption(world: World) -> None:
    for name, generation in (("n1", 3), ("n2", 5)):
        await tell(world, name, told(generation=generation))
    await world.api.cluster.ForgetUnknown(ForgetUnknownRequest(node="n1", key=KEY))
    for name in ("n1", "n2"):
        object = held(world, name)
        assert object is not None
        assert object.volume.absent
        assert object.volume.generation >= EPOCH << GENERATION_BITS, "the pool refuses the word of an older one"
    say = await refused(world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n2", id=VOLUME)))
    assert "cairn node forget" in say
    await world.commit(Txn("sync").delete(kinds.UNKNOWN, f"{node(world, 'n1')}/{KEY}"))
    object = held(world, "n1")
    assert object is not None
    assert object.volume.absent, "also when it calls it unknown no more, and has not said that it is gone"


async def test_what_the_records_know_is_not_let_go(world: World) -> None:
    for name in ("n1", "n2"):
        await tell(world, name, told())
    await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    for name in ("n1", "n2"):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.api.cluster.ForgetUnknown(ForgetUnknownRequest(node=name, key=KEY))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_a_record_knows_without_its_place_is_not_let_go(world: World) -> None:
    """It was refused as a conflict that would pass, for ever. Adopted, its record knows where it is."""
    await world.commit(Txn("api").create(kinds.VOLUME, VOLUME, Volume(id=VOLUME, name="placeless")))
    await tell(world, "n1", told())
    forget = ForgetUnknownRequest(node="n1", key=KEY)
    assert f"there is a record of volume {VOLUME}: adopt it" in await refused(world.api.cluster.ForgetUnknown(forget))
    await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    assert in_shared_pool(world.cache.view, VOLUME)


async def test_what_is_unknown_in_a_pool_counts_as_taken_once(world: World) -> None:
    from cairn.controller.model.beyond import pool_left

    before = pool_left(world.cache.view, POOL)
    await tell(world, "n1", told(GIB))
    await tell(world, "n2", told(2 * GIB))
    assert before - pool_left(world.cache.view, POOL) == 2 * GIB
    await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    assert before - pool_left(world.cache.view, POOL) == 2 * GIB


def test_who_hears_of_it_when_the_records_come_to_know_it() -> None:
    """The nodes that told of it, though none of them is where it is."""
    from tests.unit.cloud_kit import Cloud

    cloud = Cloud()
    nodes = [cloud.node(f"n{i}", shared={"tank": 100 * GIB}) for i in range(2)]
    cloud.put(kinds.UNKNOWN, f"{nodes[0]}/{KEY}", Unknown(key=KEY, node=nodes[0], desired=told()))
    presence = Presence(cloud.view)
    cloud.take()
    cloud.volume("tank0000", type="net")
    touched = presence.follow(cloud.view, cloud.take())
    assert KEY in touched.objects[nodes[0]]


async def test_one_that_a_guest_has_is_adopted_with_it_alone(world: World) -> None:
    """By itself it could be given to another guest besides, which no agent would notice: they are on different nodes."""
    await tell(world, "n1", told())
    await tell(world, "n2", guest())
    say = await refused(world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME)))
    assert f"VM young ({VM}) on n2 has it: adopt that one" in say
    await world.api.cluster.AdoptVm(AdoptVmRequest(node="n2", id=VM))


async def test_a_disk_that_its_guest_has_is_told_to_it_at_once_when_it_is_adopted(world: World) -> None:
    """By the backup another VM had it, whose node need not answer: this guest was given it when all others had let go."""
    await tell(world, "n1", told())
    await world.api.cluster.AdoptVolume(AdoptVolumeRequest(node="n1", id=VOLUME))
    former = await world.vm("former")
    await world.reconcile()
    volume = Volume()
    known = world.cache.view.get(kinds.VOLUME, VOLUME)
    assert known is not None
    volume.CopyFrom(known)
    volume.spec.former_vm, volume.spec.former_generation = former.id, 7
    await world.commit(Txn("api").put(kinds.VOLUME, VOLUME, volume))
    await tell(world, "n2", guest())
    await world.api.cluster.AdoptVm(AdoptVmRequest(node="n2", id=VM))
    await world.reconcile()
    view = world.cache.view
    object = desired(view, Presence(view), node(world, "n2"), f"vm/{VM}")
    assert object is not None
    assert [disk.volume for disk in object.vm.disks] == [VOLUME]


def test_no_guest_is_given_what_one_has_open_that_no_record_speaks_of() -> None:
    """By the backup it is this VM's; since then another one got it, on another node."""
    from cairn.controller.nodespec import node_objects
    from cairn.controller.reconcilers.assignments import Assignments
    from cairn.controller.reconcilers.openings import Openings
    from cairn.controller.reconcilers.placement import Placements

    from tests.unit.cloud_kit import Cloud

    cloud = Cloud()
    nodes = [cloud.node(f"n{i}", shared={"tank": 100 * GIB}) for i in range(2)]
    vm = cloud.vm("web", type="net", node=nodes[0])
    cloud.settle([Placements(), Assignments(), Openings()])
    (disk,) = cloud.view.by(kinds.VOLUME, "vm", vm)
    presence = Presence(cloud.view)

    def disks() -> list[str]:
        """None: nothing is told of that VM, as its own disk is not to be opened."""
        told = node_objects(cloud.view, presence, nodes[0]).get(f"vm/{vm}", Desired())
        return [each.volume for each in told.vm.disks]

    assert disks() == [disk]
    given = Desired(vm=DesiredVm(id=VM, disks=[VmDisk(volume=disk, type=TYPE, pool=POOL)]))
    cloud.take()
    cloud.put(kinds.UNKNOWN, f"{nodes[1]}/vm/{VM}", Unknown(key=f"vm/{VM}", node=nodes[1], desired=given, running=True))
    assert f"vm/{vm}" in presence.follow(cloud.view, cloud.take()).objects[nodes[0]]
    assert disks() == []
    assert holders(cloud.view, disk) == [(VM, nodes[1])]
    cloud.delete(kinds.UNKNOWN, f"{nodes[1]}/vm/{VM}")
    assert f"vm/{vm}" in presence.follow(cloud.view, cloud.take()).objects[nodes[0]]
    assert disks() == [disk]
