"""Which guest may have a volume open: what must be over before a volume that several nodes reach is erased.

A guest may have a volume open that is attached to its VM, until its node has removed the guest; one that a node last saw it
with, whatever was asked for since; and one it was detached from, until its node has answered to that. A node that does not
answer keeps what it said last: only its own word, or its removal from the cluster, ends that.
"""

from __future__ import annotations

from cairn.controller.model.absence import removed
from cairn.controller.model.attachments import Hold, attachment, is_let_go
from cairn.controller.model.openings import holders, opening
from cairn.controller.model.where import where
from cairn.controller.store.base import View
from cairn.proto import kinds


def may_run(view: View, vm: str) -> bool:
    """Tell whether the guest of a VM may exist somewhere."""
    record = view.get(kinds.VM, vm)
    return record is not None and any(not removed(view, record, node) for node in where(view, vm).nodes)


def opened_by(view: View, volume: str) -> str:
    """Return the id of a VM whose guest may have a volume open; empty: none."""
    record, claim = view.get(kinds.VOLUME, volume), opening(view, volume)
    if claim is not None:
        seen = holders(view, volume)
        return claim.vm or (seen[0][0] if seen else "")
    if record is not None and record.spec.vm and may_run(view, record.spec.vm):
        return record.spec.vm
    if seen := holders(view, volume):
        return seen[0][0]
    if record is None:
        return ""
    # One that waits for its VM's guest to be given it may still be another's.
    free = is_let_go(view, record) if record.spec.vm else attachment(view, record).hold is Hold.FREE
    return "" if free else record.spec.former_vm
