"""Whichever one record cannot be read, and never could: nothing is removed or given to another because of it.

A cloud with something of everything, at rest. Each of its records is damaged in turn; then every reconciler looks at every key.
What it would write may not delete a record, and may not move work, a volume or a guest.
"""

from __future__ import annotations

import pytest
from cairn.controller.model.unreadable import touched
from cairn.controller.reconcilers.assignments import Assignments
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.node_events import NodeEvents
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.agent_pb2 import ImageReport, VmReport, VolumeReport
from cairn.proto.v1.cluster_pb2 import NameClaim

from tests.unit.cloud_kit import GIB, Cloud
from tests.unit.test_unreadable import damage

EVERY = (Ports, Placements, Assignments, Garbage, NodeEvents)


def whole_cloud() -> Cloud:
    """A cloud at rest."""
    cloud = Cloud()
    image = cloud.image("demo")
    nodes = [cloud.node(name, shared={"tank": 100 * GIB}) for name in ("n1", "n2", "n3")]
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    vms = [
        cloud.vm("a", image=image, subnet=subnet, node=nodes[0]),
        cloud.vm("b", image=image, subnet=subnet, node=nodes[1], type="net"),
        cloud.vm("c", image=image, node=nodes[0]),
    ]
    cloud.volume("data", vm=vms[0])
    cloud.volume("pooled", vm=vms[1], type="net")
    for id in list(cloud.view.ids(kinds.VM)):
        cloud.put(kinds.NAME, f"prj-1/vm/{id}", NameClaim(kind="vm", project="prj-1", name=id, id=id))
    cloud.delete_vm(vms[2])
    cloud.settle([each() for each in EVERY])
    for vm in vms[:2]:
        placement = cloud.view.get(kinds.PLACEMENT, vm)
        assert placement is not None
        cloud.report(placement.node, f"vm/{vm}", state=VmReport.STATE_RUNNING)
        for volume in cloud.view.by(kinds.VOLUME, "vm", vm):
            cloud.report(placement.node, f"volume/{volume}", state=VolumeReport.STATE_READY, size_bytes=GIB)
        cloud.report(placement.node, f"image/{image}", state=ImageReport.STATE_READY)
    cloud.delete(kinds.NODE_SESSION, nodes[2])
    cloud.settle([each() for each in EVERY])
    return cloud


def records() -> list[tuple[AnyKind, str]]:
    cloud = whole_cloud()
    return [(kind, id) for kind in kinds.ALL if kind.cached for id in sorted(cloud.view.ids(kind))]


@pytest.mark.parametrize(("kind", "id"), records(), ids=lambda value: getattr(value, "name", None) or str(value))
def test_nothing_is_removed_or_moved_because_of_it(kind: AnyKind, id: str) -> None:
    cloud = whole_cloud()
    damage(cloud, kind, id)
    harm = []
    for reconciler in [each() for each in EVERY]:
        for key in sorted(set(reconciler.all_keys(cloud.view))):
            txn = reconciler.reconcile(cloud.view, key, cloud.now).txn
            if txn is None or touched(cloud.view, txn):
                continue
            harm += [f"{key}: deletes {each}" for each in txn.deletes]
            harm += [f"{key}: writes {each}" for each in txn.puts if kinds.split(each)[0] not in (kinds.EVENT, kinds.EVENT_OF)]
    assert not harm, "\n".join(harm)
