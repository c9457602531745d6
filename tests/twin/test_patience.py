"""The referee of the twin: what counts at once, what must be seen twice, and what the store explains meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cairn.controller.store.base import Batch, Change
from cairn.proto import kinds
from cairn.proto.v1.subnet_pb2 import Subnet, SubnetSpec
from cairn.proto.v1.vm_pb2 import Placement
from google.protobuf.message import Message

from tests.sim import cast
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit, Guest, Host
from tests.twin.patience import PatientReferee

GUEST = Guest("i-00000001", executing=True, cpus=1, memory_bytes=1 << 27)


class Absent(Checker):
    """Compares guests with placements, from both sides."""

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        for id in cloud.hosts[node].guests:
            if cloud.get("placement", id) is None:
                yield f"{id} is not placed"

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        for change in commit.changes:
            if change.after is None and any(change.id in host.guests for host in cloud.hosts.values()):
                yield f"{change.id} was taken away while it lives"


class Began(Checker):
    """Says once that something is new."""

    def __init__(self) -> None:
        self._before: set[str] = set()

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        now = set(cloud.hosts[node].guests)
        yield from (f"{id} began" for id in sorted(now - self._before))
        self._before = now


@pytest.fixture
def found() -> list[str]:
    return []


def referee(found: list[str], *checkers: Checker) -> PatientReferee:
    return PatientReferee(list(checkers), lambda violation: found.append(str(violation)))


def host(node: str, *guests: Guest) -> Host:
    return Host(node, node, guests={guest.id: guest for guest in guests})


def batch(revision: int, kind: kinds.Kind, id: str, message: Message | None) -> Batch:
    return Batch(revision, (Change(kind.key(id), None if message is None else message.SerializeToString()),))


def test_what_a_later_picture_does_not_confirm_was_never_so(found: list[str]) -> None:
    judge = referee(found, Absent())
    judge.host(host("node-1", GUEST))
    judge.host(host("node-1"))
    judge.host(host("node-1", GUEST))
    assert found == []


def test_what_the_next_picture_says_again_counts(found: list[str]) -> None:
    judge = referee(found, Absent())
    judge.host(host("node-1", GUEST))
    judge.host(host("node-1", GUEST))
    assert found == [f"test_patience: {GUEST.id} is not placed"]


def test_a_revision_in_between_that_makes_it_untrue_ends_the_suspicion(found: list[str]) -> None:
    judge = referee(found, Absent())
    judge.host(host("node-1", GUEST))
    judge.batch(batch(2, kinds.PLACEMENT, GUEST.id, Placement(vm=GUEST.id, node="node-1")), None)
    judge.batch(batch(3, kinds.PLACEMENT, GUEST.id, None), None)
    judge.host(host("node-1", GUEST))
    assert found == []
    judge.host(host("node-1", GUEST))
    assert found == [f"test_patience: {GUEST.id} is not placed"]


def test_an_inferred_picture_confirms_nothing(found: list[str]) -> None:
    judge = referee(found, Absent())
    judge.host(host("node-1", GUEST))
    judge.host(host("node-1", GUEST), between=True)
    assert found == []


def test_a_revision_is_not_held_against_a_picture_taken_before_it(found: list[str]) -> None:
    judge = referee(found, Absent())
    judge.batch(batch(2, kinds.PLACEMENT, GUEST.id, Placement(vm=GUEST.id, node="node-1")), None)
    judge.host(host("node-1", GUEST))
    judge.batch(batch(3, kinds.PLACEMENT, GUEST.id, None), None)
    judge.host(host("node-1"))
    assert found == []


def test_a_change_of_one_host_counts_at_once(found: list[str]) -> None:
    judge = referee(found, Began())
    judge.host(host("node-1", GUEST))
    assert found == [f"test_patience: {GUEST.id} began"]


def test_a_vm_on_two_nodes_counts_at_once(found: list[str]) -> None:
    judge = referee(found, *(each for each in cast.all_checkers() if each.name == "one_node"))
    judge.host(host("node-1", GUEST))
    judge.host(host("node-2", GUEST))
    assert found == [f"one_node: VM {GUEST.id} has a process on node-2 and on node-1"]


def test_revisions_are_judged_by_all_checkers_at_once(found: list[str]) -> None:
    judge = referee(found, *cast.all_checkers())
    judge.batch(batch(5, kinds.SUBNET, "vxnet-1", Subnet(id="vxnet-1", name="lost", spec=SubnetSpec(vpc="rtr-9"))), None)
    assert "references: subnet/vxnet-1 refers to vpc/rtr-9, which is not there" in found
    assert len({text.partition(":")[0] for text in found}) > 1
