"""The API's nouns: which record each is, how it is called, and how it is projected. One table; all generic code runs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from cairn.controller.api import access_status, quota_status, status
from cairn.controller.api.vm_status import vm
from cairn.controller.model.sharing import SHAREABLE
from cairn.controller.store.base import Record, View
from cairn.proto import kinds
from cairn.proto.kinds import Kind
from cairn.proto.v1.api_token_pb2 import ApiToken
from cairn.proto.v1.binding_pb2 import Binding
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.identity_provider_pb2 import IdentityProvider
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.job_pb2 import Job
from cairn.proto.v1.node_pb2 import Node
from cairn.proto.v1.port_pb2 import Port
from cairn.proto.v1.price_list_pb2 import PriceList
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.role_pb2 import Role
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.user_pb2 import User
from cairn.proto.v1.vm_pb2 import Vm
from cairn.proto.v1.volume_pb2 import Volume
from cairn.proto.v1.vpc_pb2 import Vpc
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

# Owner of names that belong to the cluster and to no project: projects and nodes.
CLUSTER_WIDE: Final = "-"
DEFAULT_PROJECT: Final = "default"
# Fixed, so that controllers starting together make one and the same.
DEFAULT_PROJECT_ID: Final = "prj-default0"


@dataclass(frozen=True, slots=True)
class Noun(Generic[M]):
    """One noun of the API."""

    kind: Kind[M]
    # As a sentence calls it.
    title: str
    # Field of list answers; the field of watch answers and requests is the kind's name.
    plural: str
    project: Callable[[View, Record[M]], M]
    cluster_wide: bool = False
    # Deletion keeps it for a while.
    soft_delete: bool = False

    @property
    def shareable(self) -> bool:
        """Whether it can be shared with other projects."""
        return self.kind in SHAREABLE

    def of(self, view: View, id: str) -> M | None:
        """Return the projected object, or None."""
        record = view.record(self.kind, id)
        return self.project(view, record) if record is not None else None


PROJECT: Final = Noun(kinds.PROJECT, "project", "projects", status.project, cluster_wide=True)
IMAGE: Final = Noun(kinds.IMAGE, "image", "images", status.image)
VPC: Final = Noun(kinds.VPC, "VPC", "vpcs", status.vpc)
SUBNET: Final = Noun(kinds.SUBNET, "subnet", "subnets", status.subnet)
PORT: Final = Noun(kinds.PORT, "port", "ports", status.port)
VOLUME: Final = Noun(kinds.VOLUME, "volume", "volumes", status.volume, soft_delete=True)
VM: Final = Noun(kinds.VM, "VM", "vms", vm, soft_delete=True)
NODE: Final = Noun(kinds.NODE, "node", "nodes", status.node, cluster_wide=True)
JOB: Final = Noun(kinds.JOB, "job", "jobs", status.job)
EVENT: Final = Noun(kinds.EVENT, "event", "events", status.event)
USER: Final = Noun(kinds.USER, "user", "users", access_status.user, cluster_wide=True)
ROLE: Final = Noun(kinds.ROLE, "role", "roles", access_status.role, cluster_wide=True)
BINDING: Final = Noun(kinds.BINDING, "binding", "bindings", access_status.binding, cluster_wide=True)
API_TOKEN: Final = Noun(kinds.API_TOKEN, "API token", "api_tokens", access_status.api_token, cluster_wide=True)
IDENTITY_PROVIDER: Final = Noun(
    kinds.IDENTITY_PROVIDER, "identity provider", "identity_providers", access_status.identity_provider, cluster_wide=True
)
QUOTA: Final = Noun(kinds.QUOTA, "quota", "quotas", quota_status.quota)
PRICE_LIST: Final = Noun(kinds.PRICE_LIST, "price list", "price_lists", quota_status.price_list, cluster_wide=True)

ALL: Final[tuple[Noun[Any], ...]] = (
    PROJECT, IMAGE, VPC, SUBNET, PORT, VOLUME, VM, NODE, JOB, EVENT, USER, ROLE, BINDING, API_TOKEN,
    IDENTITY_PROVIDER, QUOTA, PRICE_LIST,
)  # fmt: skip
BY_KIND: Final[dict[str, Noun[Any]]] = {noun.kind.name: noun for noun in ALL}

__all__ = [
    "ALL", "API_TOKEN", "BINDING", "BY_KIND", "CLUSTER_WIDE", "DEFAULT_PROJECT", "DEFAULT_PROJECT_ID", "EVENT",
    "IDENTITY_PROVIDER", "IMAGE", "JOB", "NODE", "PORT", "PRICE_LIST", "PROJECT", "QUOTA", "ROLE", "SUBNET", "USER", "VM",
    "VOLUME", "VPC", "ApiToken", "Binding", "Event", "IdentityProvider", "Image", "Job", "Node", "Noun", "Port",
    "PriceList", "Project", "Role", "Subnet", "User", "Vm", "Volume", "Vpc",
]  # fmt: skip
