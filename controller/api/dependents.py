"""Which projected objects change when a record changes: the reverse of what status.py and vm_status.py read.

A table: kind of the changed record -> function of (view, id of the record) that yields (kind, id) of API objects. The view
is one after the change, so of a record that is gone only its id is known; ids are built to tell enough. Too many is
harmless (an object is sent again), too few would leave a watcher with a stale sentence: tests/unit/test_api_status.py checks
the table against the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from cairn.controller.api.nouns import BY_KIND
from cairn.controller.model.assigned import VOLUME_WORK, assigned_to
from cairn.controller.model.owners import ports_of, vm_of
from cairn.controller.model.quotas import DEFAULTS_ID, quota_id
from cairn.controller.model.where import vms_on, volumes_on, where
from cairn.controller.store.base import View
from cairn.controller.store.sums import COUNTED, holders
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.kinds import Kind
from cairn.proto.subjects import subject_key
from cairn.proto.v1.agent_pb2 import Observed, Unknown
from cairn.proto.v1.binding_pb2 import Subject
from google.protobuf.message import Message

Affected = tuple[str, str]
# A project says how many of these live in it.
_SHOWN_BY_PROJECTS: Final = (kinds.VM, kinds.VOLUME, kinds.IMAGE, kinds.VPC)
Rule = Callable[[View, str], Iterator[Affected]]


def _vm(view: View, id: str) -> Iterator[Affected]:
    yield "vm", id
    yield from _volumes(view, id)
    for port in ports_of(view, kinds.VM, id):
        yield "port", port


def _volumes(view: View, vm: str) -> Iterator[Affected]:
    """Those attached to a VM, or taken from it before, or that its guest may have open."""
    indexes = (kinds.VOLUME, "vm"), (kinds.VOLUME, "former_vm"), (kinds.OPENING, "vm")
    for volume in (id for kind, index in indexes for id in view.by(kind, index, vm)):
        yield "volume", volume


def _placement(view: View, vm: str) -> Iterator[Affected]:
    yield from _vm(view, vm)
    # Where it was before is not known any more: its former node shows one VM less.
    for node in where(view, vm).nodes or list(view.ids(kinds.NODE)):
        yield "node", node


def _node(view: View, id: str) -> Iterator[Affected]:
    yield "node", id
    for vm in vms_on(view, id):
        yield from _vm(view, vm)
    for volume in (*volumes_on(view, id), *assigned_to(view, id, VOLUME_WORK), *view.by(kinds.OPENING, "node", id)):
        yield "volume", volume


def _node_record(view: View, id: str) -> Iterator[Affected]:
    """Its name is shown by images too."""
    yield from _node(view, id)
    for image in list(view.ids(kinds.IMAGE)):
        yield "image", image


def _node_alone(_view: View, id: str) -> Iterator[Affected]:
    yield "node", id


def _pool(_view: View, id: str) -> Iterator[Affected]:
    """A node shows what is claimed of its own pool."""
    type, _, node = id.partition("/")
    if type == LOCAL_POOL:
        yield "node", node


def _image(view: View, id: str) -> Iterator[Affected]:
    yield "image", id
    for vm in view.by(kinds.VM, "image", id):
        yield "vm", vm


def _image_alone(_view: View, id: str) -> Iterator[Affected]:
    yield "image", id


def _job(view: View, id: str) -> Iterator[Affected]:
    yield "job", id
    job = view.get(kinds.JOB, id)
    for image in [job.spec.target] if job is not None else list(view.ids(kinds.IMAGE)):
        yield "image", image


def _vpc(view: View, id: str) -> Iterator[Affected]:
    yield "vpc", id
    for subnet in view.by(kinds.SUBNET, "vpc", id):
        yield "subnet", subnet


def _subnet(view: View, id: str) -> Iterator[Affected]:
    yield "subnet", id
    subnet = view.get(kinds.SUBNET, id)
    # Of a subnet that is gone, its VPC is not known any more: any may have one subnet less.
    for vpc in [subnet.spec.vpc] if subnet is not None else list(view.ids(kinds.VPC)):
        yield "vpc", vpc
    for port in view.by(kinds.PORT, "subnet", id):
        yield "port", port
        yield from _port_vm(view, port)


def _port_vm(view: View, id: str) -> Iterator[Affected]:
    port = view.get(kinds.PORT, id)
    if port is not None and (vm := vm_of(port)):
        yield "vm", vm


def _port(view: View, id: str) -> Iterator[Affected]:
    yield "port", id
    yield from _port_vm(view, id)


def _binding(view: View, id: str) -> Iterator[Affected]:
    """A VM without an address is started nowhere: whether it may have a volume that was taken from it shows by that."""
    yield from _port(view, id)
    port = view.get(kinds.PORT, id)
    vm = vm_of(port) if port is not None else ""
    for volume in view.by(kinds.VOLUME, "former_vm", vm) if vm else ():
        yield "volume", volume


def _address(_view: View, id: str) -> Iterator[Affected]:
    yield "subnet", id.partition("/")[0]


def _volume(_view: View, id: str) -> Iterator[Affected]:
    yield "volume", id


def _volume_record(view: View, id: str) -> Iterator[Affected]:
    """Its VM shows its name."""
    yield "volume", id
    for vm in view.by(kinds.VM, "volume", id):
        yield "vm", vm


def _assignment(_view: View, id: str) -> Iterator[Affected]:
    kind, _, object = id.partition("/")
    if kind == VOLUME_WORK:
        yield "volume", object


def _purge(view: View, id: str) -> Iterator[Affected]:
    """Volumes that go with a VM say so."""
    if not id.startswith(f"{kinds.VM.id_prefix}-"):
        yield "volume", id
        return
    yield "vm", id
    yield from _volumes(view, id)


def _observed(view: View, id: str) -> Iterator[Affected]:
    """The record's id is "<node>/<kind>/<id>"; forwards and networks are in no projection."""
    node, kind, object = [*id.split("/", 2), "", ""][:3]
    if kind in ("vm", "volume", "port"):
        yield kind, object
    if kind == "vm":
        yield from _volumes(view, object)
        yield from held(view.get(kinds.OBSERVED, id))
    if kind == "image":
        yield "image", object
        for vm in vms_on(view, node):
            found = view.get(kinds.VM, vm)
            if found is not None and found.spec.image == object:
                yield "vm", vm


