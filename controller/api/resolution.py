"""From what a request calls an object to the object: ids, names, projects; and the claims that keep names unique.

What the caller may not see is not found, with the same words as what is not there; what he may see and not do is Denied.

A name is claimed by a record "<project>/<kind>/<name>" created with the object in one transaction, so two objects cannot
get one name, whichever controllers they were made through. Soft deletion releases the claim; undelete claims it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from cairn.controller.api import nouns
from cairn.controller.api.nouns import CLUSTER_WIDE, DEFAULT_PROJECT, DEFAULT_PROJECT_ID, Noun
from cairn.controller.model import sharing
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.store.base import Record, Txn, View
from cairn.proto import kinds
from cairn.proto.errors import AlreadyExists, BadState, Denied, Invalid, Moved, NotFound, TryAgain
from cairn.proto.v1.cluster_pb2 import NameClaim
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
# To be called by name, and be found.
_SEEN: Final = (Verb.SEE, Verb.USE)


def claim_id(noun: Noun[M], project: str, name: str) -> str:
    """Return the id of a name claim."""
    return f"{CLUSTER_WIDE if noun.cluster_wide else project}/{noun.kind.name}/{name}"


def project_id(view: View, caller: Caller, text: str) -> str:
    """Return the id of a project given by id or name; empty: the default one. Raises NotFound."""
    if not text:
        # Who has nothing in it may name by their ids what he has elsewhere.
        return DEFAULT_PROJECT_ID
    try:
        id = DEFAULT_PROJECT_ID if text == DEFAULT_PROJECT else text
        return str(find(view, caller, nouns.PROJECT, "", id).message.id)
    except NotFound as error:
        raise NotFound("project", text, f"project {text!r} does not exist") from error


def usable_project(txn: Txn, view: View, id: str) -> None:
    """Have a transaction that makes something in a project stand on it. Raises BadState: it is being deleted."""
    project = view.get(kinds.PROJECT, id)
    if project is not None and project.HasField("delete_time"):
        raise BadState("project", project.name, f"project {project.name!r} is being deleted")
    txn.check(kinds.PROJECT, id, view.revision_of(kinds.PROJECT, id))


def find(
    view: View,
    caller: Caller,
    noun: Noun[M],
    project: str,
    text: str,
    *,
    verb: Verb = Verb.SEE,
    field: str = "id",
    deleted: bool = False,
) -> Record[Any]:
    """Return the record of an object given by id or name, of those the caller may see; verb: what he wants to do to it.

    project: project id, ignored for ids; field: what Invalid names when the text is empty; deleted: a name may also be that of
    a soft-deleted object when nothing else has it (the one deleted last). Raises NotFound, Denied, Invalid.
    """
    if not text:
        raise Invalid(field, f"which {noun.title}? Give an id or a name")
    record = _found(view, noun, project, text, deleted=deleted)
    if record is None and view.harmed:
        refuse_unreadable_name(view, noun, project, text)
    seen = record is not None and any(permits(view, caller, each, record.message) for each in (Verb.SEE, verb) if each in _SEEN)
    if record is None or not seen:
        raise NotFound(noun.kind.name, text, f"{noun.title} {text!r} does not exist")
    if verb is not Verb.SEE:
        admit(view, caller, verb, noun, record.message)
    return record


def admit(view: View, caller: Caller, verb: Verb, noun: Noun[Any], message: Any) -> None:
    """Refuse what the caller may see but not do. Raises Denied."""
    if not permits(view, caller, verb, message):
        raise Denied(f"{caller.kind} {caller.id!r} may not {verb} {noun.title} {message.name or message.id!r}")


def live(
    view: View, caller: Caller, noun: Noun[M], project: str, text: str, *, verb: Verb = Verb.SEE, field: str = "id"
) -> Record[Any]:
    """Like find, for an object that is going to be used: BadState when it is deleted or being deleted."""
    record = find(view, caller, noun, project, text, verb=verb, field=field)
    if record.message.HasField("delete_time"):
        raise BadState(noun.kind.name, record.message.name, f"{noun.title} {record.message.name!r} is deleted")
    return record


def _found(view: View, noun: Noun[M], project: str, text: str, *, deleted: bool) -> Record[Any] | None:
    record: Record[Any] | None = view.record(noun.kind, text)
    for key in _claims(noun, project, text) if record is None else ():
        claim = view.get(kinds.NAME, key)
        record = view.record(noun.kind, claim.id) if claim is not None and record is None else record
    if record is None and noun is nouns.SUBNET and "/" in text:
        record = _shared_subnet(view, project, *text.split("/", 1))
    if record is None and deleted and noun.soft_delete:
        record = _deleted(view, noun, project, text)
    return record


def _claims(noun: Noun[Any], project: str, name: str) -> Iterator[str]:
    """Yield the ids of the claims that may say what is called so in a project, its own first."""
    yield claim_id(noun, project, name)
    if noun.shareable:
        yield claim_id(noun, sharing.ALL, name)


def _shared_subnet(view: View, project: str, vpc: str, name: str) -> Record[Any] | None:
    """Return the subnet that is called so in a VPC: names of subnets are of the VPC's project, wherever that is shared."""
    found = _found(view, nouns.VPC, project, vpc, deleted=False)
    ids = view.by(kinds.SUBNET, "vpc", found.message.id) if found is not None else []
    records = [view.record(kinds.SUBNET, id) for id in ids]
    return next((each for each in records if each is not None and each.message.name == name), None)


