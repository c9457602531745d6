"""The registry of stored records: message type, key prefix, id prefix, sole writer.

A record lives at /cairn/v1/<kind>/<id>. Each kind has one component that writes it; `deleters` may remove it as well. The
runtime and the API check both at every commit (controller/store/base.py: Txn). Composite ids use "/" (address claims:
"<subnet>/<address>"); they sort as paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Generic, TypeAlias, TypeVar

from cairn.proto.v1 import (
    agent_pb2,
    api_token_pb2,
    audit_pb2,
    binding_pb2,
    cluster_pb2,
    common_pb2,
    event_pb2,
    identity_provider_pb2,
    image_pb2,
    job_pb2,
    node_pb2,
    port_pb2,
    price_list_pb2,
    project_pb2,
    quota_pb2,
    role_pb2,
    secret_pb2,
    subnet_pb2,
    usage_pb2,
    user_pb2,
    vm_pb2,
    volume_pb2,
    vpc_pb2,
)
from google.protobuf.message import Message

ROOT: Final = "/cairn/v1/"
M_co = TypeVar("M_co", bound=Message, covariant=True)


# eq=False: each kind is one object, and they are compared and looked up a great deal.
@dataclass(frozen=True, slots=True, eq=False)
class Kind(Generic[M_co]):
    """One kind of stored record."""

    name: str
    message: type[M_co]
    writer: str
    # Prefix of generated ids; empty when ids are not generated.
    id_prefix: str = ""
    # Components that may delete it besides the writer.
    deleters: frozenset[str] = field(default_factory=frozenset)
    # In backups. What is leased is not, nor what nodes say again when they connect.
    kept: bool = True
    # In every controller's view. What no decision reads is looked up in the store by the few who ask for it.
    cached: bool = True

    @property
    def prefix(self) -> str:
        """Key prefix with its closing slash."""
        return f"{ROOT}{self.name}/"

    def key(self, id: str) -> str:
        """Key of the record with that id."""
        return f"{ROOT}{self.name}/{id}"


AnyKind: TypeAlias = Kind[Any]

_GARBAGE = frozenset({"garbage"})

# What users ask for: written by the API, removed by garbage collection once the world has let go.
PROJECT = Kind("project", project_pb2.Project, "api", "prj")
IMAGE = Kind("image", image_pb2.Image, "api", "img", _GARBAGE)
VPC = Kind("vpc", vpc_pb2.Vpc, "api", "rtr", _GARBAGE)
SUBNET = Kind("subnet", subnet_pb2.Subnet, "api", "vxnet", _GARBAGE)
PORT = Kind("port", port_pb2.Port, "api", "nic", _GARBAGE)
VOLUME = Kind("volume", volume_pb2.Volume, "api", "vol", _GARBAGE)
VM = Kind("vm", vm_pb2.Vm, "api", "i", _GARBAGE)
NODE = Kind("node", node_pb2.Node, "api", "node")
JOB = Kind("job", job_pb2.Job, "api", "j", _GARBAGE)
# id: "<kind>/<id>" of whom it belongs to; sealed, see sealing.py.
SECRET = Kind("secret", secret_pb2.Secret, "api", "", _GARBAGE)
# Who asks, what goes together, and who has which of it where.
USER = Kind("user", user_pb2.User, "api", "usr")
ROLE = Kind("role", role_pb2.Role, "api", "role")
BINDING = Kind("binding", binding_pb2.Binding, "api", "rb", _GARBAGE)
# Who vouches for people, so that they can log in.
IDENTITY_PROVIDER = Kind("identity_provider", identity_provider_pb2.IdentityProvider, "api", "idp")
API_TOKEN = Kind("api_token", api_token_pb2.ApiToken, "api", "tok", _GARBAGE)
# Not in backups: one that was used or taken back since would be good again.
JOIN_TOKEN = Kind("join_token", node_pb2.JoinToken, "api", "jt", _GARBAGE, kept=False)
NAME = Kind("name", cluster_pb2.NameClaim, "api", "", _GARBAGE)  # id: <project>/<kind>/<name>
VNI = Kind("vni", vpc_pb2.VniClaim, "api", "", _GARBAGE)  # id: decimal, 8 digits
# How much a project may have; and the fence of those that come to have more (id: the project's).
QUOTA = Kind("quota", quota_pb2.Quota, "api", "quo")
QUOTA_USE = Kind("quota_use", quota_pb2.QuotaUse, "api", kept=False)
PRICE_LIST = Kind("price_list", price_list_pb2.PriceList, "api", "pl")
ERASURE = Kind("erasure", agent_pb2.Erasure, "api", "", _GARBAGE, kept=False)  # id: <node>/<key>, "-/<key>" for every node
REQUEST = Kind("request", cluster_pb2.RequestRecord, "api", kept=False, cached=False)  # leased, 24 h
PLAN = Kind("plan", cluster_pb2.PlanRecord, "api", "plan", kept=False)  # leased, 10 min
# Who changed what; id: <chain>/<number>. Of this installation, so not in backups: a restore leaves them as they are.
AUDIT = Kind("audit", audit_pb2.Audit, "api", "", frozenset({"audit"}), kept=False, cached=False)
AUDIT_HEAD = Kind("audit_head", audit_pb2.AuditHead, "api", kept=False, cached=False)  # id: the chain's
AUDIT_CUT = Kind("audit_cut", audit_pb2.AuditCut, "audit", kept=False, cached=False)  # id: the chain's

# What reconcilers decide.
PORT_BINDING = Kind("port_binding", port_pb2.PortBinding, "ports")
ADDRESS = Kind("address", port_pb2.AddressClaim, "ports")  # id: <subnet>/<address>
PLACEMENT = Kind("placement", vm_pb2.Placement, "placement")
DECISION = Kind("decision", common_pb2.Decision, "placement", cached=False)  # id: the VM's; why its placement is as it is
NODE_CLAIMS = Kind("node_claims", vm_pb2.NodeClaims, "placement")
VOLUME_PLACEMENT = Kind("volume_placement", volume_pb2.VolumePlacement, "placement")
POOL_CLAIMS = Kind("pool_claims", volume_pb2.PoolClaims, "placement")  # id: that of the pool, <type>/<node or name>
OPENING = Kind("opening", volume_pb2.Opening, "openings")  # id: the volume's
ASSIGNMENT = Kind("assignment", node_pb2.Assignment, "assignments")  # id: <kind of work>/<id of what it is about>
NODE_LOSS = Kind("node_loss", node_pb2.NodeLoss, "assignments")  # id: that of the node
NODE_TOLD = Kind("node_told", node_pb2.NodeTold, "node_events", "", _GARBAGE, kept=False)  # id: that of the node
PURGE = Kind("purge", volume_pb2.Purge, "garbage")
IMAGE_CONTENT = Kind("image_content", image_pb2.ImageContent, "jobs", "", _GARBAGE)
JOB_STATE = Kind("job_state", job_pb2.JobStatus, "jobs", "", _GARBAGE)  # id: the job's; none: it has not begun

# What nodes report, and who is alive.
OBSERVED = Kind("observed", agent_pb2.Observed, "sync", "", _GARBAGE, kept=False)  # id: <node>/<key of the desired object>
NODE_HEARD = Kind("node_heard", agent_pb2.NodeHeard, "sync", "", _GARBAGE, kept=False)  # id: the node's
UNKNOWN = Kind("unknown", agent_pb2.Unknown, "sync", "", _GARBAGE, kept=False)  # id: <node>/<key>
NODE_FACTS = Kind("node_facts", node_pb2.NodeFacts, "sync", "", _GARBAGE)
NODE_POOLS = Kind("node_pools", node_pb2.NodePools, "sync", "", _GARBAGE, kept=False)  # id: the node's; how full they are
NODE_SESSION = Kind("node_session", node_pb2.NodeSession, "sync", kept=False)  # leased while the stream lives
NODE_LAST = Kind("node_last", cluster_pb2.LastSession, "sync", "", _GARBAGE, kept=False, cached=False)  # id: the node's
CONTROLLER = Kind("controller", cluster_pb2.ControllerSession, "peers", kept=False)  # leased
CONTROLLER_LAST = Kind("controller_last", cluster_pb2.LastSession, "peers", "", frozenset({"api"}), kept=False, cached=False)
# Who is expected to be alive; id: the controller's name. Of this installation, so not in backups.
CONTROLLER_MEMBER = Kind("controller_member", cluster_pb2.ControllerMember, "members", "", frozenset({"api"}), kept=False)
CLUSTER = Kind("cluster", cluster_pb2.Cluster, "peers")  # id: "self"

# What was used, by whom and how long. Of this installation, so a restore leaves them where they go on (restore.py).
# id: "self"; put by every transaction that changes what is counted, and checked by none.
USAGE_CLOCK = Kind("usage_clock", usage_pb2.UsageClock, "metering", kept=False, cached=False)
USAGE_CURSOR = Kind("usage_cursor", usage_pb2.UsageCursor, "metering", cached=False)  # id: "self"
USAGE_OPEN = Kind("usage_open", usage_pb2.UsageOpen, "metering", cached=False)  # id: <kind>/<id>
USAGE_DAY = Kind("usage_day", usage_pb2.UsageDay, "metering", cached=False)  # id: <YYYYMMDD>/<project>/<part>
USAGE_MONTH = Kind("usage_month", usage_pb2.UsageMonth, "metering", cached=False)  # id: <YYYYMM>/<project>
USAGE_GAP = Kind("usage_gap", usage_pb2.UsageGap, "metering", cached=False)  # id: <end, us>-<revision>

# Written by whoever has something to tell; ids are unique, nothing is ever changed. Leased, 24 h.
EVENT = Kind("event", event_pb2.Event, "*", "ev", kept=False, cached=False)
EVENT_OF = Kind("event_of", event_pb2.EventRef, "*", kept=False, cached=False)  # id: <object>/<event>; leased with the event

ALL: Final[tuple[Kind[Message], ...]] = (
    PROJECT, IMAGE, VPC, SUBNET, PORT, VOLUME, VM, NODE, JOB, USER, ROLE, BINDING, API_TOKEN, SECRET, JOIN_TOKEN, NAME, VNI,
    IDENTITY_PROVIDER,
    QUOTA, QUOTA_USE, PRICE_LIST, ERASURE, REQUEST, PLAN, AUDIT, AUDIT_HEAD, AUDIT_CUT,
    PORT_BINDING, ADDRESS, PLACEMENT, DECISION, NODE_CLAIMS, VOLUME_PLACEMENT, POOL_CLAIMS, OPENING, ASSIGNMENT, NODE_LOSS,
    NODE_TOLD, PURGE, IMAGE_CONTENT, JOB_STATE,
    OBSERVED, UNKNOWN, NODE_HEARD, NODE_FACTS, NODE_POOLS, NODE_SESSION, NODE_LAST, CONTROLLER, CONTROLLER_LAST,
    CONTROLLER_MEMBER, CLUSTER, USAGE_CLOCK, USAGE_CURSOR, USAGE_OPEN, USAGE_DAY, USAGE_MONTH, USAGE_GAP, EVENT, EVENT_OF,
)  # fmt: skip
# Of ids that are to come: no object may have a name that could be one of them.
_TO_COME: Final = frozenset(
    {
        # Snapshots, backups, their schedules and repositories; pools and volume types.
        "ss", "sss", "bak", "baks", "repo", "pool", "vt",
        # Floating IPs, forwarded ports, security groups, their rules, access lists, virtual IPs, route tables, outer networks.
        "eip", "pf", "sg", "sgr", "acl", "vip", "rtb", "xnet",
        # Load balancers, their listeners, backends and policies; certificates.
        "lb", "lbl", "lbb", "lbp", "cert",
        # Key pairs, placement groups, secrets, bare-metal machines.
        "kp", "ig", "sec", "bm",
        # Access keys.
        "ak",
    }
)  # fmt: skip
ID_PREFIXES: Final = frozenset(kind.id_prefix for kind in ALL if kind.id_prefix) | _TO_COME
BY_NAME: Final[dict[str, Kind[Message]]] = {kind.name: kind for kind in ALL}


@lru_cache(maxsize=2048)
def split(key: str) -> tuple[Kind[Message], str]:
    """Return (kind, id) of a key; KeyError for a key that is not ours."""
    if not key.startswith(ROOT):
        raise KeyError(key)
    name, _, id = key[len(ROOT) :].partition("/")
    return BY_NAME[name], id
