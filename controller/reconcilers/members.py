"""Which controllers are expected: whoever has been there is, until somebody retires it.

Sessions (controller/peers.py) say who is alive; they vanish with their leases, and with them every trace of who is not. So each
controller that was seen has a record that stays, and one whose session is gone for a while is noted in it as missing: that is
what `cairn cluster status` compares. Keys are controllers' names.

How long a session has been gone is remembered here, not in the store: whoever has to look after a key from now on begins to
count again, which makes the note late and never wrong. Rejected: a note at once (each restart of a controller would write two).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cairn.controller.model.happening import EventSpec
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import timestamp
from cairn.proto.v1.cluster_pb2 import ControllerMember, ControllerSession

# A restart takes less.
MISSING_AFTER: Final = timedelta(seconds=15)
MISSING: Final = "ControllerMissing"
BACK: Final = "ControllerBack"


class Members:
    """Which controllers are expected."""

    name = "members"
    reads: tuple[AnyKind, ...] = (kinds.CONTROLLER, kinds.CONTROLLER_MEMBER)
    writes: tuple[AnyKind, ...] = (kinds.CONTROLLER_MEMBER,)

    def __init__(self) -> None:
        # Controller -> since when its session is gone.
        self._gone: dict[str, datetime] = {}

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:  # noqa: ARG002 - both kinds' ids are controllers' names
        """The controller."""
        return (id,)

    def all_keys(self, view: View) -> Iterable[str]:
        """All that are there or expected."""
        return sorted({*view.ids(kinds.CONTROLLER), *view.ids(kinds.CONTROLLER_MEMBER)})

    def shard(self, key: str) -> str:
        """By the controller."""
        return key

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:
        """Note who is there, and who has been gone for a while."""
        session, member = view.get(kinds.CONTROLLER, key), view.get(kinds.CONTROLLER_MEMBER, key)
        if session is not None:
            self._gone.pop(key, None)
            return self._present(view, session, member)
        if member is None or member.HasField("missing_time"):
            self._gone.pop(key, None)
            return NOTHING
        since = self._gone[key] = min(self._gone.get(key, now), now)
        left = MISSING_AFTER - (now - since)
        if left > timedelta():
            return Outcome(None, f"controller {key} is away", again_after_s=left.total_seconds())
        return self._missing(view, member, since)

    def _present(self, view: View, session: ControllerSession, member: ControllerMember | None) -> Outcome:
        name = session.name
        wanted = ControllerMember(name=name, endpoints=session.endpoints, version=session.version)
        if member == wanted:
            return NOTHING
        say = f"controller {name} is there"
        back = member is not None and member.HasField("missing_time")
        return self._put(view, wanted, say, (EventSpec(name, name, "", BACK, say),) if back else ())

    def _missing(self, view: View, member: ControllerMember, since: datetime) -> Outcome:
        missing, name = ControllerMember(), member.name
        missing.CopyFrom(member)
        missing.missing_time.CopyFrom(timestamp(since))
        say = f"controller {name} does not answer"
        return self._put(view, missing, say, (EventSpec(name, name, "", MISSING, say, warning=True),))

    def _put(self, view: View, member: ControllerMember, say: str, events: tuple[EventSpec, ...]) -> Outcome:
        name = member.name
        txn = Txn(self.name).check(kinds.CONTROLLER, name, view.revision_of(kinds.CONTROLLER, name))
        txn.check(kinds.CONTROLLER_MEMBER, name, view.revision_of(kinds.CONTROLLER_MEMBER, name))
        return Outcome(txn.put(kinds.CONTROLLER_MEMBER, name, member), say, events=events)
