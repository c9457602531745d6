"""Bindings: who has which role where. Nobody gives more than he has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.administrators import keep_one
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.nouns import Noun
from cairn.controller.api.objects import addressed, looked_up
from cairn.controller.model.permits import Caller, Verb, authority_of
from cairn.controller.model.roles import allowed_by
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import Denied, Invalid
from cairn.proto.seams import timestamp
from cairn.proto.subjects import subject_key
from cairn.proto.v1 import binding_pb2, binding_pb2_grpc
from cairn.proto.v1.binding_pb2 import Binding, Subject
from cairn.proto.v1.role_pb2 import Role

# Those that go with a user or project, in its transaction.
BINDINGS_MAX: Final = 40
# Nouns one object of which may be named.
OBJECTS: Final[dict[str, Noun[Any]]] = {
    noun.kind.name: noun for noun in (nouns.VM, nouns.VOLUME, nouns.IMAGE, nouns.VPC, nouns.SUBNET, nouns.PORT)
}


class BindingService(binding_pb2_grpc.BindingServiceServicer):
    """BindingService of proto/v1/binding.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateBinding(self, request: binding_pb2.CreateBindingRequest, context: Any) -> Binding:
        """Give somebody a role in a project, for one object of it, or everywhere."""

        def decide(view: View, caller: Caller) -> Decided[Binding]:
            return self._bound(view, caller, request.binding)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def GetBinding(self, request: binding_pb2.GetBindingRequest, context: Any) -> Binding:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.BINDING, request)

    async def ListBindings(self, request: binding_pb2.ListBindingsRequest, context: Any) -> binding_pb2.ListBindingsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.BINDING, request, binding_pb2.ListBindingsResponse)

    async def DeleteBinding(self, request: binding_pb2.DeleteBindingRequest, context: Any) -> Binding:
        """Take a role back, at once."""

        def decide(view: View, caller: Caller) -> Decided[Binding]:
            record = addressed(view, caller, nouns.BINDING, request, verb=Verb.DELETE)
            resolution.check_etag("etag", record, request.etag, required=False, title="binding")
            binding, txn = record.message, Txn("api")
            drop_binding(txn, view, binding.id)
            keep_one(view, txn, f"whom binding {binding.name!r} is about")
            erased = nouns.BINDING.project(view, record)
            said = [("Unbound", f"{_told(erased)} no longer")]
            return Decided(txn, nouns.BINDING, binding.id, binding.name, binding.project, erased=erased, events=said)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchBindings(
        self, request: binding_pb2.WatchBindingsRequest, context: Any
    ) -> AsyncIterator[binding_pb2.WatchBindingsResponse]:
        """Follow them."""
        responses = self._core.watches.watch(caller_of(context), nouns.BINDING, request, binding_pb2.WatchBindingsResponse)
        async for response in responses:
            yield response

    def _bound(self, view: View, caller: Caller, given: Binding) -> Decided[Binding]:
        """Raises Refused."""
        id, now = self._core.ids.new(kinds.BINDING.id_prefix), timestamp(self._core.clock.now())
        role: Role = looked_up(view, caller, nouns.ROLE, "", given.spec.role, "binding.spec.role")
        name = validation.name("binding.name", given.name or f"{role.name[:50]}-{id.rpartition('-')[2]}")
        validation.labels("binding.labels", given.labels)
        project = resolution.project_id(view, caller, given.project) if given.project else ""
        binding = Binding(id=id, name=name, project=project, labels=given.labels, create_time=now, update_time=now)
        binding.spec.role = role.id
        txn = Txn("api").check(kinds.ROLE, role.id, view.revision_of(kinds.ROLE, role.id))
        _subject(txn, view, caller, given.spec.subject, binding.spec.subject)
        binding.spec.object = _object(txn, view, caller, project, given.spec.object)
        resolution.admit(view, caller, Verb.CREATE, nouns.BINDING, binding)
        refuse_giving(view, caller, role, binding)
        resolution.claim(txn, view, caller, nouns.BINDING, "", name, id)
        txn.create(kinds.BINDING, id, binding)
        shown = nouns.BINDING.of(view.fork(txn), id)
        assert shown is not None, "the fork has it"
        return Decided(txn, nouns.BINDING, id, name, project, events=[("Bound", _told(shown))])


def drop_binding(txn: Txn, view: View, id: str) -> None:
    """Remove a binding and its name."""
    binding = view.get(kinds.BINDING, id)
    txn.check(kinds.BINDING, id, view.revision_of(kinds.BINDING, id)).delete(kinds.BINDING, id)
    if binding is not None:
        resolution.release(txn, view, nouns.BINDING, "", binding.name, id)


def _subject(txn: Txn, view: View, caller: Caller, given: Subject, made: Subject) -> None:
    """Fill in who is meant. Raises Invalid, NotFound."""
    match given.WhichOneof("who"):
        case "user":
            made.user = looked_up(view, caller, nouns.USER, "", given.user, "binding.spec.subject.user").id
            txn.check(kinds.USER, made.user, view.revision_of(kinds.USER, made.user))
        case "group":
            made.group = validation.name("binding.spec.subject.group", given.group)
        case "everyone" if given.everyone:
            made.everyone = True
        case _:
            raise Invalid("binding.spec.subject", "say who: a user, a group, or everyone")


def _object(txn: Txn, view: View, caller: Caller, project: str, text: str) -> str:
    """Return "<noun>/<id>" of the one object that is meant, empty for all. Raises Invalid, NotFound."""
    if not text:
        return ""
    kind, _, name = text.partition("/")
    noun = OBJECTS.get(kind)
    if noun is None or not name:
        raise Invalid("binding.spec.object", f"{text!r} is not <noun>/<id or name>; nouns are {', '.join(sorted(OBJECTS))}")
    if not project:
        raise Invalid("binding.project", "an object is of a project: say which")
    record = resolution.live(view, caller, noun, project, name, field="binding.spec.object")
    if record.message.project != project:
        raise Invalid("binding.spec.object", f"{noun.title} {name!r} is of another project")
    txn.check(noun.kind, record.message.id, record.mod_revision)
    return f"{kind}/{record.message.id}"


def refuse_giving(view: View, caller: Caller, role: Role, binding: Binding) -> None:
    """Nobody gives what he has not, by binding it or by letting somebody into a group that has it. Raises Denied."""
    if caller.kind != "user":
        return
    mine = authority_of(view, caller)
    lacking = [each for each in allowed_by(role) if not mine.allows(each, binding.project, binding.spec.object)]
    if lacking:
        say = f"user {caller.id!r} may not {min(lacking)} there, and so cannot give role {role.name!r}, which permits it"
        raise Denied(say)


def refuse_letting_in(view: View, caller: Caller, groups: Iterable[str]) -> None:
    """Whoever is let into a group is given what is bound to it. Raises Denied."""
    for group in sorted(set(groups)):
        for id in view.by(kinds.BINDING, "subject", subject_key(Subject(group=group))):
            binding = view.get(kinds.BINDING, id)
            role = view.get(kinds.ROLE, binding.spec.role) if binding is not None else None
            if binding is not None and role is not None:
                refuse_giving(view, caller, role, binding)


def _told(binding: Binding) -> str:
    where = binding.status.object_name or ("in its project" if binding.project else "in the whole cluster")
    return f"{binding.status.subject_name} has role {binding.status.role_name} {where}"
