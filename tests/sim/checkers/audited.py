"""Every change that was carried out has its record in the audit, in the same commit, and records of a chain follow one another.

Changes are what the API writes, whichever call it was: not by a list of calls. Left out are what a call remembers of itself
(requests, plans), and two that are a lock until the change itself, which has a record: the mark of what is about to be deleted,
and a name kept free for something.

What controllers do by themselves is on record in the commit that does it, each once, and with the request that led to it as the
record said: what is erased of VMs, volumes, API tokens and bindings, and how jobs end. That what is deleted says by which
request is seen, too: in the record's own commit, by the audit of that commit.

The chain is worked out anew from the records as they were written: numbers without gaps, the hash of the one before, and the
head. What is let go is let go from the oldest on, and the record of the cut says up to where; it is in some controller's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Changed, Cloud, Commit

_BESIDES = frozenset({"request", "plan", "event", "event_of", "audit", "audit_head"})
# Kind -> what the record of its end is called, when nobody asked for that.
_ENDS = {"vm": "EraseVm", "volume": "EraseVolume", "api_token": "RemoveApiToken", "binding": "RemoveBinding"}
# What is said of a job whose end was asked for.
_CANCELLED = "it was cancelled"


class Audited(Checker):
    """Looks at each commit. Chain -> (number, hash) of its newest record, and number of the newest that was let go."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[int, bytes]] = {}
        self._cuts: dict[str, int] = {}

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look at what was answered, and at the chains it is in."""
        if commit.writers is None:
            self._begin(cloud)
            return
        audits = [change for change in commit.changes if change.kind == "audit"]
        made = sorted((change for change in audits if change.after is not None), key=lambda change: change.id)
        recorded = {each.after.request_id for each in made}
        for change in commit.changes:
            if change.kind == "request" and change.before is None and change.after is not None:
                done = not change.after.HasField("refusal")
                if done != (change.after.request_id in recorded):
                    was = ("carried out", "no") if done else ("refused", "a")
                    yield f"{change.key} was {was[0]}: of that there is {was[1]} record"
        if not made:
            yield from (f"{each.key} was changed by the API: of that there is no record" for each in _changed(commit))
        yield from _acts(cloud, commit, [change.after for change in made])
        for change in made:
            yield from self._made(change)
        heads = {change.id: change.after for change in commit.changes if change.kind == "audit_head"}
        for chain in {each.after.chain for each in made} | heads.keys():
            yield from self._ended(chain, heads.get(chain))
        gone = [change for change in audits if change.after is None]
        yield from self._cut(commit, gone)
        for change in gone if cloud.filed is not None else ():
            if not cloud.filed(change.before.chain, change.before.number, _stored(change.before)):
                yield f"{change.key} went and is in nobody's files"

    def _begin(self, cloud: Cloud) -> None:
        """A history begins with what was there: where its chains end is as it is."""
        self._cuts = {chain: cut.number for chain, cut in cloud.all("audit_cut").items()}
        self._ends = {chain: (cut.number, cut.hash) for chain, cut in cloud.all("audit_cut").items()}
        for _, audit in sorted(cloud.all("audit").items()):
            self._ends[audit.chain] = audit.number, hashlib.sha256(_stored(audit)).digest()

    def _made(self, change: Changed) -> Iterator[str]:
        audit = change.after
        number, hash = self._ends.get(audit.chain, (0, b""))
        if change.before is not None:
            yield f"{change.key} was written again"
        if change.id != f"{audit.chain}/{audit.number:012d}" or audit.number != number + 1:
            yield f"{change.key} is number {audit.number} of {audit.chain}, where {number + 1} comes next"
        if audit.previous != hash:
            yield f"{change.key} does not have the hash of the record before it"
        self._ends[audit.chain] = audit.number, hashlib.sha256(_stored(audit)).digest()

    def _ended(self, chain: str, head: Any) -> Iterator[str]:
        end = self._ends.get(chain, (0, b""))
        if head is None or (head.number, head.hash) != end:
            yield f"chain {chain} ends with {end[0]}, and its head says {head.number if head is not None else 'nothing'}"

    def _cut(self, commit: Commit, gone: list[Changed]) -> Iterator[str]:
        cuts = {change.id: change.after for change in commit.changes if change.kind == "audit_cut" and change.after is not None}
        numbers: dict[str, list[int]] = {}
        for change in gone:
            numbers.setdefault(change.before.chain, []).append(change.before.number)
        for chain in sorted(numbers.keys() | cuts.keys()):
            first = self._cuts.get(chain, 0) + 1
            last = cuts[chain].number if chain in cuts else first - 1
            if sorted(numbers.get(chain, [])) != list(range(first, last + 1)):
                yield f"chain {chain}: records {sorted(numbers.get(chain, []))} went, and the cut is said to be at {last}"
            if chain in cuts and cuts[chain].broken:
                yield f"chain {chain} was found broken: {cuts[chain].broken}"
            self._cuts[chain] = last


def _acts(cloud: Cloud, commit: Commit, made: list[Any]) -> Iterator[str]:
    """Compare what was done unasked with the records of it, and what was asked for with what remembers it."""
    done = sorted(_done(cloud, commit))
    told = sorted((each.method, each.object, each.cause) for each in made if each.caller == "system" and _is_act(each.method))
    if done != told:
        yield f"was done: {done}; on record of that: {told}"
    requests = {each.request_id for each in made if each.request_id}
    for change in commit.changes:
        for asked in _asked(change):
            if asked not in requests and _by(commit, change) == "api":
                yield f"{change.key} was asked for by {asked!r}, and this commit is of {sorted(requests)}"


def _is_act(method: str) -> bool:
    return method in {*_ENDS.values(), "FinishJob", "FailJob"}


def _by(commit: Commit, change: Changed) -> str:
    return (commit.writers or {}).get(change.key, "")


def _done(cloud: Cloud, commit: Commit) -> Iterator[tuple[str, str, str]]:
    """Yield (method, object, cause) of what a controller did by itself."""
    erased = {change.id: change.before for change in commit.changes if change.kind == "vm" and change.after is None}
    for change in commit.changes:
        if change.kind in _ENDS and change.after is None and change.before is not None and _by(commit, change) == "garbage":
            gone = change.before
            if change.kind == "volume" and not gone.HasField("delete_time"):
                # It goes with its VM, maybe in a commit before that one's.
                gone = cloud.get("vm", gone.spec.vm) or erased.get(gone.spec.vm) or gone
            yield _ENDS[change.kind], change.key, getattr(gone, "delete_request", "")
        ended = change.kind == "job_state" and change.after is not None and change.after.done
        if ended and not (change.before is not None and change.before.done):
            job, status = cloud.get("job", change.id), change.after
            cause = job.cancel_request if status.failed and status.error == _CANCELLED else job.create_request
            yield "FailJob" if status.failed else "FinishJob", f"job/{change.id}", cause


def _asked(change: Changed) -> Iterator[str]:
    """Yield the requests that a record began to name, or has to name."""
    old, new = change.before, change.after
    if new is None:
        return
    if change.kind in ("vm", "volume") and old is not None and new.HasField("delete_time"):
        if not old.HasField("delete_time") or old.purge_time != new.purge_time:
            yield new.delete_request
    elif change.kind in ("vm", "volume") and new.delete_request:
        yield f"{new.delete_request}, of before it was brought back"
    elif change.kind == "job":
        if old is None:
            yield new.create_request
        elif new.spec.cancel_requested and not old.spec.cancel_requested:
            yield new.cancel_request


def _changed(commit: Commit) -> Iterator[Changed]:
    """Yield what the API changed."""
    for change in commit.changes:
        by_api = commit.writers is not None and commit.writers.get(change.key) == "api"
        if by_api and change.kind not in _BESIDES and not _is_lock(change):
            yield change


def _is_lock(change: Changed) -> bool:
    if change.after is None:
        return False
    if change.kind == "name":
        return bool(change.after.HasField("reserve_time"))
    if change.before is None or "delete_time" not in change.after.DESCRIPTOR.fields_by_name:
        return False
    bare = [type(each)() for each in (change.before, change.after)]
    for each, whole in zip(bare, (change.before, change.after), strict=True):
        each.CopyFrom(whole)
        each.ClearField("delete_time")
        # A newer release leaves its own wherever it writes.
        each.DiscardUnknownFields()
    return bool(bare[0] == bare[1])


def _stored(message: Any) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content
