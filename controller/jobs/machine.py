"""Jobs: finite work in steps, with a deadline and a way back. The nouns, and one example walked.

A *machine* is the table of one kind of job: the states it can be in, where each may lead, and one method per state, named
like it. A *step* is one run of that method: it looks at the View, says what the job waits for, writes what it decides, and
names the next state once what it waits for is there. What must happen in the world is written as a demand that other
reconcilers and nodes act on; a job has no path of its own to a host.

    states = {"choose": State(goes=("upload",)), "upload": State(goes=("replicate", "choose")), ...}

    choose    -> Step("stored on n1 and n2", next="upload", txn=<ImageContent>)
    upload    -> Step("waits for its bytes")                # stays; looked at again when the view changes
    upload    -> Step("n1 holds it", next="replicate")

Invariants. The job's state and what its step writes are one transaction that checks the revisions of the state and of the
wish: a step happened or it did not, and never past a cancel. A step repeated writes the same. Every job ends, "done" or
"failed": past its deadline, cancelled, or when a step says `fail`, it goes to its `stop` state, which undoes what was done,
and from there to "failed" with the first reason kept. What is wished is the API's record, how far it is the machine's. How a
job ended is in the audit, by the request that made it, or that cancelled it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from cairn.controller.model.happening import ActSpec, EventSpec
from cairn.controller.model.jobs import deadline_of, status_of, under_way, whole
from cairn.controller.model.readable import CannotTell, Readable
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import timestamp
from cairn.proto.v1.job_pb2 import Job, JobStatus

# Why a job failed whose end was asked for.
CANCELLED: Final = "it was cancelled"
DONE: Final = "done"
FAILED: Final = "failed"
# When a job is looked at again that waits for a record to be readable.
UNREADABLE_AGAIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class State:
    """Where a state may lead. stoppable: a cancel or the deadline leads to the stop state instead."""

    goes: tuple[str, ...]
    stoppable: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """What one look at a job in a state found. next "": it stays. fail: why it cannot succeed any more."""

    say: str
    next: str = ""
    fail: str = ""
    percent: int = 0
    # Written with the job's state; by writer "jobs".
    txn: Txn | None = None
    # Replaces the job's memory when given.
    data: Mapping[str, str] | None = None
    again_after_s: float | None = None
    events: Sequence[EventSpec] = field(default_factory=tuple)
    # What the job found out, when it is done, for the audit: ("<kind>/<id>", field, value).
    found: tuple[tuple[str, str, str], ...] = ()


class Machine(Protocol):
    """One kind of job: a table, and a method `<state>(view, job, now) -> Step` per state."""

    kind: str
    states: Mapping[str, State]
    # Where a job begins, and where it goes to be undone.
    first: str
    stop: str
    # Kinds it reads and writes besides its own records.
    reads: tuple[AnyKind, ...]
    writes: tuple[AnyKind, ...]

    def targets(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """Return the targets of jobs that may care about a changed record."""
        ...


class Upkeep(Protocol):
    """Keeps what jobs made as it was asked for, after they have ended. Its keys are told from jobs by their prefix."""

    prefix: str
    reads: tuple[AnyKind, ...]
    writes: tuple[AnyKind, ...]

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """Return what to look at since that record changed."""
        ...

    def all_keys(self, view: View) -> Iterable[str]:
        """Return all there is to look at."""
        ...

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Decide; by writer "jobs"."""
        ...


def walk(machine: Machine) -> Iterator[tuple[str, str]]:
    """Yield every (state, next state) of a machine's table: what a test has to visit."""
    for name, state in machine.states.items():
        yield from ((name, next) for next in state.goes)
        if state.stoppable:
            yield name, machine.stop


def check_table(machine: Machine) -> list[str]:
    """Return what is wrong with a table; empty when it is sound: each state has a method, is reached, and can end."""
    wrong = [f"{name} has no method" for name in machine.states if not callable(getattr(machine, name, None))]
    steps = set(walk(machine))
    wrong += [
        f"{name} leads to {next}, which is not in the table"
        for name, next in steps
        if next not in {*machine.states, DONE, FAILED}
    ]
    reached = {machine.first} | {next for _, next in steps}
    wrong += [f"{name} is never reached" for name in machine.states if name not in reached]
    ending = {DONE, FAILED}
    while True:
        more = {name for name, next in steps if next in ending} - ending
        if not more:
            break
        ending |= more
    return wrong + [f"{name} can never end" for name in machine.states if name not in ending]


