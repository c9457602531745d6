"""Sharing images and VPCs with other projects. What that permits: model/sharing.py; what they are called: shared_names.py."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.nouns import Noun
from cairn.controller.api.objects import addressed
from cairn.controller.api.shared_names import move_names
from cairn.controller.model.permits import Caller, Verb, sees_project
from cairn.controller.model.sharing import SHAREABLE, places
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import several
from cairn.proto.errors import BadState, Invalid
from cairn.proto.seams import timestamp
from cairn.proto.v1.project_pb2 import Sharing
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
PROJECTS_MAX: Final = 32
# Things of others that a project that is deleted is taken out of, in its transaction.
TAKEN_OUT_MAX: Final = 16


def refuse_sharing(spec: Any, field: str) -> None:
    """Refuse sharing what is only made. Raises Invalid."""
    if spec.HasField("sharing"):
        raise Invalid(f"{field}.spec.sharing", "share it once it is there")


def share(view: View, caller: Caller, core: Core, noun: Noun[Any], request: Any) -> Decided[Any]:
    """Decide with whom something is shared from now on. Raises Refused."""
    record = addressed(view, caller, noun, request, verb=Verb.SHARE)
    old: Any = record.message
    resolution.check_etag("etag", record, request.etag, required=False, title=noun.title)
    new: Any = noun.kind.message()
    new.CopyFrom(old)
    txn = Txn("api").check(noun.kind, old.id, record.mod_revision)
    new.spec.sharing.CopyFrom(_resolved(view, caller, txn, old, request.sharing))
    if not any(places(new)):
        new.spec.ClearField("sharing")
    move_names(txn, view, caller, noun, old, new)
    new.update_time.CopyFrom(timestamp(core.clock.now()))
    txn.put(noun.kind, old.id, new)
    said = ("Shared", f"{noun.title} {old.name} is shared {_with(new.spec.sharing)}")
    return Decided(txn, noun, old.id, old.name, old.project, events=[said])


def _with(sharing: Sharing) -> str:
    if sharing.all:
        return "with all projects"
    return f"with {several(len(sharing.projects), 'project')}" if sharing.projects else "with nobody else any more"


def _resolved(view: View, caller: Caller, txn: Txn, old: Any, given: Sharing) -> Sharing:
    """Return it with ids, sorted. Raises Invalid, NotFound, BadState."""
    validation.at_most("sharing.projects", given.projects, PROJECTS_MAX, "projects")
    ids: list[str] = []
    for number, text in enumerate(given.projects):
        # What it is shared with already may be none of the caller's.
        known = text in old.spec.sharing.projects
        id = text if known else resolution.project_id(view, caller, text)
        if id == old.project:
            raise Invalid(f"sharing.projects[{number}]", "is the project it is of: only others need it shared")
        if not known:
            resolution.usable_project(txn, view, id)
        ids.append(id)
    # Whom he does not see he cannot have left out.
    unseen = (each for each in old.spec.sharing.projects if not sees_project(view, caller, each))
    return Sharing(projects=sorted({*ids, *unseen}), all=given.all)


def take_out(txn: Txn, view: View, project: str) -> None:
    """Have a project that is removed not be shared with any more. Raises BadState."""
    shared = [(kind, id) for kind in SHAREABLE for id in view.by(kind, "shared", project)]
    if len(shared) > TAKEN_OUT_MAX:
        say = f"{len(shared)} images and VPCs are shared with it, and {TAKEN_OUT_MAX} are taken back with it at most"
        raise BadState("project", project, f"{say}: have some taken back first (`cairn image unshare`, `cairn vpc unshare`)")
    for kind, id in shared:
        record: Record[Any] | None = view.record(kind, id)
        if record is None:
            continue
        new: Any = kind.message()
        new.CopyFrom(record.message)
        new.spec.sharing.projects.remove(project)
        if not any(places(new)):
            new.spec.ClearField("sharing")
        txn.check(kind, id, record.mod_revision).put(kind, id, new)
        resolution.release(txn, view, nouns.BY_KIND[kind.name], project, new.name, id)
