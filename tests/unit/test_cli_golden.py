"""What people see, as transcripts a person can read: tests/golden/cli. CAIRN_GOLDEN=write writes them anew.

`$` is what was typed, plain lines went to stdout, lines with `!` to stderr.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cairn.proto.addresses import set_addresses
from cairn.proto.errors import BadState, Exhausted, Invalid, TryAgain
from cairn.proto.v1.audit_pb2 import AuditChain, AuditProgress, AuditVerdict, ListAuditsResponse, VerifyAuditsResponse
from cairn.proto.v1.cluster_pb2 import ForgetUnknownResponse, GetClusterStatusResponse, UnknownObject
from cairn.proto.v1.common_pb2 import Plan
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.job_pb2 import Job
from cairn.proto.v1.port_pb2 import Port
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.subnet_pb2 import Subnet
from cairn.proto.v1.vm_pb2 import ExplainVmResponse, Vm
from cairn.proto.v1.volume_pb2 import Volume
from cairn.proto.v1.vpc_pb2 import Vpc

from tests.unit.cli_cloud import BORN, Cloud
from tests.unit.cli_objects import cloud, decision, node, vm  # noqa: F401
from tests.unit.cli_run import GOLDEN, run, transcript


def fill(cloud: Cloud) -> None:  # noqa: F811
    """Put one or two of everything there."""
    waiting = vm("db", "PENDING", "i-000000db", "", "no node has 2 GiB of memory free; the most is 1.2 GiB on n3")
    set_addresses(waiting.status.nics[0], ())
    volume = Volume(id="vol-data0001", name="data")
    volume.spec.size_bytes, volume.spec.type, volume.spec.vm = 10 << 30, "local", "i-0000web1"
    volume.status.state, volume.status.vm_name, volume.status.node = 4, "web", "n2"
    volume.status.say, volume.status.used_bytes = "attached to web on n2", 196_608
    image = Image(id="img-demo0001", name="demo")
    image.spec.digest, image.spec.size_bytes, image.spec.format, image.spec.arch = "sha256:" + "ab" * 32, 20 << 20, 1, "x86_64"
    image.status.state, image.status.virtual_size_bytes, image.status.say = 3, 64 << 20, "ready on n1, n2"
    image.status.nodes.extend(["n1", "n2"])
    vpc = Vpc(id="rtr-00000001", name="demo")
    vpc.spec.cidr, vpc.spec.vni, vpc.status.subnets, vpc.status.say = "10.1.0.0/16", 4096, 1, "ready"
    subnet = Subnet(id="vxnet-blue", name="blue")
    subnet.spec.vpc, subnet.spec.cidr, subnet.status.vpc_name = "rtr-00000001", "10.1.1.0/24", "demo"
    subnet.status.gateway, subnet.status.addresses_total, subnet.status.addresses_used = "10.1.1.1", 253, 2
    port = Port(id="nic-00000001", name="nic-00000001")
    port.spec.subnet, port.spec.mac = "vxnet-blue", "2a:00:00:00:00:01"
    port.spec.owner.kind, port.spec.owner.id = "vm", "i-0000web1"
    port.status.owner_name, port.status.subnet_name, port.status.node = "web", "blue", "n2"
    port.status.state, port.status.say = 3, "active on n2"
    port.status.addresses.append("10.1.1.2")
    job = Job(id="j-00000001")
    job.spec.kind, job.spec.target, job.status.state, job.status.percent = "import_image", "img-demo0001", "replicate", 66
    job.status.say = "copying to n2 (40 %)"
    event = Event(id="ev-1", object="i-0000web1", object_name="web", reason="Placed", message="placed on n2", node="n2")
    event.event_time.FromDatetime(BORN)
    crash = Event(
        id="ev-2", object="i-0000web1", object_name="web", reason="Crashed", message="QEMU ended: exit 1", warning=True
    )
    crash.event_time.FromDatetime(BORN)
    for noun, message in (
        ("vm", vm()), ("vm", waiting), ("volume", volume), ("image", image), ("vpc", vpc), ("subnet", subnet), ("port", port),
        ("job", job), ("project", Project(id="prj-red00000", name="red")), ("node", node()), ("event", event), ("event", crash),
    ):  # fmt: skip
        cloud.do(cloud.add(noun, message))


def unknown() -> list[UnknownObject]:
    told = [
        {"key": "vm/i-0000gone", "name": "old", "running": True, "say": "its guest runs"},
        {"key": "vm/i-0000many", "name": "shop", "running": True, "say": "managed as before", "doubted": True},
        {"key": "vm/i-0000kept", "name": "web", "say": "stays so", "contested": True},
        {"key": "volume/vol-0000gone", "say": "is kept here"},
    ]  # fmt: skip
    found = [UnknownObject(node="node-00000001", node_name="n1", **each) for each in told]
    for each in found:
        each.since_time.FromDatetime(BORN)
    return found


def status(_request: Any) -> GetClusterStatusResponse:
    answer = GetClusterStatusResponse(name="lab", epoch=1, revision=812, nodes_ready=2, nodes_down=1, vms=2, vms_running=1)
    answer.say = "node n3 does not answer"
    for number in (1, 2):
        answer.controllers.add(name=f"n{number}", endpoints=[f"172.31.0.1{number}:7443"], version="0.1.0")
        answer.members.add(
            endpoint=f"172.31.0.1{number}:2379", healthy=number == 1, leader=number == 1, size_bytes=5 << 19, version="3.4.23"
        )
    return answer


def planned(_request: Any) -> Vm:
    plan = Plan(plan_id="plan-1a2b3c4d", say="1 VM with 1 volume and 1 port on n2", decision=decision())
    plan.changes.add(action="create", kind="vm", id="i-0000web2", name="web2", details=["2 cpus, 128 MiB", "node n2"])
    plan.changes.add(action="create", kind="volume", id="vol-0000web2", name="web2-root", details=["disk 64 MiB on n2"])
    plan.changes.add(action="allocate", kind="port", id="nic-0000web2", details=["address 10.1.1.3 in blue"])
    return Vm(plan=plan)


def explained(_request: Any) -> ExplainVmResponse:
    return ExplainVmResponse(vm="i-0000web1", vm_name="web", decision=decision(), say="running on n2")


def nowhere(_request: Any) -> ExplainVmResponse:
    return ExplainVmResponse(vm="i-000000db", vm_name="db", decision=decision(""), say="waits for a node with room")


STILL_HAS = BadState("node", "n1", "node 'n1' still has 1 VM (web): delete what is on it")


def planned_removal(_request: Any) -> Any:
    made = node()
    made.plan.say, made.plan.plan_id = "would delete node n1", "plan-00000002"
    made.plan.changes.add(action="delete", kind="node", id=made.id, name="n1")
    return made


CHAINS = [
    AuditChain(chain="c1", number=4711, cut=4700, records=4711, filed_first=1, filed_last=4700),
    AuditChain(chain="c2", number=1, records=1),
]
BROKEN = ["chain c1: record 4702 does not follow record 4701: one of them is not what was written"]


def verified(**found: Any) -> list[VerifyAuditsResponse]:
    """What a controller tells while it verifies, and last."""
    progress = AuditProgress(records=5000, whole=12000, chain="c1", file="c1.x.audit")
    return [VerifyAuditsResponse(progress=progress), VerifyAuditsResponse(verdict=AuditVerdict(**found))]


def erased(_request: Any) -> ListAuditsResponse:
    answer = ListAuditsResponse()
    made, deleted, gone = (answer.audits.add(object="vm/i-00000old", object_name="old") for _ in range(3))
    made.caller, made.who, made.method = "user", "ann", "CreateVm"
    made.changes.add(field="name", after="old")
    deleted.caller, deleted.who, deleted.method, deleted.request_id = "user", "ann", "DeleteVm", "0191d9a0"
    deleted.changes.add(field="delete_request", after="0191d9a0")
    gone.caller, gone.who, gone.method, gone.cause = "system", "garbage", "EraseVm", "0191d9a0"
    gone.changes.add(field="name", before="old")
    for minute, audit in enumerate(answer.audits):
        audit.time.FromDatetime(BORN + timedelta(minutes=minute))
    return answer


def audited(_request: Any) -> ListAuditsResponse:
    answer = ListAuditsResponse()
    about = {"caller": "user", "object": "vm/i-0000web1", "object_name": "web", "chain": "c1", "address": "10.0.0.7"}
    first = answer.audits.add(who="admin", method="CreateVpc", number=4709, revision=980, first_administrator=True, **about)
    first.object, first.object_name = "vpc/rtr-0000home", "home"
    made = answer.audits.add(who="ann", method="CreateVm", number=4710, revision=990, request_id="7c0d", **about)
    made.changes.add(field="name", after="web")
    made.changes.add(field="spec.cpus", after="1")
    made.changes.add(field="spec.memory_bytes", after="134217728")
    made.changes.add(object="secret/vm/i-0000web1", after="sha256:9f86d081884c7d65")
    changed = answer.audits.add(who="bob", token="tok-00000001", method="UpdateVm", number=4711, revision=1002, **about)
    changed.changes.add(field="spec.cpus", before="1", after="2")
    changed.changes.add(field="spec.restart_policy", before="RESTART_POLICY_ALWAYS", after="RESTART_POLICY_NEVER")
    changed.changes_left = 2
    removed = answer.audits.add(chain="c2", number=1, caller="system", who="jobs", method="DeleteImage", object="image/img-1")
    removed.revision = 1003
    no = answer.audits.add(who="eve", method="DeleteVm", number=4712, revision=1009, refusal="PERMISSION_DENIED", **about)
    no.count, no.say = 3, "user 'eve' may not delete VM 'web'"
    for minute, each in enumerate(answer.audits):
        each.time.FromDatetime(BORN + timedelta(minutes=minute))
    return answer


def refusing(error: Exception) -> Callable[[Any], Any]:
    def refuse(_request: Any) -> Any:
        raise error

    return refuse


CASES: dict[str, list[tuple[str, dict[str, Callable[[Any], Any]]]]] = {
    "vms": [
        ("vm list", {}),
        ("vm list -o wide", {}),
        ("vm list -o name", {}),
        ("vm show web", {}),
        ("vm show db", {}),
        ("vm show web -o yaml", {}),
        ("vm events web", {}),
    ],
    "decisions": [
        ("vm explain web", {"ExplainVm": explained}),
        ("vm explain db", {"ExplainVm": nowhere}),
        ("vm create web2 --cpus 2 --memory 128MiB --image demo --subnet blue --plan", {"CreateVm": planned}),
    ],
    "nodes": [
        ("node list", {}),
        ("node list -o wide", {}),
        ("node show n1", {}),
        ("node label n1 --set rack=b --remove x", {}),
        ("node remove n1 --plan", {"DeleteNode": planned_removal}),
        ("node remove n1", {"DeleteNode": refusing(STILL_HAS)}),
        ("node remove n1", {}),
        ("node show n1", {}),
    ],
    "unknown": [
        ("node show n1", {}),
        ("cluster adopt", {}),
        ("node forget n1", {}),
        ("node forget n1 --all", {}),
        ("node forget n1 --all --plan", {}),
        ("node forget n1 vm/i-0000gone --plan", {}),
        ("node forget n1 vm/i-0000kept --plan", {}),
        ("node forget n1 vm/i-0000gone --yes", {"ForgetUnknown": lambda _: ForgetUnknownResponse(title="VM old (i-0000gone)")}),
        ("node forget n1 --all --plan-id plan-1", {}),
    ],
    "network": [
        ("vpc list", {}),
        ("subnet list", {}),
        ("port list", {}),
        ("port show nic-00000001", {}),
        ("subnet show blue", {}),
        ("vpc create other --cidr 10.2.0.0/16 --label env=test", {}),
    ],
    "storage": [
        ("volume list", {}),
        ("volume list -o wide", {}),
        ("image list", {}),
        ("image show demo", {}),
        ("volume show data", {}),
    ],
    "operations": [
        ("job list", {}),
        ("job show j-00000001", {}),
        ("event list", {}),
        ("event list -o wide", {}),
        ("cluster status", {"GetClusterStatus": status}),
        ("cluster status --check -o json", {"GetClusterStatus": lambda _: GetClusterStatusResponse(name="lab", healthy=True)}),
        ("cluster status --check", {"GetClusterStatus": status}),
    ],
    "audit": [
        ("audit list --who ann --since 2026-01-01T08:00", {"ListAudits": audited}),
        ("audit list -o wide", {"ListAudits": audited}),
        ("audit list --refused", {"ListAudits": audited}),
        ("audit list --since yesterday", {}),
        ("audit list --object nope", {"ListAudits": lambda _: ListAuditsResponse()}),
        ("vm history web", {"ListAudits": audited}),
        ("vm history old", {"ListAudits": [erased, erased]}),
        ("vm history nope", {"ListAudits": lambda _: ListAuditsResponse()}),
        ("audit verify", {"VerifyAudits": lambda _: verified(chains=CHAINS)}),
        ("audit verify", {"VerifyAudits": lambda _: verified(chains=CHAINS, broken=BROKEN)}),
        ("audit verify -o json", {"VerifyAudits": lambda _: verified(chains=CHAINS[1:], broken=BROKEN)}),
        ("audit verify", {"VerifyAudits": lambda _: verified()[:1]}),
        ("audit verify", {"VerifyAudits": [lambda _: [*verified()[:1], TryAgain("c1 ends")], lambda _: verified()]}),
    ],
    "refusals": [
        ("vm create web --image demo", {}),
        ("vm create big --image demo --cpus 0", {}),
        ("vm create small --image demo --memory 128", {}),
        ("vm create Big --image demo", {"CreateVm": refusing(Invalid("vm.name", "'Big' is not a name"))}),
        (
            "vm create huge --image demo --memory 900GiB",
            {"CreateVm": refusing(Exhausted("memory", "no node has 900 GiB of memory; the largest has 1.8 GiB"))},
        ),
        ("image delete demo", {"DeleteImage": refusing(BadState("image", "demo", "image 'demo' is used by 2 volumes"))}),
        ("vm show nope", {}),
        ("vm list --plan", {}),
        ("vm create x --image demo --memory 5GB", {}),
        ("volume undelete data --plan", {}),
        ("node list -o xml", {}),
        ("image import x --file /etc/hostname --url https://example.org/x", {}),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_transcripts(cloud: Cloud, name: str) -> None:  # noqa: F811
    fill(cloud)
    cloud.unknown = unknown() if name == "unknown" else []
    seen = []
    for command, scripts in CASES[name]:
        for method, script in scripts.items():
            cloud.scripts[method] += script if isinstance(script, list) else [script]
        seen.append(transcript(f"cairn {command}", run(cloud, *shlex.split(command))))
    text = "\n".join(seen)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("CAIRN_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    tables = [line for command in seen if " -o wide" not in command for line in command.splitlines()[1:]]
    assert all(len(line) <= 100 for line in tables if not line.startswith(("!", "  ", "plan ")))
