"""What somebody who watches believes: built from a watch alone, broken off and resumed at whichever controller answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cairn.proto.v1.common_pb2 import CHANGE_TYPE_BOOKMARK, CHANGE_TYPE_DELETE
from cairn.proto.v1.vm_pb2 import VmStatus

# (kind, filter) -> whether an object passes it: said once more, as no checker may believe the product's own filters.
FILTERS: Final[Mapping[tuple[str, str], Callable[[Any], bool]]] = {
    ("vm", ""): lambda _: True,
    ("vm", "status.state=RUNNING"): lambda vm: vm.status.state == VmStatus.STATE_RUNNING,
    ("vm", "status.state!=RUNNING"): lambda vm: vm.status.state != VmStatus.STATE_RUNNING,
    ("vm", "delete_time:*"): lambda vm: vm.HasField("delete_time"),
    ("event", ""): lambda _: True,
    ("event", "warning=true"): lambda event: event.warning,
    ("volume", ""): lambda _: True,
    ("volume", 'status.vm_name=""'): lambda volume: not volume.status.vm_name,
}


@dataclass
class Picture:
    """Objects of a kind that pass a filter, as a watch told of them."""

    kind: str
    filter: str
    revision: int = 0
    # It has seen the state it began with whole.
    complete: bool = False
    shown: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """What was known is forgotten: the watch tells the current state anew."""
        self.revision, self.complete = 0, False
        self.shown.clear()

    def take(self, response: Any) -> None:
        """Note one message."""
        self.revision = max(self.revision, response.revision)
        if response.type == CHANGE_TYPE_BOOKMARK:
            self.complete = True
            return
        told = getattr(response, self.kind)
        if response.type == CHANGE_TYPE_DELETE:
            self.shown.pop(told.id, None)
        else:
            self.shown[told.id] = told
