"""How long what was deleted can be brought back."""

from __future__ import annotations

from datetime import datetime

from cairn.proto.seams import moment
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume


def kept_no_longer(message: Vm | Volume) -> bool:
    """Tell whether a deleted object was purged: it cannot be brought back, by anybody's clock."""
    return moment(message.purge_time) <= moment(message.delete_time)


def kept_for_s(message: Vm | Volume, now: datetime) -> float:
    """Return for how long a deleted object can still be brought back. Purged, it cannot, by anybody's clock."""
    if kept_no_longer(message):
        return 0.0
    return max(0.0, (moment(message.purge_time) - now).total_seconds())