def held(record: Message | None) -> Iterator[Affected]:
    """Yield the volumes that a guest has, or had: one it let go of does not name it any more."""
    if isinstance(record, Observed):
        yield from (("volume", volume) for volume in record.report.vm.open_volumes)
    elif isinstance(record, Unknown):
        yield from (("volume", disk.volume) for disk in record.desired.vm.disks)


def _unknown(view: View, id: str) -> Iterator[Affected]:
    """A guest that no record speaks of holds volumes, too."""
    yield "node", id.partition("/")[0]
    yield from held(view.get(kinds.UNKNOWN, id))


def _user(view: View, id: str) -> Iterator[Affected]:
    yield "user", id
    for binding in view.by(kinds.BINDING, "subject", subject_key(Subject(user=id))):
        yield "binding", binding
    for token in view.by(kinds.API_TOKEN, "user", id):
        yield "api_token", token
    # Each says how many log in by it; of a user that is gone it is not known which.
    for provider in list(view.ids(kinds.IDENTITY_PROVIDER)):
        yield "identity_provider", provider


def _role(view: View, id: str) -> Iterator[Affected]:
    yield "role", id
    for binding in view.by(kinds.BINDING, "role", id):
        yield "binding", binding
    for token in view.by(kinds.API_TOKEN, "role", id):
        yield "api_token", token


def _identity_provider(view: View, id: str) -> Iterator[Affected]:
    """By one that is not trusted nobody is logged in."""
    yield "identity_provider", id
    for token in view.by(kinds.API_TOKEN, "provider", id):
        yield "api_token", token


def _role_binding(view: View, id: str) -> Iterator[Affected]:
    """Users and roles say how much is bound to them; of what one that is gone was about is not known any more."""
    yield "binding", id
    binding = view.get(kinds.BINDING, id)
    for user in [binding.spec.subject.user] if binding is not None else list(view.ids(kinds.USER)):
        yield "user", user
    for role in [binding.spec.role] if binding is not None else list(view.ids(kinds.ROLE)):
        yield "role", role


def _project(view: View, id: str) -> Iterator[Affected]:
    """Its quota is called as it is, and price lists say whom they are for."""
    yield "project", id
    yield "quota", quota_id(id)
    for prices in list(view.all(kinds.PRICE_LIST)):
        if prices.spec.project == id:
            yield "price_list", prices.id


def _quota(view: View, id: str) -> Iterator[Affected]:
    """What holds where projects say nothing shows in all of them."""
    yield "quota", id
    if id == DEFAULTS_ID:
        yield from (("quota", each) for each in list(view.ids(kinds.QUOTA)))


RULES: Final[dict[str, Rule]] = {
    kinds.VM.name: _vm,
    kinds.PLACEMENT.name: _placement,
    kinds.NODE.name: _node_record,
    kinds.NODE_SESSION.name: _node,
    kinds.NODE_FACTS.name: _node,
    kinds.NODE_POOLS.name: _node_alone,
    kinds.NODE_CLAIMS.name: _node_alone,
    kinds.POOL_CLAIMS.name: _pool,
    kinds.IMAGE.name: _image,
    kinds.IMAGE_CONTENT.name: _image_alone,
    kinds.JOB.name: _job,
    kinds.JOB_STATE.name: _job,
    kinds.VPC.name: _vpc,
    kinds.SUBNET.name: _subnet,
    kinds.PORT.name: _port,
    kinds.PORT_BINDING.name: _binding,
    kinds.ADDRESS.name: _address,
    kinds.VOLUME.name: _volume_record,
    kinds.VOLUME_PLACEMENT.name: _volume,
    kinds.OPENING.name: _volume,
    kinds.ASSIGNMENT.name: _assignment,
    kinds.PURGE.name: _purge,
    kinds.OBSERVED.name: _observed,
    kinds.UNKNOWN.name: _unknown,
    kinds.USER.name: _user,
    kinds.ROLE.name: _role,
    kinds.IDENTITY_PROVIDER.name: _identity_provider,
    kinds.BINDING.name: _role_binding,
    kinds.QUOTA.name: _quota,
    kinds.PROJECT.name: _project,
}


def _counts(view: View, kind: Kind[Any], id: str, last: Any) -> Iterator[Affected]:
    """What a project has shows in it and in its quota."""
    found: Any = view.get(kind, id) or last
    for project in holders(kind.name, found) if found is not None else list(view.ids(kinds.PROJECT)):
        yield "quota", quota_id(project)
        if kind in _SHOWN_BY_PROJECTS:
            yield "project", project


def affected(view: View, kind: Kind[Any], id: str, last: Any = None) -> Iterator[Affected]:
    """Yield (kind, id) of the API objects a changed record shows in. last: of one that is gone, how it was; None: not known."""
    rule = RULES.get(kind.name)
    if rule is not None:
        yield from rule(view, id)
    elif kind.name in BY_KIND:
        yield kind.name, id
    if kind.name in COUNTED:
        yield from _counts(view, kind, id, last)
    # Those for one object call it by its name.
    if kind.name in BY_KIND:
        for binding in view.by(kinds.BINDING, "object", f"{kind.name}/{id}"):
            yield "binding", binding
