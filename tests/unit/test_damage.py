"""What `cairn cluster fsck` finds: nothing in a cloud that is well, and each fault by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cairn.controller.model.damage import findings
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Erasure, Observed, Report, Unknown
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.job_pb2 import JobStatus
from cairn.proto.v1.port_pb2 import AddressClaim
from cairn.proto.v1.vpc_pb2 import VniClaim

from tests.unit.cloud_kit import Cloud

NODE, VM, PORT, SUBNET = "node-000000n1", "i-0000000a", "nic-0000000a", "vxnet-0000blue"


def made() -> Cloud:
    cloud = Cloud()
    node = cloud.node("n1")
    cloud.vm("a", subnet=cloud.subnet("blue", cloud.vpc("v")), node=node)
    cloud.settle([Ports(), Placements()])
    return cloud


def found(cloud: Cloud) -> list[tuple[str, str]]:
    return [(each.check, each.object) for each in findings(cloud.view) if each is not None]


def spoil(kind: Any, id: str) -> Callable[[Cloud], None]:
    def act(cloud: Cloud) -> None:
        cloud.view.table(kind).delete(id)
        cloud.view.table(kind).keep(id, 7, "garbage")

    return act


def put(kind: Any, id: str, message: Any) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.put(kind, id, message)


def drop(kind: Any, id: str) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.delete(kind, id)


def claims(cloud: Cloud) -> None:
    record = cloud.edit(kinds.NODE_CLAIMS, NODE)
    record.cpus += 1
    cloud.put(kinds.NODE_CLAIMS, NODE, record)


def test_nothing_is_found_where_all_is_well() -> None:
    assert found(made()) == []


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (spoil(kinds.VM, VM), ("unreadable", f"vm/{VM}")),
        (claims, ("claims", f"node_claims/{NODE}")),
        (drop(kinds.PORT, PORT), ("reference", f"vm/{VM}")),
        (drop(kinds.NODE, NODE), ("reference", f"placement/{VM}")),
        (drop(kinds.VPC, "rtr-0000000v"), ("reference", f"subnet/{SUBNET}")),
        (drop(kinds.PORT_BINDING, PORT), ("address", f"address/{SUBNET}/10.1.1.2")),
        (drop(kinds.ADDRESS, f"{SUBNET}/10.1.1.2"), ("address", f"port_binding/{PORT}")),
        (
            put(kinds.ADDRESS, f"{SUBNET}/10.1.1.9", AddressClaim(subnet=SUBNET, address="10.1.1.9", port="nic-x")),
            ("address", f"address/{SUBNET}/10.1.1.9"),
        ),
        (
            put(kinds.NAME, "p/vm/web", NameClaim(kind="vm", project="p", name="web", id="i-gone")),
            ("name", "name/p/vm/web"),
        ),
        (put(kinds.VNI, "00004242", VniClaim(vni=4242, holder="rtr-gone")), ("vni", "vni/00004242")),
        (
            put(kinds.OBSERVED, f"{NODE}/vm/i-gone", Observed(node=NODE, key="vm/i-gone", report=Report(key="vm/i-gone"))),
            ("report", f"observed/{NODE}/vm/i-gone"),
        ),
        (put(kinds.JOB_STATE, "j-gone", JobStatus(state="upload")), ("reference", "job_state/j-gone")),
        (
            put(kinds.UNKNOWN, f"{NODE}/vm/i-gone", Unknown(node=NODE, key="vm/i-gone", say="its guest runs")),
            ("unknown", f"{NODE}/vm/i-gone"),
        ),
        (
            put(kinds.UNKNOWN, f"{NODE}/vm/i-gone", Unknown(node=NODE, key="vm/i-gone", say="its guest runs", doubted=True)),
            ("doubted", f"node/{NODE}"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_each_fault_is_found(act: Callable[[Cloud], None], expected: tuple[str, str]) -> None:
    cloud = made()
    act(cloud)
    assert expected in found(cloud)


@pytest.mark.parametrize("kind", [kinds.PORT, kinds.SUBNET, kinds.VPC, kinds.NODE, kinds.IMAGE], ids=lambda kind: kind.name)
def test_what_cannot_be_read_is_not_called_missing(kind: Any) -> None:
    cloud = made()
    for id in list(cloud.view.ids(kind)):
        spoil(kind, id)(cloud)
    assert not [each for each in found(cloud) if each[0] == "reference"]


@pytest.mark.parametrize("node", [NODE, "-"])
def test_what_was_deleted_and_is_still_there_is_no_damage(node: str) -> None:
    """An image's bytes that a volume is a copy of stay until that goes, though its record went at once."""
    cloud, key = made(), "image/img-gone"
    put(kinds.OBSERVED, f"{NODE}/{key}", Observed(node=NODE, key=key, report=Report(key=key)))(cloud)
    assert ("report", f"observed/{NODE}/{key}") in found(cloud)
    put(kinds.ERASURE, f"{node}/{key}", Erasure(node=node, key=key))(cloud)
    assert ("report", f"observed/{NODE}/{key}") not in found(cloud)
