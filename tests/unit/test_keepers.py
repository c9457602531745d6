"""Keepers of images: replaced when their node leaves, added when there are too few, never chosen where a node is leaving."""

from __future__ import annotations

import pytest
from cairn.controller.jobs.import_image import ImportImage, candidates, start
from cairn.controller.jobs.keepers import AGAIN_S, Keepers, lone
from cairn.controller.jobs.machine import Jobs
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import Conflict
from cairn.proto import kinds
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import ImageReport
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.job_pb2 import JobStatus

from tests.unit.cloud_kit import GIB, Cloud


class Site:
    """Nodes, fullest first, and an image that some of them keep and hold."""

    def __init__(self, nodes: int = 3, keepers: int = 2, replicas: int = 0) -> None:
        self.cloud = Cloud()
        self.nodes = [self.cloud.node(f"n{i}", disk=(100 + i) * GIB) for i in range(nodes)]
        self.image = self.cloud.image("demo")
        if replicas:
            image = self.cloud.edit(kinds.IMAGE, self.image)
            image.spec.replicas = replicas
            self.cloud.put(kinds.IMAGE, self.image, image)
        self.keep(self.nodes[:keepers])
        self.jobs = Jobs([ImportImage()], [Keepers()])

    def keep(self, nodes: list[str]) -> None:
        content = ImageContent(image=self.image, virtual_size_bytes=GIB, nodes=nodes)
        self.cloud.put(kinds.IMAGE_CONTENT, self.image, content)
        for node in nodes:
            self.report(node, ImageReport.STATE_READY)

    def report(self, node: str, state: ImageReport.State.ValueType) -> None:
        self.cloud.report(node, f"image/{self.image}", state=state)

    def edit(self, node: str, *, cordoned: bool = False, marked: bool = False) -> None:
        record = self.cloud.edit(kinds.NODE, node)
        record.spec.cordoned = cordoned
        if marked:
            record.delete_time.CopyFrom(timestamp(self.cloud.now))
        self.cloud.put(kinds.NODE, node, record)

    def kept(self) -> list[str]:
        content = self.cloud.view.get(kinds.IMAGE_CONTENT, self.image)
        assert content is not None
        return list(content.nodes)

    def settle(self) -> list[str]:
        self.cloud.settle([self.jobs])
        return self.kept()


def test_a_keeper_that_left_is_replaced() -> None:
    site = Site()
    before = site.kept()
    assert site.settle() == before, "nothing to do while all are there"
    site.cloud.take()
    site.cloud.delete(kinds.NODE, before[0])
    changed = site.cloud.take()
    assert site.image in set(site.jobs.keys(site.cloud.view, *changed[0])), "the node's leaving wakes its images"
    outcome = site.jobs.reconcile(site.cloud.view, site.image, site.cloud.now)
    assert outcome.txn is not None
    check_writers(site.jobs, outcome.txn)
    assert [event.message for event in outcome.events] == ["image demo is kept on n1, n2"]
    assert site.settle() == site.nodes[1:]


def test_copies_that_are_missing_are_made_when_a_node_joins() -> None:
    site = Site(nodes=1, keepers=1)
    assert site.settle() == site.nodes
    outcome = site.jobs.reconcile(site.cloud.view, site.image, site.cloud.now)
    assert (outcome.txn, outcome.again_after_s) == (None, AGAIN_S)
    late = site.cloud.node("late")
    assert site.settle() == [site.nodes[0], late]
    assert site.jobs.reconcile(site.cloud.view, site.image, site.cloud.now).again_after_s is None


def test_the_only_keeper_is_joined_by_another_when_it_is_cordoned() -> None:
    site = Site(keepers=1, replicas=1)
    assert site.settle() == [site.nodes[0]]
    site.edit(site.nodes[0], cordoned=True)
    assert site.settle() == [site.nodes[0], site.nodes[2]], "most free space first; the copy there is stays"
    site.edit(site.nodes[0])
    assert len(site.settle()) == 2, "one too many does no harm"


def test_no_copy_goes_to_a_node_that_is_leaving() -> None:
    site = Site(nodes=3, keepers=1)
    image = site.cloud.view.get(kinds.IMAGE, site.image)
    assert image is not None
    site.edit(site.nodes[2], marked=True)
    assert site.nodes[2] not in candidates(site.cloud.view, image)
    outcome = site.jobs.reconcile(site.cloud.view, site.image, site.cloud.now)
    assert outcome.txn is not None
    site.edit(site.nodes[1], marked=True)
    with pytest.raises(Conflict):
        site.cloud.commit(outcome.txn)
    assert site.settle() == [site.nodes[0]]


def test_the_import_conflicts_with_a_keeper_that_leaves_at_that_moment() -> None:
    cloud = Cloud()
    node, id, jobs = cloud.node("n1"), cloud.image("demo"), Jobs([ImportImage()], [Keepers()])
    image = cloud.view.get(kinds.IMAGE, id)
    assert image is not None
    cloud.commit(start(image, "j-00000000", cloud.now))
    chosen = jobs.reconcile(cloud.view, "j-00000000", cloud.now)
    assert chosen.txn is not None
    cloud.delete(kinds.NODE, node)
    with pytest.raises(Conflict):
        cloud.commit(chosen.txn)


def test_images_that_are_imported_failed_or_gone_are_left_alone() -> None:
    site = Site(keepers=1)
    image = site.cloud.view.get(kinds.IMAGE, site.image)
    assert image is not None
    site.cloud.commit(start(image, "j-00000000", site.cloud.now))
    assert site.jobs.reconcile(site.cloud.view, site.image, site.cloud.now).txn is None
    site.cloud.delete(kinds.JOB, "j-00000000")
    site.cloud.put(kinds.IMAGE_CONTENT, site.image, ImageContent(image=site.image, failed=True))
    assert site.settle() == []
    site.keep(site.nodes[:1])
    site.cloud.delete(kinds.IMAGE, site.image)
    assert site.settle() == site.nodes[:1]


def test_a_replica_that_never_came_is_not_waited_for_on_a_node_that_left() -> None:
    site = Site(keepers=2)
    image = site.cloud.view.get(kinds.IMAGE, site.image)
    assert image is not None
    site.cloud.commit(start(image, "j-00000000", site.cloud.now))
    site.cloud.put(kinds.JOB_STATE, "j-00000000", JobStatus(state="replicate"))
    site.report(site.nodes[1], ImageReport.STATE_FETCHING)
    assert site.settle() == site.nodes[:2], "the copy is still to come"
    site.cloud.delete(kinds.NODE, site.nodes[1])
    assert site.settle() == [site.nodes[0], site.nodes[2]]
    done = site.cloud.view.get(kinds.JOB_STATE, "j-00000000")
    assert done is not None
    assert done.done


def test_lone_is_what_no_other_keeper_that_stays_holds() -> None:
    site = Site(keepers=2)
    first, second, third = site.nodes
    assert lone(site.cloud.view, first) == lone(site.cloud.view, third) == []
    site.edit(second, marked=True)
    assert lone(site.cloud.view, first) == [site.image], "of two that leave at once only one may"
    site.edit(second)
    site.report(second, ImageReport.STATE_FETCHING)
    assert lone(site.cloud.view, first) == [site.image]
    site.report(third, ImageReport.STATE_READY)
    assert lone(site.cloud.view, first) == [site.image], "a copy there for a volume's sake goes with the volume"
    site.cloud.delete(kinds.IMAGE, site.image)
    assert lone(site.cloud.view, first) == []
