"""How quotas and price lists are shown."""

from __future__ import annotations

from cairn.controller.api.status import condition, copied
from cairn.controller.model.quotas import DEFAULTS, NEAR, amount_text, limits
from cairn.controller.store.base import Record, View
from cairn.controller.store.sums import NAMES
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import TryAgain
from cairn.proto.seams import moment
from cairn.proto.v1.price_list_pb2 import PriceList
from cairn.proto.v1.quota_pb2 import Quota


def quota(view: View, record: Record[Quota]) -> Quota:
    """Project a quota."""
    result: Quota = copied(record)
    status = result.status
    status.observed_revision = record.mod_revision
    if not result.project:
        result.name = status.project_name = DEFAULTS
        status.limits.update({name: limit for name, limit in result.spec.limits.items() if limit >= 0})
        status.say = f"{several(len(status.limits), 'limit')}, where projects say nothing"
        return result
    project = view.get(kinds.PROJECT, result.project)
    result.name = status.project_name = project.name if project is not None else result.project
    status.used.update(dict.fromkeys(NAMES, 0) | view.amounts(result.project))
    try:
        status.limits.update(limits(view, result.project))
    except TryAgain as error:
        condition(status, "Known", False, "Unreadable", error.say)
    near = [name for name, limit in sorted(status.limits.items()) if status.used.get(name, 0) >= limit * NEAR]
    full = [name for name in near if status.used.get(name, 0) >= status.limits[name]]
    status.say = _say(result, full or near, full=bool(full))
    condition(status, "WithinLimits", not full, "Full" if full else "Room", status.say)
    return result


def _say(quota: Quota, named: list[str], *, full: bool) -> str:
    if not quota.status.limits:
        return "nothing is limited"
    if not named:
        return f"within its {several(len(quota.status.limits), 'limit')}"
    parts = [
        f"{amount_text(name, quota.status.used[name])} of {amount_text(name, quota.status.limits[name])} {name}"
        for name in named
    ]
    return f"{'full' if full else 'nearly full'}: {', '.join(parts)}"


def price_list(view: View, record: Record[PriceList]) -> PriceList:
    """Project a price list. A project that is gone is called by its id: its usage is reported still."""
    result: PriceList = copied(record)
    spec, status = result.spec, result.status
    project = view.get(kinds.PROJECT, spec.project) if spec.project else None
    status.project_name = project.name if project is not None else spec.project
    whom = f"project {status.project_name}" if spec.project else "all projects without a list of their own"
    status.say = f"{several(len(spec.prices), 'price')} for {whom}, from {moment(spec.valid_from):%Y-%m-%d} on"
    status.observed_revision = record.mod_revision
    return result
