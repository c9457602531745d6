"""Jobs: every state visited, every step repeated, every end reached."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cairn.controller.jobs.import_image import DEADLINE, LOST, ImportImage, candidates, start
from cairn.controller.jobs.machine import Jobs, State, check_table, walk
from cairn.controller.model.jobs import under_way, whole
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import Conflict
from cairn.proto import kinds
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import ImageReport, Unknown
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_QCOW2, ImageContent
from cairn.proto.v1.job_pb2 import Job

from tests.unit.cloud_kit import GIB, MIB, Cloud

JOB = "j-00000000"
VISITED: set[tuple[str, str]] = set()


class Import:
    """One import, driven step by step. Each decision is made twice and committed twice: the second must change nothing."""

    def __init__(self, nodes: int = 3, *, adopted: bool = False) -> None:
        self.cloud = Cloud()
        self.nodes = [self.cloud.node(f"n{i}", disk=(100 + i) * GIB) for i in range(nodes)]
        self.image = self.cloud.image("demo")
        record = self.cloud.view.get(kinds.IMAGE, self.image)
        assert record is not None
        self.cloud.commit(start(record, JOB, self.cloud.now, adopted=adopted))
        self.jobs = Jobs([ImportImage()])
        self.told: list[str] = []

    @property
    def job(self) -> Job:
        job = whole(self.cloud.view, JOB)
        assert job is not None
        return job

    @property
    def content(self) -> ImageContent:
        content = self.cloud.view.get(kinds.IMAGE_CONTENT, self.image)
        assert content is not None
        return content

    def step(self) -> str:
        """One decision; return the state after it."""
        before = self.job.status.state or ImportImage.first
        outcome = self.jobs.reconcile(self.cloud.view, JOB, self.cloud.now)
        again = self.jobs.reconcile(self.cloud.view, JOB, self.cloud.now)
        assert (outcome.txn.puts if outcome.txn else None) == (again.txn.puts if again.txn else None), "a step is a function"
        if outcome.txn is None:
            return before
        check_writers(self.jobs, outcome.txn)
        self.cloud.commit(outcome.txn)
        self.told += [event.reason for event in outcome.events]
        assert again.txn is not None
        with pytest.raises(Conflict):
            self.cloud.commit(again.txn)
        if self.job.status.state != before:
            VISITED.add((before, self.job.status.state))
        return self.job.status.state

    def run(self) -> str:
        """Step until nothing more happens; return the state."""
        for _ in range(20):
            revision = self.cloud.view.revision
            self.step()
            if self.cloud.view.revision == revision:
                return self.job.status.state
        raise AssertionError("the job does not come to rest")

    def report(self, node: str, **said: Any) -> None:
        self.cloud.report(node, f"image/{self.image}", **said)

    def ready(self, node: str) -> None:
        self.report(node, state=ImageReport.STATE_READY, virtual_size_bytes=GIB, format=IMAGE_FORMAT_QCOW2)

    def cancel(self) -> None:
        job = self.cloud.edit(kinds.JOB, JOB)
        job.spec.cancel_requested = True
        self.cloud.put(kinds.JOB, JOB, job)


def test_table_is_sound() -> None:
    assert check_table(ImportImage()) == []


def test_check_table_finds_what_is_wrong() -> None:
    class Broken(ImportImage):
        states = {"choose": State(("nowhere",)), "lonely": State(("lonely",), stoppable=False)}  # noqa: RUF012

    wrong = check_table(Broken())
    assert "choose leads to nowhere, which is not in the table" in wrong
    assert "lonely has no method" in wrong
    assert "lonely can never end" in wrong


def test_the_way_it_should_go() -> None:
    job = Import()
    assert job.run() == "upload"
    assert list(job.content.nodes) == [job.nodes[2], job.nodes[1]], "most free space first"
    assert job.job.status.say == "waits for its bytes, to be kept on n2, n1"
    job.report(job.nodes[2], state=ImageReport.STATE_FETCHING, held_bytes=5 * MIB)
    assert job.run() == "upload"
    assert (job.job.status.say, job.job.status.percent) == ("receiving its bytes (50 %)", 30)
    job.ready(job.nodes[2])
    assert job.run() == "replicate"
    assert (job.content.virtual_size_bytes, job.content.format) == (GIB, IMAGE_FORMAT_QCOW2)
    assert job.job.status.say == "usable; waits for a copy on n1"
    job.ready(job.nodes[1])
    assert job.run() == "done"
    status = job.job.status
    assert (status.done, status.failed, status.percent) == (True, False, 100)
    assert status.HasField("end_time")
    assert job.told == ["ImageAvailable"]
    assert job.jobs.reconcile(job.cloud.view, JOB, job.cloud.now).txn is None


def test_one_node_is_enough_when_there_is_only_one() -> None:
    job = Import(nodes=1)
    job.run()
    job.ready(job.nodes[0])
    assert job.run() == "done"


def test_a_copy_of_which_nobody_says_how_large_it_is_is_waited_for() -> None:
    """An agent of the release before says so of one that it was to remove: found in seed busy-770307, after a restore."""
    job = Import(nodes=1)
    job.step()
    job.report(job.nodes[0], state=ImageReport.STATE_READY, say="kept while vol-00000001 is a copy of it")
    assert job.run() == "upload"
    job.ready(job.nodes[0])
    assert job.run() == "done"
    assert job.content.virtual_size_bytes == GIB


def test_waits_for_a_node_with_room() -> None:
    job = Import(nodes=0)
    assert job.run() == "choose"
    assert job.job.status.say == "waits for a connected node with 10 MiB of disk free"
    job.cloud.node("small", disk=MIB)
    job.cloud.node("gone", up=False)
    job.cloud.node("cordoned", cordoned=True)
    assert job.run() == "choose"
    job.cloud.node("fine")
    assert job.run() == "upload"


def test_what_a_node_refuses_fails_the_import_and_lets_go() -> None:
    job = Import()
    job.run()
    job.report(job.nodes[2], state=ImageReport.STATE_FAILED, error="its digest is another")
    assert job.run() == "failed"
    status = job.job.status
    assert (status.done, status.failed, status.error) == (True, True, "n2: its digest is another")
    assert (job.content.failed, list(job.content.nodes)) == (True, [])
    assert job.told == ["ImageFailed"]


def test_lost_keepers_are_replaced_after_a_while() -> None:
    job = Import()
    job.run()
    for node in job.content.nodes:
        job.cloud.delete(kinds.NODE_SESSION, node)
    assert job.run() == "upload"
    assert "does not answer" in job.job.status.say
    job.cloud.now += LOST / 2
    assert job.run() == "upload"
    job.cloud.now += LOST
    assert job.run() == "upload"
    assert list(job.content.nodes) == [job.nodes[0]]


def test_keepers_that_come_back_in_time_stay() -> None:
    job = Import()
    job.run()
    keepers = list(job.content.nodes)
    for node in keepers:
        job.cloud.delete(kinds.NODE_SESSION, node)
    job.run()
    job.cloud.connect(keepers[0])
    job.cloud.now += LOST * 2
    assert job.run() == "upload"
    assert list(job.content.nodes) == keepers


@pytest.mark.parametrize("state", ["choose", "upload"])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_stopped_early(state: str, how: str) -> None:
    job = Import(nodes=0 if state == "choose" else 2)
    assert job.run() == state
    if how == "cancel":
        job.cancel()
    else:
        job.cloud.now += DEADLINE
    assert job.run() == "failed"
    assert ("cancelled" if how == "cancel" else "deadline has passed") in job.job.status.error


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_an_image_in_use_by_then_is_kept(how: str) -> None:
    job = Import()
    job.run()
    job.ready(job.nodes[2])
    job.run()
    if how == "cancel":
        job.cancel()
    else:
        job.cloud.now += DEADLINE
    assert job.run() == "done"
    assert "n1 did not get a copy in time" in job.job.status.say


@pytest.mark.parametrize("state", ["choose", "upload", "replicate"])
def test_the_image_is_deleted_meanwhile(state: str) -> None:
    job = Import(nodes=0 if state == "choose" else 3)
    job.run()
    if state == "replicate":
        job.ready(job.nodes[2])
        job.run()
    job.cloud.delete(kinds.IMAGE, job.image)
    assert job.run() == ("done" if state == "replicate" else "failed")


@pytest.mark.parametrize("state", ["choose", "upload", "replicate"])
def test_an_image_that_cannot_be_read_is_not_deleted(state: str) -> None:
    """A controller that started just now has never been able to read it: its import waits, and goes on."""
    job = Import(nodes=0 if state == "choose" else 3)
    job.run()
    if state == "replicate":
        job.ready(job.nodes[2])
        job.run()
    image = job.cloud.edit(kinds.IMAGE, job.image)
    job.cloud.view.table(kinds.IMAGE).delete(job.image)
    job.cloud.view.table(kinds.IMAGE).keep(job.image, job.cloud.view.revision, "garbage")
    outcome = job.jobs.reconcile(job.cloud.view, JOB, job.cloud.now)
    assert outcome.txn is None
    assert "cannot be read" in outcome.say
    assert outcome.again_after_s
    job.cloud.put(kinds.IMAGE, job.image, image)
    assert job.run() == state


def test_what_was_adopted_is_not_given_up_for_time_nor_for_one_bad_copy_of_several() -> None:
    """Nobody else may have its bytes, and nodes remove those of a failed import."""
    job = Import(adopted=True)
    job.run()
    job.cloud.now += DEADLINE * 2
    assert job.run() == "upload"
    bad, good = job.content.nodes
    job.report(bad, state=ImageReport.STATE_FAILED, error="bad bytes")
    assert job.run() == "upload"
    job.ready(good)
    assert job.run() == "replicate"


def test_an_adopted_image_of_which_no_copy_is_sound_fails() -> None:
    job = Import(adopted=True)
    job.run()
    for node in job.content.nodes:
        job.report(node, state=ImageReport.STATE_FAILED, error="bad bytes")
    assert job.run() == "failed"


def test_the_time_of_a_restored_job_begins_anew() -> None:
    """It may have ended well since the backup, days ago; nodes would remove what they hold of it."""
    job = Import()
    job.run()
    cluster = Cluster(name="blue", epoch=2)
    job.cloud.now += timedelta(days=1)
    cluster.restored.revision = job.cloud.view.revision
    cluster.restored.restore_time.CopyFrom(timestamp(job.cloud.now))
    job.cloud.put(kinds.CLUSTER, "self", cluster)
    assert job.run() == "upload"
    job.cloud.now += DEADLINE - timedelta(seconds=1)
    assert job.run() == "upload"
    job.cloud.now += timedelta(seconds=1)
    assert job.run() == "failed"


def test_who_has_it_already_is_a_keeper() -> None:
    job = Import()
    job.run()
    (other,) = set(job.nodes) - set(job.content.nodes)
    key = f"image/{job.image}"
    job.cloud.put(kinds.UNKNOWN, f"{other}/{key}", Unknown(node=other, key=key))
    assert job.run() == "upload"
    assert job.content.nodes[0] == other


def test_deadline_is_looked_at_in_time() -> None:
    job = Import(nodes=0)
    job.cloud.now += timedelta(minutes=10)
    outcome = job.jobs.reconcile(job.cloud.view, JOB, job.cloud.now)
    assert outcome.again_after_s == 50 * 60


def test_holders_are_chosen_first() -> None:
    job = Import()
    job.ready(job.nodes[0])
    record = job.cloud.view.get(kinds.IMAGE, job.image)
    assert record is not None
    assert candidates(job.cloud.view, record)[0] == job.nodes[0]


def test_changes_wake_the_jobs_concerned() -> None:
    job = Import()
    view = job.cloud.view
    for kind, id in [
        (kinds.JOB, JOB),
        (kinds.JOB_STATE, JOB),
        (kinds.IMAGE, job.image),
        (kinds.OBSERVED, f"{job.nodes[0]}/image/{job.image}"),
        (kinds.NODE_SESSION, job.nodes[0]),
    ]:
        assert set(job.jobs.keys(view, kind, id)) == {JOB}
    assert not set(job.jobs.keys(view, kinds.OBSERVED, f"{job.nodes[0]}/vm/i-00000000"))


def test_unknown_kind_of_job_is_left_alone() -> None:
    job = Import()
    record = job.cloud.edit(kinds.JOB, JOB)
    record.spec.kind = "from the future"
    job.cloud.put(kinds.JOB, JOB, record)
    outcome = job.jobs.reconcile(job.cloud.view, JOB, job.cloud.now)
    assert outcome.txn is None
    assert "unknown" in outcome.say


def test_how_far_it_is_is_apart_from_what_is_wished() -> None:
    """One writer each: the API the wish, the machine the state."""
    job = Import()
    wished = job.cloud.view.revision_of(kinds.JOB, JOB)
    assert job.cloud.view.get(kinds.JOB_STATE, JOB) is None
    assert job.run() == "upload"
    state = job.cloud.view.revision_of(kinds.JOB_STATE, JOB)
    assert job.cloud.view.revision_of(kinds.JOB, JOB) == wished
    job.cancel()
    assert job.cloud.view.revision_of(kinds.JOB_STATE, JOB) == state


def test_no_step_is_taken_past_a_cancel() -> None:
    job = Import()
    decided = job.jobs.reconcile(job.cloud.view, JOB, job.cloud.now)
    job.cancel()
    assert decided.txn is not None
    with pytest.raises(Conflict):
        job.cloud.commit(decided.txn)
    assert job.run() == "failed"


def test_a_job_an_older_release_began_goes_on() -> None:
    """That kept how far it was in the wish."""
    job = Import()
    job.run()
    old = job.cloud.edit(kinds.JOB, JOB)
    old.status.CopyFrom(job.job.status)
    job.cloud.put(kinds.JOB, JOB, old)
    job.cloud.delete(kinds.JOB_STATE, JOB)
    assert job.job.status.state == "upload"
    job.ready(job.nodes[2])
    assert job.run() == "replicate"
    assert job.job.status.state == "replicate"
    assert under_way(job.cloud.view, job.image) == [JOB]


def test_every_step_of_the_table_can_be_taken() -> None:
    for test in (
        test_the_way_it_should_go,
        test_what_a_node_refuses_fails_the_import_and_lets_go,
        test_lost_keepers_are_replaced_after_a_while,
    ):
        test()
    test_stopped_early("choose", "cancel")
    assert set(walk(ImportImage())) - VISITED == set()
