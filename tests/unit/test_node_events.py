"""Whether a node answers is told once per change, whatever became of the events that told it before."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.node_events import NodeEvents
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import Conflict
from cairn.proto import kinds

from tests.unit.cloud_kit import Cloud


def told(cloud: Cloud, node: str) -> list[str]:
    """Decide until nothing more is told; return what was."""
    reasons = list[str]()
    while True:
        outcome = NodeEvents().reconcile(cloud.view, node, cloud.now)
        if outcome.txn is None:
            return reasons
        check_writers(NodeEvents(), outcome.txn)
        cloud.commit(outcome.txn)
        reasons += [event.reason for event in outcome.events]


def test_each_change_is_told_once() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    assert told(cloud, node) == ["NodeUp"]
    cloud.delete(kinds.NODE_SESSION, node)
    assert told(cloud, node) == ["NodeDown"]
    cloud.connect(node)
    assert told(cloud, node) == ["NodeUp"]
    cloud.now += timedelta(days=3)
    assert told(cloud, node) == [], "it has been up all the time"


def test_a_node_that_stays_down_is_told_of_again_when_its_event_is_gone() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    told(cloud, node)
    cloud.delete(kinds.NODE_SESSION, node)
    assert told(cloud, node) == ["NodeDown"]
    cloud.now += timedelta(hours=23)
    assert told(cloud, node) == []
    cloud.now += timedelta(hours=2)
    assert told(cloud, node) == ["NodeDown"]


def test_nothing_is_told_of_a_node_that_never_connected_left_or_came_up_long_ago() -> None:
    cloud = Cloud()
    joined = cloud.node("n1")
    cloud.delete(kinds.NODE_FACTS, joined)
    assert told(cloud, joined) == []
    old = cloud.node("n2")
    cloud.now += timedelta(hours=2)
    assert told(cloud, old) == [], "that was told, by a controller that kept no note of it"
    cloud.delete(kinds.NODE_SESSION, old)
    assert told(cloud, old) == ["NodeDown"]


def test_what_was_told_goes_with_its_node() -> None:
    cloud = Cloud()
    node = cloud.node("n1")
    decided = NodeEvents().reconcile(cloud.view, node, cloud.now)
    told(cloud, node)
    cloud.delete(kinds.NODE, node)
    cloud.settle([Garbage()])
    assert not list(cloud.view.ids(kinds.NODE_TOLD))
    assert decided.txn is not None
    with pytest.raises(Conflict):
        cloud.commit(decided.txn)
