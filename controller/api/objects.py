"""What creating, updating and deleting has in common for all nouns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from cairn.controller.api import masks, nouns, resolution, validation
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.mutation import Act
from cairn.controller.api.nouns import DEFAULT_PROJECT, Noun
from cairn.controller.api.shared_names import move_names
from cairn.controller.model.lifetime import put_away
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.store.base import Conflict, Indeterminate, Record, Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, NotFound
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.cluster_pb2 import NameClaim
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

# How long deleted VMs and volumes can be brought back.
RETENTION: Final = timedelta(hours=2)

# (view, caller, transaction, new message, old record): adds to the transaction, corrects the message, or refuses.
Amend = Callable[[View, Caller, Txn, Any, Record[Any]], None]


def begin(view: View, caller: Caller, core: Core, noun: Noun[M], given: Any) -> tuple[Decided[M], Any]:
    """Start a new object: checked name and labels, project, right, id, times, the claim of its name. Raises Refused."""
    field = noun.kind.name
    name = validation.name(f"{field}.name", given.name)
    validation.labels(f"{field}.labels", given.labels)
    project = "" if noun.cluster_wide else resolution.project_id(view, caller, given.project or DEFAULT_PROJECT)
    id = core.ids.new(noun.kind.id_prefix)
    now = timestamp(core.clock.now())
    made: Any = noun.kind.message(id=id, name=name, project=project, labels=given.labels, create_time=now, update_time=now)
    resolution.admit(view, caller, Verb.CREATE, noun, made)
    txn = Txn("api")
    if not noun.cluster_wide:
        # One that is being deleted takes nothing new.
        resolution.usable_project(txn, view, project)
    resolution.claim(txn, view, caller, noun, project, name, id)
    decided = Decided(txn, noun, id, name, project, events=[("Created", f"{noun.title} {name} was asked for")])
    return decided, made


def updated(
    view: View, caller: Caller, core: Core, noun: Noun[M], request: Any, rules: UpdateRules, amend: Amend | None = None
) -> tuple[Decided[M], Any, Record[Any]]:
    """Apply an Update request's mask; return the decision, the new message and the old record. Raises Refused."""
    field = noun.kind.name
    given = getattr(request, field)
    project = "" if noun.cluster_wide else resolution.project_id(view, caller, given.project)
    record = resolution.live(view, caller, noun, project, given.id or given.name, verb=Verb.UPDATE, field=f"{field}.id")
    old = record.message
    resolution.check_etag(f"{field}.etag", record, given.etag, required=not request.allow_stale, title=noun.title)
    new: Any = noun.kind.message()
    new.CopyFrom(old)
    masks.copied(new, given, request.update_mask.paths, rules, f"{field}.")
    validation.labels(f"{field}.labels", new.labels)
    txn = Txn("api").check(noun.kind, old.id, record.mod_revision)
    said = ("Updated", f"{noun.title} {old.name} was changed")
    if new.name != old.name:
        rename(view, caller, noun, txn, old, new)
        said = ("Renamed", f"{noun.title} {old.name} is called {new.name} now")
    if amend is not None:
        amend(view, caller, txn, new, record)
    new.update_time.CopyFrom(timestamp(core.clock.now()))
    txn.put(noun.kind, old.id, new)
    return Decided(txn, noun, old.id, new.name, old.project, events=[said]), new, record


def rename(view: View, caller: Caller, noun: Noun[Any], txn: Txn, old: Any, new: Any) -> None:
    """Move the claim of an object's name. Raises Invalid, AlreadyExists; BadState of a disk that has none for now."""
    validation.name(f"{noun.kind.name}.name", new.name)
    if put_away(view, old):
        say = f"{noun.title} {old.name!r} is deleted with its VM: bring that back, or keep the disk alone, first"
        raise BadState(noun.kind.name, old.name, say)
    resolution.claim(txn, view, caller, noun, old.project, new.name, old.id)
    resolution.release(txn, view, noun, old.project, old.name, old.id)
    if noun.shareable:
        move_names(txn, view, caller, noun, old, new)


def addressed(
    view: View, caller: Caller, noun: Noun[Any], request: Any, *, verb: Verb = Verb.SEE, deleted: bool = False
) -> Record[Any]:
    """Return the record a request names by `id` and `project`. Raises NotFound, Denied, BadState (deleted, unless allowed)."""
    project = "" if noun.cluster_wide else resolution.project_id(view, caller, request.project)
    if deleted:
        return resolution.find(view, caller, noun, project, request.id, verb=verb, deleted=True)
    return resolution.live(view, caller, noun, project, request.id, verb=verb)


def looked_up(view: View, caller: Caller, noun: Noun[Any], project: str, text: str, field: str) -> Any:
    """Return a usable object that a field of a request refers to; NotFound says which field."""
    try:
        return resolution.live(view, caller, noun, project, text, verb=Verb.USE, field=field).message
    except NotFound as error:
        raise NotFound(error.kind, error.name, f"{field}: {error.say}") from error


def mark_deleted(core: Core, message: Any, *, purge: bool) -> None:
    """Set delete_time (once) and purge_time: the same when there is to be no retention, whoever's clock decides about that."""
    now = core.clock.now()
    if not message.HasField("delete_time"):
        message.delete_time.CopyFrom(timestamp(now))
    message.update_time.CopyFrom(timestamp(now))
    message.purge_time.CopyFrom(message.delete_time if purge else timestamp(now + RETENTION))


async def ensure(core: Core, clock: Clock, noun: Noun[Any], message: Any) -> None:
    """Make a cluster-wide object that comes with us, unless it exists; controllers may all try at once. Raises StoreError.

    message: with its id, which is the same on every controller, and its name. One that cannot be read exists: who has to repair
    it needs a controller. One that is gone may have left its name.
    """
    view, name = core.cache.view, resolution.claim_id(noun, "", message.name)
    while view.get(noun.kind, message.id) is None:
        if message.id in view.unreadable(noun.kind) or name in view.unreadable(kinds.NAME):
            return
        now = timestamp(clock.now())
        message.create_time.CopyFrom(now)
        message.update_time.CopyFrom(now)
        claim = NameClaim(kind=noun.kind.name, project=nouns.CLUSTER_WIDE, name=message.name, id=message.id)
        txn = Txn("api").create(noun.kind, message.id, message)
        txn.check(kinds.NAME, name, view.revision_of(kinds.NAME, name)).put(kinds.NAME, name, claim)
        act = Act(f"Ensure{noun.kind.message.DESCRIPTOR.name}", f"{noun.kind.name}/{message.id}", message.name)
        try:
            await core.cache.wait_for(await core.mutations.write(view, Caller.system("controller"), txn, act))
        except (Conflict, Indeterminate):
            await core.mutations.freshen()
        view = core.cache.view
