"""Who is told to ask whom for an image: a few, and nobody anew when that few is still the same."""

from __future__ import annotations

import random

import pytest
from cairn.controller.presence import Presence
from cairn.controller.sources import SOURCES_MAX, Sources
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import ImageReport
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.volume_pb2 import VolumePlacement

from tests.unit.cloud_kit import Cloud

IMAGE = "img-0000demo"


@pytest.mark.parametrize("seed", range(20))
def test_exactly_those_are_told_whose_list_changes(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [f"node-{number:08}" for number in range(60)]
    sources, has = Sources(), set[str]()
    keepers = rng.sample(nodes, rng.choice((0, 1, 3, SOURCES_MAX, 30)))
    sources.keep(keepers)
    for _ in range(300):
        node = rng.choice(nodes)
        lacking = [each for each in nodes if each not in has and each != node]
        before = {each: sources.of(each) for each in lacking}
        told = set(sources.told(node, lacking)) if node in has else set()
        if node in has:
            sources.remove(node)
        else:
            sources.add(node)
            told = set(sources.told(node, lacking))
        has ^= {node}
        assert (node in sources) == (node in has)
        assert told == {each for each in lacking if sources.of(each) != before[each]}
        for each in lacking:
            assert len(sources.of(each)) == len(set(sources.of(each))) == min(SOURCES_MAX, len(has))
            assert set(sources.of(each)) <= has


def test_keepers_come_first_and_are_asked_in_turn() -> None:
    sources, first = Sources(), list[str]()
    sources.keep(["node-a", "node-b"])
    for node in ("node-a", "node-b", *(f"node-{number}" for number in range(20))):
        sources.add(node)
    for number in range(400):
        told = sources.of(f"node-asks{number}")
        assert set(told[:2]) == {"node-a", "node-b"}
        first.append(told[0])
    assert 100 < first.count("node-a") < 300
    sources.keep([])
    assert len({sources.of(f"node-asks{number}")[0] for number in range(400)}) > 10


@pytest.mark.parametrize("keepers", [1, 200])
def test_the_first_image_on_many_nodes_at_once_touches_each_a_few_times(keepers: int) -> None:
    """All of them anew for each that has it would be 100 times each."""
    cloud, count = Cloud(), 200
    nodes = [cloud.node(f"n{number}") for number in range(count)]
    image = cloud.image("demo")
    assert image == IMAGE
    for number, node in enumerate(nodes[1:], 1):
        volume = cloud.volume(f"v{number}", image=image)
        place = VolumePlacement(volume=volume, node=node, pool=f"local/{node}", disk_bytes=1)
        cloud.put(kinds.VOLUME_PLACEMENT, volume, place)
    cloud.put(kinds.IMAGE_CONTENT, IMAGE, ImageContent(image=IMAGE, nodes=nodes[:keepers]))
    presence = Presence(cloud.view)
    cloud.take()
    touched = 0
    for node in nodes:
        cloud.report(node, f"image/{IMAGE}", state=ImageReport.STATE_READY)
        affected = presence.follow(cloud.view, cloud.take()).objects
        touched += sum(f"image/{IMAGE}" in keys for keys in affected.values())
        for each in affected:
            assert len(presence.sources(IMAGE, each)) <= SOURCES_MAX
    assert touched < 40 * count, touched / count
