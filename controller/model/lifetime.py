"""How long what was deleted can be brought back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.seams import moment
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume


def kept_no_longer(message: Vm | Volume) -> bool:
    """Tell whether a deleted object was purged: it cannot be brought back, by anybody's clock."""
    return moment(message.purge_time) <= moment(message.delete_time)


def put_away(view: View, message: Any) -> bool:
    """Tell whether an object is deleted, or goes with a VM that is: lists show it only to who asks for deleted ones."""
    if message.HasField("delete_time"):
        return True
    vm = view.get(kinds.VM, message.spec.vm) if isinstance(message, Volume) and message.spec.vm else None
    return vm is not None and vm.HasField("delete_time")


def kept_for_s(message: Vm | Volume, now: datetime) -> float:
    """Return for how long a deleted object can still be brought back. Purged, it cannot, by anybody's clock."""
    if kept_no_longer(message):
        return 0.0
    return max(0.0, (moment(message.purge_time) - now).total_seconds())