class Jobs:
    """Every job moves on when it can, and ends."""

    name = "jobs"

    def __init__(self, machines: Sequence[Machine], upkeep: Sequence[Upkeep] = ()) -> None:
        self._machines = {machine.kind: machine for machine in machines}
        self._upkeep = {each.prefix: each for each in upkeep}
        parts: list[Machine | Upkeep] = [*machines, *upkeep]
        self.reads: tuple[AnyKind, ...] = (kinds.JOB, kinds.JOB_STATE, *{kind for part in parts for kind in part.reads})
        self.writes: tuple[AnyKind, ...] = (kinds.JOB_STATE, *{kind for part in parts for kind in part.writes})

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """The job, or the unfinished jobs on the targets concerned; and what is to be kept up."""
        for upkeep in self._upkeep.values():
            if kind in upkeep.reads:
                yield from upkeep.keys(view, kind, id)
        if kind in (kinds.JOB, kinds.JOB_STATE):
            yield id
            return
        for machine in self._machines.values():
            if kind in machine.reads:
                for target in machine.targets(view, kind, id):
                    yield from under_way(view, target)

    def all_keys(self, view: View) -> Iterable[str]:
        """All unfinished jobs, and all that is to be kept up."""
        yield from [id for id in list(view.ids(kinds.JOB)) if not status_of(view, id).done]
        for upkeep in self._upkeep.values():
            yield from upkeep.all_keys(view)

    def shard(self, key: str) -> str:
        """By the key."""
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Take one step."""
        upkeep = self._upkeep.get(key.partition("-")[0])
        if upkeep is not None:
            return upkeep.reconcile(view, key, now)
        job = whole(view, key)
        if job is None or job.status.done:
            return NOTHING
        machine = self._machines.get(job.spec.kind)
        if machine is None:
            return Outcome(None, f"jobs of kind {job.spec.kind!r} are unknown to this controller")
        name = job.status.state or machine.first
        state = machine.states[name]
        reason = _stop_reason(view, job, now) if state.stoppable else ""
        if reason:
            step = Step(f"stopping: {reason}", next=machine.stop, fail=reason)
        else:
            try:
                step = getattr(machine, name)(Readable(view), job, now)
            except CannotTell as error:
                held_up_by = (error.record,) if error.record else ()
                return Outcome(None, f"waits: {error}", again_after_s=UNREADABLE_AGAIN_S, held_up_by=held_up_by)
            if step.fail:
                step = Step(f"stopping: {step.fail}", next=machine.stop, fail=step.fail, txn=step.txn, events=step.events)
            elif step.next and step.next not in state.goes:
                raise LookupError(f"{machine.kind}: {name} may not lead to {step.next}")
        return _written(view, job, name, step, now)


def _stop_reason(view: View, job: Job, now: datetime) -> str:
    if job.spec.cancel_requested:
        return CANCELLED
    deadline = deadline_of(view, job)
    if deadline is not None and now >= deadline:
        return f"its deadline has passed while it {job.status.say or 'had not begun'}"
    return ""


def _written(view: View, job: Job, name: str, step: Step, now: datetime) -> Outcome:
    """Return the outcome that records a step. job: with its status as it is."""
    status = JobStatus()
    status.CopyFrom(job.status)
    status.state, status.say = step.next or name, step.say
    status.percent = max(status.percent, min(step.percent, 100))
    if step.data is not None:
        status.data.clear()
        status.data.update(step.data)
    if step.fail and not status.error:
        status.error = step.fail
    if status.state in (DONE, FAILED):
        status.done, status.failed = True, status.state == FAILED
        status.percent = 100 if status.state == DONE else status.percent
        status.end_time.CopyFrom(timestamp(now))
    txn = Txn("jobs").merge(step.txn) if step.txn is not None else Txn("jobs")
    if status != job.status:
        txn.check(kinds.JOB, job.id, view.revision_of(kinds.JOB, job.id))
        txn.check(kinds.JOB_STATE, job.id, view.revision_of(kinds.JOB_STATE, job.id)).put(kinds.JOB_STATE, job.id, status)
    again_after_s, deadline = step.again_after_s, deadline_of(view, job)
    if not status.done and deadline is not None:
        left_s = max(0.0, (deadline - now).total_seconds())
        again_after_s = left_s if again_after_s is None else min(left_s, again_after_s)
    acts = (_ended(job, status, step),) if status.done and not job.status.done else ()
    return Outcome(txn if txn else None, step.say, again_after_s, step.events if txn else (), acts=acts)


def _ended(job: Job, status: JobStatus, step: Step) -> ActSpec:
    """Return what the audit keeps of the end of a job."""
    cause = job.cancel_request if status.failed and status.error == CANCELLED else job.create_request
    method = "FailJob" if status.failed else "FinishJob"
    return ActSpec(method, f"{kinds.JOB.name}/{job.id}", job.name, job.project, cause, step.found)
