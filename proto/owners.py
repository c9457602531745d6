"""Whose a port is, as its record says it: {kind, id}, or nobody's.

Records of the release before this one say `vm` only; they are read as owned by that VM, and whoever writes an owner writes `vm`
beside it, so that controllers and clients of that release go on working (docs/decisions/0021). Nobody else looks at
`PortSpec.vm` (tests/test_tidy.py).
"""

from __future__ import annotations

from typing import Final

from cairn.proto.v1.common_pb2 import Owner
from cairn.proto.v1.port_pb2 import Port

VM: Final = "vm"


def owner_of(port: Port) -> Owner:
    """Return whose a port is; of nobody's, kind and id are empty."""
    spec = port.spec
    if spec.HasField("owner") or not spec.vm:
        return spec.owner
    return Owner(kind=VM, id=spec.vm)


def set_owner(port: Port, kind: str, id: str) -> None:
    """Say whose a port is."""
    port.spec.owner.kind, port.spec.owner.id = kind, id
    port.spec.vm = id if kind == VM else ""


def owner_key(port: Port) -> str:
    """Return "<kind>/<id>" of whose a port is; empty: nobody's."""
    owner = owner_of(port)
    return f"{owner.kind}/{owner.id}" if owner.id else ""
