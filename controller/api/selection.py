"""Which objects a List or Watch request asks for, of those its caller may see.

Asked in two steps, since projecting an object costs a hundred times a look at its record. What stands in the record as it is
stored (id, name, project, labels, spec, times; and the caller's right to see it) is asked of the record; only what passes is
projected, and only what is projected (status, reconciling, revision) is asked of that. Where the project is known, other
projects' records are not even looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from cairn.controller.api import filter, resolution
from cairn.controller.api.filter import Predicate
from cairn.controller.api.nouns import Noun
from cairn.controller.model.lifetime import put_away
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.model.sharing import shared_ids, shared_into
from cairn.controller.model.veil import SEES_NODES, covered, sees_nodes
from cairn.controller.store.base import Record, View
from cairn.controller.store.indexes import INDEXES
from cairn.proto import kinds
from cairn.proto.errors import Invalid

ALL_PROJECTS: Final = "-"
# Naming these in a filter asks for deleted objects.
_DELETED_PATHS: Final = ("delete_time", "purge_time", "status.state")
# How long a long answer keeps the loop before others have their turn.
SLICE_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Selection:
    """See the module. project: id, empty: of all; only: the one id that can pass; about: whose events; empty: any."""

    caller: Caller
    noun: Noun[Any]
    project: str
    hide_deleted: bool
    only: str
    stored: Predicate
    projected: Predicate
    about: str = ""

    @classmethod
    def of(cls, view: View, caller: Caller, noun: Noun[Any], request: Any, *, watching: bool = False) -> Selection:
        """Return what a request asks for. Watches always show deleted ones. Raises Invalid, NotFound."""
        stored, projected = filter.predicates(request.filter, noun.kind.message.DESCRIPTOR)
        _refuse_physical(view, caller, noun, request.filter)
        project = ""
        if not noun.cluster_wide and request.project != ALL_PROJECTS:
            project = resolution.project_id(view, caller, request.project)
        hide = noun.soft_delete and not watching and not request.show_deleted
        hide = hide and not any(filter.mentions(request.filter, path) for path in _DELETED_PATHS)
        about = filter.pinned(request.filter, "object") if noun.kind is kinds.EVENT else ""
        return cls(caller, noun, project, hide, filter.pinned(request.filter), stored, projected, about)

    def ids(self, view: View) -> list[str]:
        """Return the ids to look at, sorted; those of other projects are left out where that costs nothing."""
        if self.only:
            return [self.only]
        if self.project and "project" in INDEXES.get(self.noun.kind.name, {}):
            own, shared = view.by(self.noun.kind, "project", self.project), shared_ids(view, self.noun.kind, self.project)
            return sorted({*own, *shared}) if shared else own
        return sorted(view.ids(self.noun.kind))

    def in_sight(self, view: View, message: Any) -> bool:
        """Tell whether a record is of the project asked for, and for the caller to see."""
        # Cluster-wide objects of project nouns (jobs and events about nodes) have no project and are everybody's.
        mine = not self.project or not message.project or message.project == self.project
        mine = mine or shared_into(view, message, self.project)
        return mine and permits(view, self.caller, Verb.SEE, message)

    def could(self, view: View, message: Any) -> bool:
        """Tell whether the object of a stored record may pass; only then is it worth projecting."""
        if self.hide_deleted and put_away(view, message):
            return False
        return self.in_sight(view, message) and self.stored(message)

    def shown(self, view: View, record: Record[Any] | None) -> Any:
        """Return the object as it is shown, None when it is not asked for."""
        if record is None or not self.could(view, record.message):
            return None
        projected = self.noun.project(view, record)
        return projected if self.projected(projected) else None


def _refuse_physical(view: View, caller: Caller, noun: Noun[Any], text: str) -> None:
    """What one is not shown, one does not find things by either. Raises Invalid."""
    if not text or sees_nodes(view, caller):
        return
    for path in filter.paths(text):
        if covered(noun.kind.message.DESCRIPTOR, path):
            raise Invalid("filter", f"{path!r} tells of nodes: comparing it takes {SEES_NODES} in the whole cluster")


class Turns:
    """Whose work is long lets others have their turn: `if turns.over: await turns.next()`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end_s = self._loop.time() + SLICE_S

    @property
    def over(self) -> bool:
        """Tell whether this turn has been long enough."""
        return self._loop.time() >= self._end_s

    async def next(self) -> None:
        """Let the others run."""
        await asyncio.sleep(0)
        self._end_s = self._loop.time() + SLICE_S


async def pictured(view: View, selection: Selection) -> AsyncGenerator[Record[Any], None]:
    """Yield the records to look at as they all are at this moment, in the order of ids, also while the view moves on."""
    turns = Turns()
    for record in view.pinned(selection.noun.kind, selection.ids(view)):
        yield record
        if turns.over:
            await turns.next()
