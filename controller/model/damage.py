"""What is wrong with the records as a whole, as far as they alone tell: for `cairn cluster fsck`. Pure, and changes nothing.

    for finding in findings(view): ...      # steps without a finding are None, so that others can have their turn

Some of it is true for a moment while the cloud works (an address that is just being given back): what is found twice, a minute
apart, is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from cairn.controller.model.beyond import doubt_say
from cairn.controller.model.names import CLUSTER_WIDE, holder_kind, is_held
from cairn.controller.model.owners import OWNERS
from cairn.controller.model.pools import pool_claimed
from cairn.controller.model.unreadable import all_unreadable
from cairn.controller.model.where import claimed, volume_claimed_bytes, volume_node, volume_pool, where
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of, claim_key
from cairn.proto.kinds import AnyKind
from cairn.proto.owners import owner_of
from cairn.proto.v1.cluster_pb2 import Finding

Found = Iterator[Finding | None]
_USED: Final = "some of what refers to it may be wrong for users until it is repaired"


def findings(view: View) -> Found:
    """Yield all that is found; None for each record looked at in which nothing was."""
    for look in (_unreadable, _references, _jobs, _claims, _names, _numbers, _addresses, _reports, _unknown):
        yield from look(view)


def _unreadable(view: View) -> Found:
    for kind, id, found in all_unreadable(view):
        shown = "its last readable value is shown" if found.kept else "it looks as if it were not there"
        say = f"cannot be decoded (revision {found.revision}: {found.error}); {shown}, and nothing is decided on it"
        yield Finding(check="unreadable", object=f"{kind.name}/{id}", say=say)


# --- references ------------------------------------------------------------------------------------------------------------


def _references(view: View) -> Found:
    for kind, refers in _REFERS.items():
        for record in view.pinned(kind, list(view.ids(kind))):
            message: Any = record.message
            yield None
            for to, id in refers(message):
                # What cannot be read is there, and told already.
                if id and not view.revision_of(to, id) and id not in view.unreadable(to):
                    yield Finding(
                        check="reference", object=f"{kind.name}/{_id(kind, message)}", say=f"{to.name} {id} is not there"
                    )
    for id in list(view.ids(kinds.PLACEMENT)):
        yield from _placed(view, "placement", id, where(view, id).nodes)
    for id in list(view.ids(kinds.VOLUME_PLACEMENT)):
        yield from _placed(view, "volume_placement", id, (volume_node(view, id),))


def _id(kind: AnyKind, message: Any) -> str:
    return str(message.port if kind is kinds.PORT_BINDING else message.id)


def _placed(view: View, kind: str, id: str, nodes: Iterable[str]) -> Found:
    yield None
    for node in nodes:
        if node and not view.revision_of(kinds.NODE, node) and node not in view.unreadable(kinds.NODE):
            yield Finding(check="reference", object=f"{kind}/{id}", say=f"node {node} is not there")


def _of_vm(vm: Any) -> Iterator[tuple[AnyKind, str]]:
    yield kinds.PROJECT, vm.project
    for volume in (vm.spec.root_volume, *vm.spec.volumes):
        yield kinds.VOLUME, volume
    for nic in vm.spec.nics:
        yield kinds.PORT, nic.port
        yield kinds.SUBNET, nic.subnet


def _of_owner(port: Any) -> Iterator[tuple[AnyKind, str]]:
    found = owner_of(port)
    if (kind := OWNERS.get(found.kind)) is not None:
        yield kind, found.id


def _of_binding(binding: Any) -> Iterator[tuple[AnyKind, str]]:
    yield kinds.ROLE, binding.spec.role
    yield kinds.PROJECT, binding.project
    yield kinds.USER, binding.spec.subject.user


def _of_api_token(token: Any) -> Iterator[tuple[AnyKind, str]]:
    """Projects that are gone are named by it to no effect."""
    yield kinds.USER, token.spec.user
    yield kinds.IDENTITY_PROVIDER, token.spec.login.provider
    for role in token.spec.roles:
        yield kinds.ROLE, role


_REFERS: Final[dict[AnyKind, Callable[[Any], Iterable[tuple[AnyKind, str]]]]] = {
    kinds.VM: _of_vm,
    kinds.VOLUME: lambda volume: (
        (kinds.VM, volume.spec.vm),
        (kinds.IMAGE, volume.spec.image),
        (kinds.PROJECT, volume.project),
    ),
    kinds.PORT: lambda port: (*_of_owner(port), (kinds.SUBNET, port.spec.subnet), (kinds.VPC, port.spec.vpc)),
    kinds.OPENING: lambda claim: ((kinds.VOLUME, claim.volume),),
    kinds.SUBNET: lambda subnet: ((kinds.VPC, subnet.spec.vpc),),
    kinds.BINDING: _of_binding,
    kinds.QUOTA: lambda quota: ((kinds.PROJECT, quota.project),),
    kinds.API_TOKEN: _of_api_token,
    kinds.USER: lambda user: ((kinds.IDENTITY_PROVIDER, user.spec.login.provider),),
    kinds.PORT_BINDING: lambda binding: ((kinds.PORT, binding.port), (kinds.SUBNET, binding.subnet)),
}


def _jobs(view: View) -> Found:
    """How far a job is belongs to a job."""
    for id in list(view.ids(kinds.JOB_STATE)):
        yield None
        if not _is_record(view, kinds.JOB, id):
            yield Finding(check="reference", object=f"job_state/{id}", say=f"job {id} is not there")


# --- what is claimed -------------------------------------------------------------------------------------------------------


def _claims(view: View) -> Found:
    """Each node's and pool's claims are the sum of what is placed there."""
    cpus, memory, vms, pools = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for id in list(view.ids(kinds.PLACEMENT)):
        yield None
        node, taken = where(view, id).runs_on, claimed(view, id)
        if node:
            cpus[node] += taken.cpus
            memory[node] += taken.memory_bytes
            vms[node] += 1
    for id in list(view.ids(kinds.VOLUME_PLACEMENT)):
        yield None
        pools[volume_pool(view, id)] += volume_claimed_bytes(view, id)
    for node in sorted({*view.ids(kinds.NODE_CLAIMS), *vms}):
        claims = view.get(kinds.NODE_CLAIMS, node)
        told = (claims.cpus, claims.memory_bytes, claims.vms) if claims is not None else (0, 0, 0)
        right = cpus[node], memory[node], vms[node]
        if told != right and node not in view.unreadable(kinds.NODE_CLAIMS):
            say = "claimed are {} CPUs, {} bytes of memory, {} VMs; placed there are {}, {}, {}".format(*told, *right)
            yield Finding(check="claims", object=f"node_claims/{node}", say=say)
    for pool in sorted({*view.ids(kinds.POOL_CLAIMS), *pools}):
        if pool and pool_claimed(view, pool) != pools[pool] and pool not in view.unreadable(kinds.POOL_CLAIMS):
            say = f"claimed are {pool_claimed(view, pool)} bytes, placed there are {pools[pool]}"
            yield Finding(check="claims", object=f"pool_claims/{pool}", say=say)


# --- names, numbers, addresses ---------------------------------------------------------------------------------------------


def _names(view: View) -> Found:
    for record in view.pinned(kinds.NAME, list(view.ids(kinds.NAME))):
        yield None
        claim = record.message
        if not claim.HasField("reserve_time") and not is_held(view, claim):
            id = f"{claim.project or CLUSTER_WIDE}/{claim.kind}/{claim.name}"
            kind = holder_kind(claim)
            gone = kind is not None and not view.revision_of(kind, claim.id)
            say = f"{claim.kind} {claim.id} {'is not there' if gone else 'is not called so'}"
            yield Finding(check="name", object=f"name/{id}", say=say)


def _numbers(view: View) -> Found:
    for record in view.pinned(kinds.VNI, list(view.ids(kinds.VNI))):
        yield None
        claim = record.message
        held = (view.get(kinds.VPC, claim.holder), view.get(kinds.SUBNET, claim.holder))
        damaged = claim.holder in view.unreadable(kinds.VPC) or claim.holder in view.unreadable(kinds.SUBNET)
        if not damaged and all(each is None or each.spec.vni != claim.vni for each in held):
            yield Finding(check="vni", object=f"vni/{claim.vni:08d}", say=f"its holder {claim.holder} does not have it")


def _addresses(view: View) -> Found:
    """Each address that is claimed is that of the port it is claimed for, and the other way round."""
    for record in view.pinned(kinds.ADDRESS, list(view.ids(kinds.ADDRESS))):
        yield None
        claim = record.message
        binding = view.get(kinds.PORT_BINDING, claim.port)
        damaged = claim.port in view.unreadable(kinds.PORT_BINDING)
        held = addresses_of(binding) if binding is not None else ()
        if not damaged and (binding is None or binding.subnet != claim.subnet or claim.address not in held):
            say = f"port {claim.port}, for which it is claimed, has {', '.join(held) or 'no address'}"
            yield Finding(check="address", object=f"address/{claim.subnet}/{claim.address}", say=say)
    for bound in view.pinned(kinds.PORT_BINDING, list(view.ids(kinds.PORT_BINDING))):
        yield None
        for address in addresses_of(bound.message):
            id, port = claim_key(bound.message.subnet, address), bound.message.port
            claimed_for = view.get(kinds.ADDRESS, id)
            holder = claimed_for.port if claimed_for is not None else "nobody"
            if holder != port and id not in view.unreadable(kinds.ADDRESS):
                yield Finding(check="address", object=f"port_binding/{port}", say=f"its address {id} is claimed for {holder}")


# --- nodes -----------------------------------------------------------------------------------------------------------------


def _reports(view: View) -> Found:
    for id in list(view.ids(kinds.OBSERVED)):
        yield None
        node, _, key = id.partition("/")
        kind = kinds.BY_NAME.get(key.partition("/")[0])
        if not view.revision_of(kinds.NODE, node) and node not in view.unreadable(kinds.NODE):
            yield Finding(check="report", object=f"observed/{id}", say=f"node {node} is not there")
        elif kind is not None and not _is_record(view, kind, key.partition("/")[2]) and not _is_erased(view, id):
            yield Finding(check="report", object=f"observed/{id}", say=f"{key} has no record")


def _is_erased(view: View, id: str) -> bool:
    """Tell whether what a node reports of was deleted, and may be there until the node has removed it."""
    return any(view.get(kinds.ERASURE, each) is not None for each in (id, f"-/{id.partition('/')[2]}"))


def _is_record(view: View, kind: AnyKind, id: str) -> bool:
    return bool(view.revision_of(kind, id)) or id in view.unreadable(kind)


def _unknown(view: View) -> Found:
    doubts = Counter[str]()
    for record in view.pinned(kinds.UNKNOWN, list(view.ids(kinds.UNKNOWN))):
        yield None
        told = record.message
        doubts[told.node] += told.doubted
        say = f"its node holds it, the records do not say so: {told.say}; `cairn cluster adopt` lists what can be done"
        yield Finding(check="unknown", object=f"{told.node}/{told.key}", say=say)
    for node in sorted(+doubts):
        yield Finding(check="doubted", object=f"node/{node}", say=doubt_say(doubts[node]))
