"""What a node is made of and how full its pools are: told as one, stored as two, shown as one."""

from __future__ import annotations

from cairn.controller.jobs.import_image import ImportImage, candidates
from cairn.controller.jobs.keepers import Keepers
from cairn.controller.model.facts import facts_of, figures_changed, inventory_changed, pools_of
from cairn.controller.reconcilers.assignments import Assignments
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.placement import Placements
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import SyncRequest
from cairn.proto.v1.node_pb2 import NodeFacts, NodePools

from tests.unit.cloud_kit import GIB, MIB, Cloud
from tests.unit.sync_kit import N1, Agent, world


def filled(cloud: Cloud, node: str, free_bytes: int) -> NodeFacts:
    """What a node tells when its pool has so much left."""
    told: NodeFacts = cloud.edit(kinds.NODE_FACTS, node)
    told.pools[0].free_bytes = free_bytes
    told.pools[0].used_bytes = told.pools[0].total_bytes - free_bytes
    return told


def tell(cloud: Cloud, node: str, told: NodeFacts) -> None:
    cloud.put(kinds.NODE_POOLS, node, NodePools(pools=told.pools))


def test_the_newest_figures_count_wherever_they_are() -> None:
    cloud = Cloud()
    node = cloud.node("n1", disk=100 * GIB)
    assert pools_of(cloud.view, node)[0].free_bytes == 100 * GIB, "an older release tells them with the rest"
    fuller = filled(cloud, node, 5 * MIB)
    assert (inventory_changed(cloud.view.get(kinds.NODE_FACTS, node), fuller), figures_changed(cloud.view, node, fuller)) == (
        False,
        True,
    )
    tell(cloud, node, fuller)
    assert pools_of(cloud.view, node)[0].free_bytes == 5 * MIB
    assert facts_of(cloud.view, node) == fuller
    assert not figures_changed(cloud.view, node, fuller)
    grown = filled(cloud, node, 50 * GIB)
    grown.memory_bytes += GIB
    assert inventory_changed(cloud.view.get(kinds.NODE_FACTS, node), grown)
    cloud.put(kinds.NODE_FACTS, node, grown)
    assert facts_of(cloud.view, node) == grown, "also when it was an older controller that wrote it"
    assert facts_of(cloud.view, "node-nobody0") is None
    assert not pools_of(cloud.view, "node-nobody0")


def test_an_image_goes_where_there_is_room_now() -> None:
    cloud = Cloud()
    nodes = [cloud.node(f"n{index}", disk=100 * GIB) for index in range(3)]
    image = cloud.view.get(kinds.IMAGE, cloud.image("demo"))
    assert image is not None
    tell(cloud, nodes[0], filled(cloud, nodes[0], MIB))
    tell(cloud, nodes[1], filled(cloud, nodes[1], 50 * GIB))
    assert candidates(cloud.view, image) == [nodes[2], nodes[1]]


def test_only_who_looks_at_free_bytes_is_woken_by_them() -> None:
    assert kinds.NODE_POOLS in ImportImage().reads
    for part in (Placements(), Assignments(), Keepers()):
        assert kinds.NODE_POOLS not in part.reads


def test_they_go_with_their_node() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    tell(cloud, node, filled(cloud, node, MIB))
    cloud.delete(kinds.NODE, node)
    cloud.settle([Garbage()])
    assert not list(cloud.view.ids(kinds.NODE_POOLS))
    assert not list(cloud.view.ids(kinds.NODE_FACTS))


async def test_a_fuller_pool_is_written_alone() -> None:
    """Also by a stream that begins with it."""
    async with world() as at:
        facts = NodeFacts(arch="x86_64", hostname="n1")
        facts.pools.add(type="local", total_bytes=100 * GIB, used_bytes=GIB, free_bytes=99 * GIB)
        here = Agent(at.services[0], N1)
        here.hello(facts=facts)
        here.connect()
        await at.until(lambda: facts_of(at.cache.view, N1) == facts)
        written = at.cache.view.revision_of(kinds.NODE_FACTS, N1)
        facts.pools[0].used_bytes += 10 * GIB
        here.send(SyncRequest(facts=facts))
        await at.until(lambda: facts_of(at.cache.view, N1) == facts)
        await here.break_off()
        facts.pools[0].used_bytes += 10 * GIB
        again = Agent(at.services[0], N1)
        again.hello(facts=facts)
        again.connect()
        await at.until(lambda: facts_of(at.cache.view, N1) == facts)
        assert at.cache.view.revision_of(kinds.NODE_FACTS, N1) == written
        await again.break_off()
