"""Names of what is shared: taken in each project that it is shared with.

A name means one thing in a project, also of what is shared into it: sharing claims the name there, as an object of that
project's own would. What is shared with all projects claims it once for all, and others claim on that not being there. One
who makes an object of that name at the same moment would not be seen, nor conflict; so the claim for all is made first
(reserve), and on a picture that contains it nobody else may have the name. Reserved and never used, its controller having
died, it is garbage (controller/reconcilers/garbage.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from cairn.controller.api import resolution
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.nouns import Noun
from cairn.controller.model.permits import Caller
from cairn.controller.model.sharing import ALL, places
from cairn.controller.store.base import Conflict, Indeterminate, Txn, Unavailable, View
from cairn.proto import kinds
from cairn.proto.errors import AlreadyExists, TryAgain
from cairn.proto.seams import timestamp
from cairn.proto.v1.cluster_pb2 import NameClaim
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class Unreserved(TryAgain):
    """A name that is to be taken in all projects is not reserved yet."""

    def __init__(self, caller: Caller, noun: Noun[Any], name: str, id: str) -> None:
        super().__init__(f"the name {name!r} is being taken in all projects; try again")
        self.caller, self.noun, self.name, self.id = caller, noun, name, id


def move_names(txn: Txn, view: View, caller: Caller, noun: Noun[Any], old: Any, new: Any) -> None:
    """Have the name of a shared object where it is shared, and nowhere else. Raises AlreadyExists, Unreserved.

    Also a plan takes a reserved name: it holds as long as the reservation does, so that what it was decided on stays true.
    """
    before, after = {(each, old.name) for each in places(old)}, {(each, new.name) for each in places(new)}
    for place, name in sorted(after - before):
        if place == ALL:
            _refuse_others(view, noun, name, new)
            if _reserved(view, noun, name, new.id) is None:
                raise Unreserved(caller, noun, name, new.id)
        resolution.claim(txn, view, caller, noun, place, name, new.id)
    for place, name in sorted(before - after):
        resolution.release(txn, view, noun, place, name, old.id)


def _reserved(view: View, noun: Noun[Any], name: str, id: str) -> NameClaim | None:
    held = view.get(kinds.NAME, resolution.claim_id(noun, ALL, name))
    return held if held is not None and held.id == id else None


def _refuse_others(view: View, noun: Noun[Any], name: str, message: Any) -> None:
    """Raises AlreadyExists."""
    for project in view.ids(kinds.PROJECT):
        held = view.get(kinds.NAME, resolution.claim_id(noun, project, name))
        if held is not None and held.id != message.id:
            say = f"another project has {noun.title} {name!r}: rename this one, or share it with single projects"
            raise AlreadyExists(noun.kind.name, name, say)


async def run(core: Core, request: Any, caller: Caller, decide: Callable[[View, Caller], Decided[M]]) -> M:
    """Run a mutation that may take a name in all projects. Raises Refused."""
    try:
        return await core.mutations.run(request, caller, decide)
    except Unreserved as needed:
        await _reserve(core, needed)
    return await core.mutations.run(request, caller, decide)


async def _reserve(core: Core, needed: Unreserved) -> None:
    """Claim a name for all projects before anything has it. Raises TryAgain, AlreadyExists."""
    view, txn = core.cache.view, Txn("api")
    key = resolution.claim_id(needed.noun, ALL, needed.name)
    resolution.claim(txn, view, needed.caller, needed.noun, ALL, needed.name, needed.id)
    record = NameClaim(kind=needed.noun.kind.name, project=ALL, name=needed.name, id=needed.id)
    record.reserve_time.CopyFrom(timestamp(core.clock.now()))
    # What it is for must be there, or nobody would give it back.
    txn.put(kinds.NAME, key, record).check(needed.noun.kind, needed.id, view.revision_of(needed.noun.kind, needed.id))
    try:
        await core.cache.wait_for(await core.store.commit(txn))
    except (Conflict, Indeterminate, Unavailable) as error:
        raise TryAgain(needed.say) from error


def release_names(txn: Txn, view: View, noun: Noun[Any], message: Any) -> None:
    """Give back the name of what is removed, everywhere."""
    for project in (message.project, *places(message)):
        resolution.release(txn, view, noun, project, message.name, message.id)