def refuse_unreadable_name(view: View, noun: Noun[M], project: str, text: str) -> None:
    """Do not call missing what is called so, by id or name, and cannot be read. Raises TryAgain."""
    refuse_unreadable(view, noun, text, text)
    for key in _claims(noun, project, text):
        claim = view.get(kinds.NAME, key)
        refuse_unreadable(view, noun, claim.id if claim is not None else "", text)
        if key in view.unreadable(kinds.NAME):
            raise TryAgain(f"who has the name {text!r} cannot be read; `cairn cluster fsck` lists what is damaged")


def refuse_unreadable(view: View, noun: Noun[Any], id: str, text: str = "") -> None:
    """Do not call an object gone whose record is there and cannot be read. Raises TryAgain."""
    if id in view.unreadable(noun.kind):
        say = f"the record of {noun.title} {text or id!r} cannot be read; `cairn cluster fsck` lists what is damaged"
        raise TryAgain(say)


def refuse_unknown(view: View, noun: Noun[Any], ids: Iterable[str]) -> None:
    """Do not take for absent what cannot be read, and what it was before is not known either. Raises TryAgain."""
    for id in ids:
        if view.get(noun.kind, id) is None:
            refuse_unreadable(view, noun, id)


def _deleted(view: View, noun: Noun[M], project: str, name: str) -> Record[Any] | None:
    """Return the one deleted last of those that had this name."""
    records = [view.record(noun.kind, id) for id in view.by(noun.kind, "deleted", f"{project}/{name}")]
    gone: list[Record[Any]] = [record for record in records if record is not None]
    return max(gone, key=lambda record: record.message.delete_time.ToNanoseconds(), default=None)


def claim(txn: Txn, view: View, caller: Caller, noun: Noun[M], project: str, name: str, id: str) -> None:
    """Claim a name for an object in a project. Raises AlreadyExists."""
    key = claim_id(noun, project, name)
    for each in _claims(noun, project, name):
        held = view.get(kinds.NAME, each)
        if held is not None and held.id != id:
            holder = view.get(noun.kind, held.id)
            known = f" ({held.id})" if holder is not None and permits(view, caller, Verb.SEE, holder) else ""
            raise AlreadyExists(noun.kind.name, name, f"{noun.title} {name!r} exists already{known}")
        # What is shared with all projects takes its name in each.
        txn.check(kinds.NAME, each, view.revision_of(kinds.NAME, each))
    owner = CLUSTER_WIDE if noun.cluster_wide else project
    record = NameClaim(kind=noun.kind.name, project=owner, name=name, id=id)
    txn.put(kinds.NAME, key, record)


def release(txn: Txn, view: View, noun: Noun[M], project: str, name: str, id: str) -> None:
    """Give a name back, when this object holds it."""
    key = claim_id(noun, project, name)
    held = view.get(kinds.NAME, key)
    if held is not None and held.id == id:
        txn.check(kinds.NAME, key, view.revision_of(kinds.NAME, key)).delete(kinds.NAME, key)


def check_etag(field: str, record: Record[Any], etag: str, *, required: bool, title: str) -> None:
    """Refuse a change decided on an older state. Raises Moved, Invalid."""
    if not etag:
        if required:
            raise Invalid(field, "give the etag of the object as you read it, or set allow_stale")
        return
    if etag != str(record.mod_revision):
        name = record.message.name or record.message.id
        raise Moved(f"{title} {name!r} has changed since you read it (etag {etag}, now {record.mod_revision}): read it again")
