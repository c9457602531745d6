"""How much a project may have, asked of each transaction that would give it more.

    charge(view, txn)       # Raises Exhausted: "quota of project red: 10 of 10 vms are used, 1 more is asked for"

What a project has is a sum of its records in the view (store/sums.py), so it cannot drift from them. Two controllers that
each decide on a view without the other's commit would both find room: so a transaction that adds something limited checks and
writes the project's fence record, and one of the two conflicts and decides again. Who gives back need not: on a view that
has not heard of it one refuses too much, and a refusal is believed on a fresh view only. Rejected: counters in records (they
drift, and are found wrong too late), a reservation service (it would be one more thing that must answer).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cairn.controller.store.base import Txn, View
from cairn.controller.store.sums import COUNTED, NAMES, VOLUME_BYTES, added, holders
from cairn.controller.words import size
from cairn.proto import kinds
from cairn.proto.errors import Exhausted, TryAgain
from cairn.proto.v1.quota_pb2 import QuotaUse

# Of what holds where projects say nothing.
DEFAULTS: Final = "defaults"
DEFAULTS_ID: Final = "quo-defaults"
ANY: Final = -1
LIMIT_MAX: Final = 1 << 53
_NO_LIMITS: Final[Mapping[str, int]] = {}
# A plan names what is nearest to its limit.
NEAR: Final = 0.8


def quota_id(project: str) -> str:
    """Return the id of a project's quota: the same on every controller."""
    return f"{kinds.QUOTA.id_prefix}-{project.removeprefix(f'{kinds.PROJECT.id_prefix}-')}"


def is_name(text: str) -> bool:
    """Tell whether that can be limited."""
    return text in NAMES or (text.startswith(VOLUME_BYTES) and len(text) > len(VOLUME_BYTES))


def limits(view: View, project: str) -> Mapping[str, int]:
    """Return the limits that hold for a project; what is not in it has none. Raises TryAgain: nobody can tell."""
    found: Mapping[str, Mapping[str, int]] = view.recall("limits of projects", (kinds.QUOTA,), lambda: _all(view))
    for id in (quota_id(project), DEFAULTS_ID) if view.harmed else ():
        damaged = view.unreadable(kinds.QUOTA).get(id)
        if damaged is not None and not damaged.kept:
            raise TryAgain(f"the quota {id} cannot be read; `cairn cluster fsck` lists what is damaged")
    return found.get(project, found.get("", _NO_LIMITS))


def _all(view: View) -> Mapping[str, Mapping[str, int]]:
    """Return the limits by project id; "": of those without any of their own. Empty: nothing is limited anywhere."""
    defaults = view.get(kinds.QUOTA, DEFAULTS_ID)
    common = dict(defaults.spec.limits) if defaults is not None else {}
    found = {"": _bounded(common)}
    for quota in view.all(kinds.QUOTA):
        if quota.project and quota.spec.limits:
            found[quota.project] = _bounded({**common, **quota.spec.limits})
    return {project: each for project, each in found.items() if each or common}


def _bounded(of: Mapping[str, int]) -> Mapping[str, int]:
    return {name: limit for name, limit in of.items() if limit != ANY}


def charge(view: View, txn: Txn) -> None:
    """Refuse what would give a project more than it may have; else have it stand on that. Raises Exhausted, TryAgain."""
    if not view.count(kinds.QUOTA):
        return
    for project, more in asked(view, txn).items():
        gained = {name: amount for name, amount in more.items() if amount > 0}
        for id in (quota_id(project), DEFAULTS_ID) if gained else ():
            # A limit that is set or lowered at this moment counts.
            txn.check(kinds.QUOTA, id, view.revision_of(kinds.QUOTA, id))
        bounds = limits(view, project)
        limited = {name: amount for name, amount in gained.items() if name in bounds}
        if not limited:
            continue
        used = view.amounts(project)
        for name, amount in sorted(limited.items()):
            if used.get(name, 0) + amount > bounds[name]:
                raise Exhausted(f"quota/{name}", _refusal(view, project, name, used.get(name, 0), amount, bounds[name]))
        fence(view, txn, project)


def fence(view: View, txn: Txn, holder: str) -> None:
    """Have two transactions that give one holder more conflict, whichever controllers decide: each looked whether it has room.

    holder: a project's id, or of what only users have a number, a user's.
    """
    found = view.get(kinds.QUOTA_USE, holder)
    count = found.count + 1 if found is not None else 1
    txn.check(kinds.QUOTA_USE, holder, view.revision_of(kinds.QUOTA_USE, holder))
    txn.put(kinds.QUOTA_USE, holder, QuotaUse(project=holder, count=count))


def asked(view: View, txn: Txn) -> dict[str, dict[str, int]]:
    """Return what projects would have more, or less, of after a transaction: project id -> name -> amount."""
    found: dict[str, dict[str, int]] = {}
    for kind, before, after in _counted(view, txn):
        for message, sign in ((before, -1), (after, 1)):
            for project in holders(kind, message) if message is not None else ():
                added(found.setdefault(project, {}), COUNTED[kind](message), sign)
    return found


def _counted(view: View, txn: Txn) -> Iterator[tuple[str, Any, Any]]:
    """Yield (kind, before, after) of counted records that a transaction changes."""
    for key, put in txn.puts.items():
        kind, id = kinds.split(key)
        if kind.name in COUNTED:
            yield kind.name, view.get(kind, id), kind.message.FromString(put.value)
    for key in sorted(txn.deletes):
        kind, id = kinds.split(key)
        if kind.name in COUNTED:
            yield kind.name, view.get(kind, id), None


def amount_text(name: str, amount: int) -> str:
    """Return an amount as people write it: "3", "2 GiB"."""
    return size(amount) if "bytes" in name else str(amount)


def _refusal(view: View, project: str, name: str, used: int, more: int, limit: int) -> str:
    found = view.get(kinds.PROJECT, project)
    has, wants, most = (amount_text(name, each) for each in (used, more, limit))
    called = found.name if found is not None else project
    say = f"quota of project {called}: it has {has} of {most} {name}, {wants} more asked for"
    return f"{say}; delete some, or have the limit raised (`cairn quota set`)"
