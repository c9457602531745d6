"""Scenes of the checker audited: what it must see, and what it must not mind."""

from __future__ import annotations

import hashlib
from typing import Any

from cairn.proto.v1.audit_pb2 import Audit, AuditCut, AuditHead
from cairn.proto.v1.cluster_pb2 import NameClaim, RequestRecord
from cairn.proto.v1.job_pb2 import Job, JobStatus
from cairn.proto.v1.node_pb2 import JoinToken
from cairn.proto.v1.vpc_pb2 import Vpc
from google.protobuf.timestamp_pb2 import Timestamp

from tests.sim.stage import SCENES, VM, VOLUME, Stage, scene, vm, volume

__all__ = ["SCENES"]
C1 = "c1"


def _hash(message: Any) -> bytes:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def _request(id: str, *, refused: bool = False) -> tuple[str, str, RequestRecord]:
    record = RequestRecord(request_id=id, object=f"vm/{VM}")
    if refused:
        record.refusal = b""
    return "request", f"alice/{id}", record


def _audits(*requests: str) -> list[Audit]:
    made: list[Audit] = []
    for number, request in enumerate(requests, 1):
        previous = _hash(made[-1]) if made else b""
        made.append(Audit(chain=C1, number=number, previous=previous, request_id=request))
    return made


def _record(audit: Audit) -> tuple[str, str, Audit]:
    return "audit", f"{audit.chain}/{audit.number:012d}", audit


def _head(audit: Audit) -> tuple[str, str, AuditHead]:
    return "audit_head", C1, AuditHead(chain=C1, number=audit.number, hash=_hash(audit))


def _stored_of(audit: Audit) -> tuple[str, int, bytes]:
    return C1, audit.number, audit.SerializeToString(deterministic=True)


def _commit(stage: Stage, *records: tuple[str, str, Any]) -> None:
    stage.commit(*records, by={})


@scene("audited")
def recorded_one_after_the_other_and_let_go(stage: Stage) -> None:
    first, second, third = _audits("a", "b", "c")
    _commit(stage, _request("a"), _request("b"), _record(first), _record(second), _head(second))
    _commit(stage, _request("x", refused=True))
    _commit(stage, _request("c"), _record(third), _head(third))
    cut = AuditCut(chain=C1, number=2, hash=_hash(second))
    _commit(stage, ("audit", _record(first)[1], None), ("audit", _record(second)[1], None), ("audit_cut", C1, cut))


@scene("audited", "request/alice/a was carried out: of that there is no record")
def carried_out_unrecorded(stage: Stage) -> None:
    _commit(stage, _request("a"))


@scene("audited", "join_token/jt-1 was changed by the API: of that there is no record")
def changed_without_a_request_unrecorded(stage: Stage) -> None:
    stage.commit(("join_token", "jt-1", JoinToken(id="jt-1")), by={"join_token/jt-1": "api"})


@scene("audited")
def marked_unmarked_and_kept_free(stage: Stage) -> None:
    bare, marked = Vpc(id="vpc-1", name="blue"), Vpc(id="vpc-1", name="blue", delete_time=Timestamp(seconds=1))
    stage.commit(("vpc", "vpc-1", bare), by={"vpc/vpc-1": "restore"})
    stage.commit(("vpc", "vpc-1", marked), by={"vpc/vpc-1": "api"})
    stage.commit(("vpc", "vpc-1", bare), by={"vpc/vpc-1": "api"})
    claim = NameClaim(kind="image", name="a", id="img-1", reserve_time=Timestamp(seconds=1))
    stage.commit(("name", "all/image/a", claim), by={"name/all/image/a": "api"})


@scene("audited", "request/alice/a was refused: of that there is a record")
def refused_and_recorded(stage: Stage) -> None:
    (first,) = _audits("a")
    _commit(stage, _request("a", refused=True), _record(first), _head(first))


@scene("audited", "is number 3 of c1, where 2 comes next")
def a_number_left_out(stage: Stage) -> None:
    first, _, third = _audits("a", "b", "c")
    _commit(stage, _request("a"), _record(first), _head(first))
    _commit(stage, _request("c"), _record(third), _head(third))


@scene("audited", "does not have the hash of the record before it")
def one_that_follows_another(stage: Stage) -> None:
    first, second = _audits("a", "b")
    _commit(stage, _request("a"), _record(first), _head(first))
    second.previous = b"another"
    _commit(stage, _request("b"), _record(second), _head(second))


@scene("audited", "chain c1 ends with 2, and its head says 1")
def a_head_left_behind(stage: Stage) -> None:
    first, second = _audits("a", "b")
    _commit(stage, _request("a"), _request("b"), _record(first), _record(second), _head(first))


@scene("audited", "was written again")
def one_written_again(stage: Stage) -> None:
    (first,) = _audits("a")
    _commit(stage, _request("a"), _record(first), _head(first))
    _commit(stage, _record(first), _head(first))


@scene("audited", "audit/c1/000000000001 went and is in nobody's files")
def let_go_of_and_kept_nowhere(stage: Stage) -> None:
    first, second = _audits("a", "b")
    kept = {_stored_of(second)}
    stage.cloud.filed = lambda chain, number, record: (chain, number, record) in kept
    _commit(stage, _request("a"), _request("b"), _record(first), _record(second), _head(second))
    cut = AuditCut(chain=C1, number=2, hash=_hash(second))
    _commit(stage, ("audit", _record(first)[1], None), ("audit", _record(second)[1], None), ("audit_cut", C1, cut))


