"""Secondary indexes of the View: (kind, index name) -> the values a record is found under."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from cairn.proto import kinds
from cairn.proto.ids import pool_id
from cairn.proto.owners import owner_key
from cairn.proto.subjects import login_key, subject_key

Extract = Callable[[str, Any], Iterable[str]]


def _deleted(message: Any) -> Iterable[str]:
    """Deleted ones are found by "<project>/<name>": their names are nobody's, or somebody else's by now."""
    return (f"{message.project}/{message.name}",) if message.HasField("delete_time") else ()


def _shared(message: Any) -> Iterable[str]:
    """Projects it is shared with, "*" for all (model/sharing.py)."""
    sharing = message.spec.sharing
    return (*sharing.projects, *(("*",) if sharing.all else ()))


def _vnis(network: Any) -> Iterable[int]:
    return (network.transit_vni, *(subnet.vni for subnet in network.subnets))


# Each function takes (record id, message).
INDEXES: Final[dict[str, dict[str, Extract]]] = {
    kinds.IMAGE.name: {"project": lambda _, m: (m.project,), "shared": lambda _, m: _shared(m)},
    kinds.VPC.name: {"project": lambda _, m: (m.project,), "shared": lambda _, m: _shared(m)},
    kinds.SUBNET.name: {"vpc": lambda _, m: (m.spec.vpc,), "project": lambda _, m: (m.project,)},
    kinds.PORT.name: {
        "owner": lambda _, m: (owner_key(m),),
        "subnet": lambda _, m: (m.spec.subnet,),
        "vpc": lambda _, m: (m.spec.vpc,),
        "project": lambda _, m: (m.project,),
    },
    kinds.VOLUME.name: {
        "vm": lambda _, m: (m.spec.vm,),
        "image": lambda _, m: (m.spec.image,),
        "former_vm": lambda _, m: (m.spec.former_vm,) if m.spec.former_vm else (),
        "project": lambda _, m: (m.project,),
        "deleted": lambda _, m: _deleted(m),
    },
    kinds.VM.name: {
        "image": lambda _, m: (m.spec.image,),
        "volume": lambda _, m: tuple(filter(None, (m.spec.root_volume, *m.spec.volumes))),
        "project": lambda _, m: (m.project,),
        "deleted": lambda _, m: _deleted(m),
    },
    kinds.PORT_BINDING.name: {"subnet": lambda _, m: (m.subnet,), "vpc": lambda _, m: (m.vpc,)},
    kinds.ADDRESS.name: {"subnet": lambda _, m: (m.subnet,)},
    # Owner and incoming node; "" of one that is nowhere.
    kinds.PLACEMENT.name: {"node": lambda _, m: (m.node, m.incoming) if m.incoming else (m.node,)},
    kinds.VOLUME_PLACEMENT.name: {"node": lambda _, m: (m.node,)},
    kinds.OPENING.name: {
        "node": lambda _, m: (m.node, *(each.node for each in m.outcasts)),
        "vm": lambda _, m: (m.vm, *(each.vm for each in m.outcasts)),
    },
    kinds.ASSIGNMENT.name: {"node": lambda _, m: (m.node,)},
    # The pools a node reaches.
    kinds.NODE_FACTS.name: {"pool": lambda id, m: tuple(pool_id(pool.type, id, pool.name) for pool in m.pools)},
    # Desired-object key ("vm/i-…") -> reports about it, from whichever node.
    kinds.OBSERVED.name: {
        "node": lambda _, m: (m.node,),
        "key": lambda _, m: (m.key,),
        # Volumes that a guest was seen to have open.
        "open": lambda _, m: tuple(m.report.vm.open_volumes) if m.report.HasField("vm") else (),
    },
    kinds.UNKNOWN.name: {
        "node": lambda _, m: (m.node,),
        "key": lambda _, m: (m.key,),
        # Of a guest: the subnets of its cards, and the VXLAN identifiers of their networks.
        "subnet": lambda _, m: tuple(dict.fromkeys(nic.subnet for nic in m.desired.vm.nics)),
        "vni": lambda _, m: tuple(dict.fromkeys(str(vni) for network in m.networks for vni in _vnis(network))),
        # The disks of one that runs.
        "disk": lambda _, m: tuple(disk.volume for disk in m.desired.vm.disks) if m.running else (),
        # The shared pool a volume is in.
        "pool": lambda _, m: (m.desired.volume.pool,) if m.desired.volume.generation else (),
    },
    kinds.ERASURE.name: {"key": lambda _, m: (m.key,), "node": lambda _, m: (m.node,)},
    kinds.IMAGE_CONTENT.name: {"node": lambda _, m: tuple(m.nodes)},
    kinds.USER.name: {
        "name": lambda _, m: (m.name,),
        "group": lambda _, m: tuple(m.spec.groups),
        "login": lambda _, m: (login_key(m.spec.login),) if m.spec.HasField("login") else (),
        "provider": lambda _, m: (m.spec.login.provider,) if m.spec.HasField("login") else (),
    },
    kinds.BINDING.name: {
        "subject": lambda _, m: (subject_key(m.spec.subject),),
        "role": lambda _, m: (m.spec.role,),
        "project": lambda _, m: (m.project,),
        "object": lambda _, m: (m.spec.object,) if m.spec.object else (),
    },
    kinds.API_TOKEN.name: {
        "user": lambda _, m: (m.spec.user,),
        "role": lambda _, m: tuple(m.spec.roles),
        "provider": lambda _, m: (m.spec.login.provider,) if m.spec.HasField("login") else (),
    },
    kinds.JOB.name: {"target": lambda _, m: (m.spec.target,)},
}
