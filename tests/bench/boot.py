"""From `CreateVm` to a guest that runs, through the whole cloud, against bare libvirt: `python -m tests.bench.boot` (as root).

A lab of one server; the image is there, and so is the network, as another VM has a card in it. The clock starts at the call
and stops when a watch at the API shows RUNNING. The baseline defines and starts the same XML on the same libvirtd, with its own
names and an overlay made beforehand. Rounds alternate; each guest is erased before the next.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import libvirt
from cairn.proto.log import configure
from cairn.proto.v1 import vm_pb2_grpc
from cairn.proto.v1.vm_pb2 import POWER_STATE_STOPPED, Vm, VmStatus, WatchVmsRequest

from tests.bench.cloud import GUEST_S, administrator, cloud, erase, missing, request
from tests.bench.report import line, skipped, title
from tests.lab.lab import Lab

WARM_UPS = 2
ROUNDS = 7
# In the server; the same folder is data/lib/bench from outside.
SCRATCH = "/var/lib/cairn/bench"
STEPS = ("acknowledged", "placed", "WriteSeed", "Define", "Start", "BindPorts", "Resume", "seen")


@dataclass
class Round:
    """One guest's way; times in seconds after the call."""

    total_s: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)


async def through_the_cloud(lab: Lab, vms: Any, name: str, bare: Bare) -> Round:
    """Create a guest, wait until it is seen to run, let the baseline have its XML, erase it."""
    result, made = Round(), Vm()
    call = vms.WatchVms(WatchVmsRequest(filter=f'name = "{name}"'))
    changes = aiter(call)
    await anext(changes)
    began, started = time.time(), time.perf_counter()

    async def acknowledged() -> None:
        made.CopyFrom(await vms.CreateVm(request(name)))
        result.steps["acknowledged"] = time.perf_counter() - started

    creating = asyncio.create_task(acknowledged())
    async with asyncio.timeout(GUEST_S):
        async for change in changes:
            status = change.vm.status
            if status.node:
                result.steps.setdefault("placed", time.perf_counter() - started)
            if status.state == VmStatus.STATE_RUNNING:
                break
    result.total_s = result.steps["seen"] = time.perf_counter() - started
    call.cancel()
    await creating
    result.steps |= {step: at - began for step, at in agent_did(lab, made.id)}
    bare.learn(made.id)
    await erase(vms, made)
    return result


def agent_did(lab: Lab, vm: str) -> Iterator[tuple[str, float]]:
    """What the agent's log says it did for a VM, and when."""
    for text in (lab.host("n1").folder / "log" / "agent.log").read_text().splitlines():
        if vm not in text or '"done"' not in text:
            continue
        event = json.loads(text)
        if event.get("vm") == vm and event.get("event") == "done" and event["action"] in STEPS:
            yield event["action"], datetime.fromisoformat(event["timestamp"]).timestamp()


class Bare:
    """The same machine by libvirt alone."""

    def __init__(self, lab: Lab) -> None:
        self._host = lab.host("n1")
        self._folder = self._host.folder / "data" / "lib" / "bench"
        self._folder.mkdir()
        socket = self._host.folder / "libvirt" / "run" / "libvirt-sock"
        self._connection = libvirt.open(f"qemu+unix:///system?socket={socket}")
        self._count = 0
        self._xml = self._backing = ""

    def learn(self, id: str) -> None:
        """Take over a domain's XML and seed before it is erased."""
        self._xml = self._connection.lookupByName(id).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        domain = ET.fromstring(self._xml)
        for source in domain.iterfind("devices/disk[@device='cdrom']/source"):
            inside = Path(source.get("file", "")).relative_to("/var/lib/cairn")
            shutil.copyfile(self._folder.parent / inside, self._folder / "seed")
        (disk,) = domain.iterfind("devices/disk[@device='disk']/source")
        shown = self._host.run("qemu-img", "info", "--force-share", "--output=json", disk.get("file", ""))
        self._backing = json.loads(shown.stdout)["full-backing-filename"]

    def round(self) -> float:
        """Define and start one, destroy it; return the seconds the first two took."""
        self._count += 1
        xml = self._own_xml()
        overlay = f"{SCRATCH}/disk-{self._count}"
        self._host.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", self._backing, overlay)
        started = time.perf_counter()
        domain = self._connection.defineXML(xml)
        domain.create()
        while domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            time.sleep(0.001)
        took_s = time.perf_counter() - started
        domain.destroy()
        domain.undefine()
        return took_s

    def _own_xml(self) -> str:
        """The XML with names of its own; without the mark, or the agent would take it for one of its guests."""
        domain = ET.fromstring(self._xml)
        for tag in ("metadata", "title"):
            for element in domain.findall(tag):
                domain.remove(element)
        _find(domain, "name").text = f"bare-{self._count}"
        _find(domain, "uuid").text = str(uuid.uuid4())
        _find(domain, "devices/disk[@device='disk']/source").set("file", f"{SCRATCH}/disk-{self._count}")
        for source in domain.iterfind("devices/disk[@device='cdrom']/source"):
            source.set("file", f"{SCRATCH}/seed")
        for log in domain.iterfind("devices/*/log"):
            log.set("file", f"{SCRATCH}/console-{self._count}")
        _find(domain, "devices/interface/target").set("dev", f"tap-bare{self._count}")
        _find(domain, "devices/interface/mac").set("address", f"52:54:00:ba:5e:{self._count:02x}")
        return ET.tostring(domain, encoding="unicode")

    def close(self) -> None:
        self._connection.close()


def _find(domain: ET.Element, path: str) -> ET.Element:
    found = domain.find(path)
    assert found is not None, f"the domain has no {path}"
    return found


async def measure(lab: Lab) -> None:
    bare = Bare(lab)
    ours: list[Round] = []
    baseline: list[float] = []
    async with administrator(lab) as channel:
        vms = vm_pb2_grpc.VmServiceStub(channel)
        standing = request("standing")
        standing.vm.spec.power_state = POWER_STATE_STOPPED
        await vms.CreateVm(standing)
        for number in range(WARM_UPS + ROUNDS):
            ours.append(await through_the_cloud(lab, vms, f"round-{number}", bare))
            baseline.append(await asyncio.to_thread(bare.round))
    bare.close()
    tell(ours[WARM_UPS:], baseline[WARM_UPS:])


def tell(ours: list[Round], baseline: list[float]) -> None:
    took, other = statistics.median(each.total_s for each in ours), statistics.median(baseline)
    line("CreateVm to running, median", took * 1000, "ms", baseline=("bare libvirt define + start", other * 1000), aim="1.3 x")
    line("    fastest", min(each.total_s for each in ours) * 1000, "ms", baseline=("bare libvirt", min(baseline) * 1000))
    line("    slowest", max(each.total_s for each in ours) * 1000, "ms", baseline=("bare libvirt", max(baseline) * 1000))
    print("    on the way, median ms after the call: " + ", ".join(f"{name} {ms:.0f}" for name, ms in way(ours).items()))


def way(rounds: list[Round]) -> Mapping[str, float]:
    """When each step was done, in the order of time."""
    medians = {
        step: statistics.median(each.steps[step] for each in rounds) * 1000
        for step in STEPS
        if all(step in each.steps for each in rounds)
    }
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def main() -> None:
    title("Boot")
    configure("warning")
    if reason := missing():
        skipped(reason)
        return
    with cloud() as lab:
        asyncio.run(measure(lab))


if __name__ == "__main__":
    main()
