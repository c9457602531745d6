"""What the verbs of `cairn vm` are about: how VMs are shown, and what is waited for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cairn.controller.cli.noun import Noun
from cairn.controller.cli.output import Column, Detail, Section
from cairn.controller.cli.values import counted, size_text, state_text
from cairn.controller.cli.waiting import Goal


class Rebooted(Goal):
    """Its guest was seen to begin anew, or let the request pass: then its node says for how long it waited."""

    def reached(self, message: Any) -> bool:
        """Tell whether it did."""
        return super().reached(message) and message.status.rebooted_generation >= message.spec.reboot_generation

    def failure(self, message: Any) -> str:
        """Return why it did not."""
        settled = state_text(message.status) == "RUNNING" and not message.reconciling
        if settled and message.status.rebooted_generation < message.spec.reboot_generation:
            return str(message.status.say)
        return super().failure(message)


RUNNING = Goal("running", frozenset({"RUNNING"}))
REBOOTED = Rebooted("rebooted", frozenset({"RUNNING"}))
STOPPED = Goal("stopped", frozenset({"STOPPED"}))
SETTLED = Goal("settled", frozenset({"RUNNING", "STOPPED"}))
GONE = Goal("gone", frozenset({"DELETED"}), gone=True)
GOALS = {"running": RUNNING, "stopped": STOPPED, "settled": SETTLED, "deleted": GONE}


def _addresses(vm: Any) -> str:
    return ",".join(address for nic in vm.status.nics for address in nic.addresses)


def _details(vm: Any) -> Iterable[Detail]:
    spec, status = vm.spec, vm.status
    yield "Node", status.node
    yield "Size", f"{counted(spec.cpus, 'cpu')}, {size_text(spec.memory_bytes)} memory"
    yield "Image", f"{status.image_name} ({spec.image})" if status.image_name else spec.image
    yield "Architecture", spec.arch
    yield "Runs by", status.accelerator
    names = {volume.id: f"{volume.name} ({volume.id})" for volume in status.volumes}
    root = [names.get(spec.root_volume, spec.root_volume), size_text(spec.root_disk_bytes) if spec.root_disk_bytes else ""]
    yield "Root disk", " ".join(filter(None, root))
    yield "Volumes", [names.get(id, id) for id in spec.volumes]
    rows = [
        (nic.subnet_name or nic.subnet, f"{', '.join(nic.addresses) or 'no address yet'}  {nic.mac}  {nic.port}")
        for nic in status.nics
    ]
    yield Section("Network", rows)
    yield "Only on node", spec.node
    yield "Needs labels", [f"{key}={value}" for key, value in sorted(spec.node_selector.items())]
    yield "Highly available", "yes" if spec.high_availability else ""
    yield "Started", status.start_time
    if status.boot_time.ToNanoseconds() > status.start_time.ToNanoseconds():
        yield "Rebooted", status.boot_time
    yield "Boots", str(status.boots) if status.boots > 1 else ""


NOUN = Noun(
    "vm",
    "vms",
    "VM",
    columns=[
        Column("NAME", lambda vm: vm.name),
        Column("ID", lambda vm: vm.id),
        Column("STATE", lambda vm: state_text(vm.status)),
        Column("NODE", lambda vm: vm.status.node),
        Column("ADDRESS", _addresses),
        Column("CPUS", lambda vm: vm.spec.cpus, right=True),
        Column("MEMORY", lambda vm: size_text(vm.spec.memory_bytes), right=True),
        Column("AGE", lambda vm: vm.create_time),
        Column("IMAGE", lambda vm: vm.status.image_name, wide=True),
        Column("ARCH", lambda vm: vm.spec.arch, wide=True),
        Column("SAYS", lambda vm: vm.status.say, wide=True),
    ],
    details=_details,
    soft_delete=True,
)
