"""What is shared with other projects: an image, to make VMs of there; a VPC, to have cards in its subnets.

Sharing gives no rights by itself: who may see images in a project sees those shared with it, who may use subnets there uses
those of a VPC that is shared with it. Changing them stays with the project they are of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.project_pb2 import Sharing
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.vpc_pb2 import Vpc

# Stands for all projects where the id of one may stand.
ALL: Final = "*"
SHAREABLE: Final[tuple[AnyKind, ...]] = (kinds.IMAGE, kinds.VPC)
# What sharing lets through. Who has a VPC shared with him makes no subnets in it.
PERMISSIONS: Final = frozenset({"image.see", "image.use", "vpc.see", "subnet.see", "subnet.use"})


def source(view: View, record: Any) -> tuple[AnyKind, str, Sharing] | None:
    """Return (kind, id, with whom) of what says with whom a record is shared: itself, or its VPC. None: it cannot be."""
    if isinstance(record, Image):
        return kinds.IMAGE, record.id, record.spec.sharing
    vpc = record if isinstance(record, Vpc) else None
    if isinstance(record, Subnet):
        vpc = view.get(kinds.VPC, record.spec.vpc)
    return (kinds.VPC, vpc.id, vpc.spec.sharing) if vpc is not None else None


def reaches(sharing: Sharing, project: str) -> bool:
    """Tell whether it is with that project."""
    return sharing.all or project in sharing.projects


def shared_into(view: View, record: Any, project: str) -> bool:
    """Tell whether a record is shared with a project."""
    found = source(view, record)
    return found is not None and reaches(found[2], project)


def places(record: Any) -> Iterator[str]:
    """Yield where something is shared, ALL for everywhere."""
    sharing: Sharing = record.spec.sharing
    yield from sharing.projects
    if sharing.all:
        yield ALL


def shared_ids(view: View, kind: AnyKind, project: str) -> list[str]:
    """Return the ids of what is shared with a project."""
    if kind in SHAREABLE:
        return [*view.by(kind, "shared", project), *view.by(kind, "shared", ALL)]
    if cast("object", kind) is kinds.SUBNET:
        return [id for vpc in shared_ids(view, kinds.VPC, project) for id in view.by(kinds.SUBNET, "vpc", vpc)]
    return []
