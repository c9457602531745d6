"""Removing what others refer to: VPCs, subnets, images. Refused while in use, else gone at once.

A reference may be made at the same moment through another controller, and the two transactions would not touch a common
key. So:

    mark     the record gets a delete_time; whoever refers to it checks its revision, so from here on new references conflict
    look     on a view that contains the mark: still unused? no -> the mark is taken back and the call is refused
    remove   the record, its name and what else it held

What is marked is what is removed: the name is looked up once, and only when no earlier call with this request id was answered;
else a repeated call would mark, and remove unlooked at, what somebody has made under that name since.

A controller that dies between leaves the mark: the object says "being deleted", takes no new references, and the repeated
call (or deleting it again) finishes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

from cairn.controller.api import resolution
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.nouns import Noun
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.store.base import Conflict, Indeterminate, Record, Txn, Unavailable, View
from cairn.proto import kinds, log
from cairn.proto.errors import Refused, TryAgain
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import timestamp
from google.protobuf.message import Message

_log = log.logger("api")
# Records that refer to what is erased here.
_REFERRING: Final[tuple[AnyKind, ...]] = (
    kinds.VM, kinds.VOLUME, kinds.PORT, kinds.SUBNET, kinds.VPC, kinds.IMAGE, kinds.PLACEMENT, kinds.VOLUME_PLACEMENT,
    kinds.IMAGE_CONTENT,
)  # fmt: skip
M = TypeVar("M", bound=Message)


class Erasure(Generic[M]):
    """Deletes objects of one noun.

    in_use refuses (BadState) while something refers to the record; release adds to the removing transaction what it held.
    """

    def __init__(
        self,
        core: Core,
        noun: Noun[M],
        in_use: Callable[[View, Caller, Record[M]], None],
        release: Callable[[Txn, View, Record[M]], None],
    ) -> None:
        self._core, self._noun, self._refuse_used, self._release = core, noun, in_use, release

    async def run(self, request: Any, caller: Caller) -> M:
        """Answer a Delete request. Raises Refused."""
        if request.validate_only:
            return await self._core.mutations.run(request, caller, lambda view, by: self._named(view, by, request))
        # A name may have been given again since the first call: what it means is asked only when there was none.
        answer: M | None = await self._core.mutations.again(request, caller)
        if answer is not None:
            return answer
        try:
            before, marked = await self._mark(caller, request)
        except Refused as error:
            if not error.lasting:
                raise
            # Unless it is answered meanwhile; what somebody makes under that name from now on is not meant.
            return cast("M", await self._core.mutations.refuse(request, caller, error))
        name = getattr(marked.message, "name", "")
        touched = {self._noun.kind.key(self._id(marked)): (before.mod_revision, marked.mod_revision)}

        def decide(view: View, caller: Caller) -> Decided[M]:
            record = self._find(view, caller, request, self._id(marked))
            if not record.message.HasField("delete_time"):
                # Without the mark nobody can have looked.
                raise TryAgain(f"{self._noun.title} {name!r} is being changed by someone else; try again")
            return self._decide(view, caller, record)

        try:
            self._in_use(self._core.cache.view, caller, marked)
            return await self._core.mutations.run(request, caller, decide, touched)
        except Refused as error:
            await self._unmark(marked)
            if not error.lasting:
                raise
            return cast("M", await self._core.mutations.refuse(request, caller, error))

    def _in_use(self, view: View, caller: Caller, record: Record[M]) -> None:
        """Refuse while something refers to the record, or that cannot be told. Raises Refused."""
        for kind in _REFERRING if view.harmed else ():
            for id, each in view.unreadable(kind).items():
                if not each.kept:
                    say = (
                        f"whether {self._noun.title} {self._id(record)} is used cannot be told: {kind.name} {id} cannot be read"
                    )
                    raise TryAgain(f"{say}; see `cairn cluster fsck`")
        self._refuse_used(view, caller, record)

    def _named(self, view: View, caller: Caller, request: Any) -> Decided[M]:
        """Decide about the object as the request names it."""
        record = self._find(view, caller, request, request.id)
        message: Any = record.message
        if not message.HasField("delete_time"):
            resolution.check_etag("etag", record, request.etag, required=False, title=self._noun.title)
        return self._decide(view, caller, record)

    def _find(self, view: View, caller: Caller, request: Any, text: str) -> Record[M]:
        project = "" if self._noun.cluster_wide else resolution.project_id(view, caller, request.project)
        return resolution.find(view, caller, self._noun, project, text, verb=Verb.DELETE)

    def _decide(self, view: View, caller: Caller, record: Record[M]) -> Decided[M]:
        """Decide to remove an object."""
        message: Any = record.message
        self._in_use(view, caller, record)
        txn = Txn("api").check(self._noun.kind, message.id, record.mod_revision).delete(self._noun.kind, message.id)
        self._release(txn, view, record)
        said = [("Deleted", f"{self._noun.title} {message.name} was deleted")]
        last = self._noun.project(view, record)
        return Decided(txn, self._noun, message.id, message.name, message.project, erased=last, events=said)

    async def _mark(self, caller: Caller, request: Any) -> tuple[Record[M], Record[M]]:
        """Mark the record; return it before and after. Raises Refused."""
        view = await self._core.mutations.freshen()
        # A plan is about the object it was made for, whatever has that name now.
        planned = self._core.mutations.planned(view, caller, request)
        record = self._find(view, caller, request, planned or request.id)
        message: Any = record.message
        if message.HasField("delete_time"):
            return record, record
        resolution.check_etag("etag", record, request.etag, required=False, title=self._noun.title)
        self._in_use(view, caller, record)
        marked = self._copy(message)
        marked.delete_time.CopyFrom(timestamp(self._core.clock.now()))
        return record, await self._write(record, marked)

    async def _unmark(self, marked: Record[M]) -> None:
        """Take the mark back, unless the record has moved on."""
        record = self._core.cache.view.record(self._noun.kind, self._id(marked))
        if record is None or record.mod_revision != marked.mod_revision:
            return
        unmarked = self._copy(record.message)
        unmarked.ClearField("delete_time")
        try:
            await self._write(record, unmarked)
        except (Refused, Unavailable) as error:
            _log.warning("mark left", object=self._id(marked), error=str(error))

    @staticmethod
    def _id(record: Record[M]) -> str:
        message: Any = record.message
        return str(message.id)

    def _copy(self, message: Any) -> Any:
        result: Any = self._noun.kind.message()
        result.CopyFrom(message)
        return result

    async def _write(self, record: Record[M], message: Any) -> Record[M]:
        """Replace the record; return it as written. Raises TryAgain."""
        txn = Txn("api").check(self._noun.kind, message.id, record.mod_revision).put(self._noun.kind, message.id, message)
        try:
            revision = await self._core.store.commit(txn)
        except (Conflict, Indeterminate) as error:
            raise TryAgain(f"{self._noun.title} {message.name!r} is being changed by someone else; try again") from error
        await self._core.cache.wait_for(revision)
        written = self._core.cache.view.record(self._noun.kind, message.id)
        if written is None:
            raise TryAgain(f"{self._noun.title} {message.name!r} is being deleted by someone else; try again")
        return written
