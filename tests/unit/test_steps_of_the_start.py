"""What would stop a large controller's loop: steps whose cost grows with the cloud."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from cairn.controller.lateness import FREEZE_EVERY_S, FREEZE_LATER_S, freeze_heap
from cairn.controller.presence import Presence
from cairn.proto import kinds
from cairn.proto.v1.image_pb2 import ImageContent

from tests.unit.agent_kit import elapse, run
from tests.unit.test_nodespec import two_vms


def test_where_an_images_copies_are_concerns_none_of_its_volumes() -> None:
    cloud, nodes, _ = two_vms()
    image = "img-0000demo"
    cloud.put(kinds.IMAGE_CONTENT, image, ImageContent(image=image, nodes=nodes[:1]))
    presence = Presence(cloud.view)
    cloud.edit(kinds.IMAGE_CONTENT, image).nodes[:] = nodes
    touched = presence.follow(cloud.view, [(kinds.IMAGE_CONTENT, image)])
    assert {node: sorted(keys) for node, keys in touched.objects.items()} == {node: [f"image/{image}"] for node in nodes}


def test_what_an_image_is_concerns_all_of_its_volumes() -> None:
    cloud, nodes, vms = two_vms()
    image = "img-0000demo"
    presence = Presence(cloud.view)
    cloud.edit(kinds.IMAGE, image).spec.digest = "sha256:" + "1" * 64
    touched = presence.follow(cloud.view, [(kinds.IMAGE, image)])
    volumes = [cloud.view.by(kinds.VOLUME, "vm", vm)[0] for vm in vms]
    for node, vm, volume in zip(nodes, vms, volumes, strict=True):
        assert {f"volume/{volume}", f"vm/{vm}", f"image/{image}"} <= touched.objects[node]


def test_the_first_view_is_taken_in_without_looking_at_what_each_record_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subnet has thousands of cards, an image most of all volumes."""
    cloud, nodes, _ = two_vms()
    cloud.put(kinds.IMAGE_CONTENT, "img-0000demo", ImageContent(image="img-0000demo", nodes=nodes))
    presence, looked = Presence(), list[str]()

    def noted(_presence: Presence, *about: Any) -> None:
        looked.append(str(about))

    with monkeypatch.context() as patched:
        patched.setattr(Presence, "_vm_of", noted)
        patched.setattr(Presence, "_disk_changed", noted)
        for _ in presence.load(cloud.view):
            for each in looked:
                assert "vxnet-" not in each
        assert len(looked) <= 2 * len(list(cloud.view.ids(kinds.VOLUME))), "two for each volume of its own"


def test_what_is_read_at_the_start_is_never_collected_again() -> None:
    async def scenario() -> None:
        loaded, before = asyncio.Event(), gc.get_freeze_count()
        task = asyncio.create_task(freeze_heap(loaded))
        read = [[number] for number in range(1000)]
        await elapse(2 * FREEZE_EVERY_S)
        during = gc.get_freeze_count()
        assert during >= before + 900, "while it is read"
        read += [[number] for number in range(1000)]
        loaded.set()
        await elapse(FREEZE_EVERY_S)
        after = gc.get_freeze_count()
        assert after >= during + 900, "and once it is all there"
        read += [[number] for number in range(1000)]
        await elapse(2 * FREEZE_LATER_S)
        assert gc.get_freeze_count() >= after + 900, "and what the first scans make of it"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    try:
        run(scenario)
    finally:
        gc.unfreeze()