@scene("audited", r"records \[1\] went, and the cut is said to be at 0")
def let_go_in_secret(stage: Stage) -> None:
    (first,) = _audits("a")
    _commit(stage, _request("a"), _record(first), _head(first))
    _commit(stage, ("audit", _record(first)[1], None))


@scene("audited", "was found broken: record 1 is missing")
def found_broken(stage: Stage) -> None:
    (first,) = _audits("a")
    _commit(stage, _request("a"), _record(first), _head(first))
    cut = AuditCut(chain=C1, number=1, hash=_hash(first), broken="record 1 is missing")
    _commit(stage, ("audit", _record(first)[1], None), ("audit_cut", C1, cut))


# --- what controllers do by themselves --------------------------------------------------------------------------------------


def _gone(stage: Stage) -> None:
    """A VM that request "a" had deleted, with a disk that goes with it."""
    _, _, deleted = vm(gone=True)
    deleted.delete_request = "a"
    stage.commit(("vm", VM, deleted), volume(vm=VM, delete_with_vm=True))


def _act(method: str, object: str, cause: str, after: Audit | None = None) -> Audit:
    number, previous = (after.number + 1, _hash(after)) if after is not None else (1, b"")
    audit = Audit(chain=C1, number=number, previous=previous, method=method, object=object, cause=cause)
    audit.caller = "system"
    return audit


def _erase(stage: Stage, *audits: Audit) -> None:
    by = {f"vm/{VM}": "garbage", f"volume/{VOLUME}": "garbage"}
    head = (_head(audits[-1]),) if audits else ()
    stage.commit(("vm", VM, None), ("volume", VOLUME, None), *map(_record, audits), *head, by=by)


@scene("audited")
def erased_and_recorded(stage: Stage) -> None:
    _gone(stage)
    disk = _act("EraseVolume", f"volume/{VOLUME}", "a")
    _erase(stage, disk, _act("EraseVm", f"vm/{VM}", "a", disk))


@scene(
    "audited", r"was done: \[\('EraseVm', 'vm/i-1', 'a'\), \('EraseVolume', 'volume/vol-1', 'a'\)\]; on record of that: \[\]"
)
def erased_unrecorded(stage: Stage) -> None:
    _gone(stage)
    _erase(stage)


@scene("audited", r"\('EraseVm', 'vm/i-1', ''\)")
def erased_for_no_reason(stage: Stage) -> None:
    _gone(stage)
    disk = _act("EraseVolume", f"volume/{VOLUME}", "a")
    _erase(stage, disk, _act("EraseVm", f"vm/{VM}", "", disk))


@scene("audited", r"was done: \[\]; on record of that: \[\('EraseVm'")
def recorded_and_not_erased(stage: Stage) -> None:
    _gone(stage)
    act = _act("EraseVm", f"vm/{VM}", "a")
    stage.commit(_record(act), _head(act), by={})


def _job(stage: Stage, **how: Any) -> None:
    job = Job(id="j-1", create_request="a", cancel_request="b")
    stage.commit(("job", "j-1", job), ("job_state", "j-1", JobStatus(state="upload")))
    act = _act("FailJob" if how.get("failed") else "FinishJob", "job/j-1", how.pop("cause"))
    stage.commit(("job_state", "j-1", JobStatus(done=True, **how)), _record(act), _head(act), by={})


@scene("audited")
def a_job_that_ended_in_time(stage: Stage) -> None:
    _job(stage, cause="a")


@scene("audited")
def a_job_that_was_cancelled(stage: Stage) -> None:
    _job(stage, cause="b", failed=True, error="it was cancelled")


@scene("audited", r"was done: \[\('FailJob', 'job/j-1', 'b'\)\]; on record of that: \[\('FailJob', 'job/j-1', 'a'\)\]")
def cancelled_by_another(stage: Stage) -> None:
    _job(stage, cause="a", failed=True, error="it was cancelled")


def _deleted(stage: Stage, request: str) -> None:
    """Request "a" deletes a VM, whose record names one."""
    stage.commit(vm())
    _, _, deleted = vm(gone=True)
    deleted.delete_request = request
    (asked,) = _audits("a")
    stage.commit(("vm", VM, deleted), _request("a"), _record(asked), _head(asked), by={f"vm/{VM}": "api"})


@scene("audited")
def deleted_by_the_request_it_names(stage: Stage) -> None:
    _deleted(stage, "a")


@scene("audited", r"vm/i-1 was asked for by '', and this commit is of \['a'\]")
def deleted_by_nobody(stage: Stage) -> None:
    _deleted(stage, "")


@scene("audited", "vm/i-1 was asked for by 'a, of before it was brought back'")
def brought_back_and_still_deleted_by_somebody(stage: Stage) -> None:
    _deleted(stage, "a")
    _, _, back = vm()
    back.delete_request = "a"
    _, second = _audits("a", "b")
    stage.commit(("vm", VM, back), _request("b"), _record(second), _head(second), by={f"vm/{VM}": "api"})
