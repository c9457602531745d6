"""Domain XML: a pure function of what is wanted and what this node can do. https://libvirt.org/formatdomain.html

Paravirtual devices only, no graphics, no USB. Spare PCIe root ports let disks and cards be added while the guest runs. The
NoCloud seed is a SCSI CD: Debian's cloud kernel has virtio-scsi but no AHCI. Cards are TAPs that libvirt makes and removes
itself (managed='yes'), so nothing is left of them when QEMU dies. The emulator is left to libvirt's choice, so the result
names no path of this machine but the disks'.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from cairn.agent.hypervisor.base import Disk, DomainSpec
from cairn.agent.hypervisor.mark import NAMESPACE, Mark
from cairn.proto.rpc import split_endpoint
from cairn.proto.v1.agent_pb2 import VmNic
from cairn.proto.v1.node_pb2 import HypervisorFacts

# Counts changes of this builder after which a domain must be redefined.
LAYOUT: Final = 1
SPARE_PORTS: Final = 8
TRANSLATION_CACHE_MIB: Final = 32
GIC_V2_CPUS_MAX: Final = 8
ALIAS_PREFIX: Final = "ua-"
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
# What libvirt calls the secrets of a protocol.
_SECRET_TYPES: Final = {"rbd": "ceph"}
_MACHINE: Final = {"x86_64": "q35", "aarch64": "virt"}


def digest_of(spec: DomainSpec) -> str:
    """Return a digest of all of a spec that is built into the configuration, so a change of it needs a new definition."""
    vm = spec.vm
    content = {
        "layout": LAYOUT,
        "cpus": vm.cpus,
        "memory_bytes": vm.memory_bytes,
        "arch": vm.arch,
        "disks": [_disk_content(disk) for disk in spec.disks],
        "nics": [[nic.tap, nic.mac, nic.mtu] for nic in vm.nics],
        "seed": spec.seed,
        "console_log": spec.console_log,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _disk_content(disk: Disk) -> list[object]:
    content: list[object] = [disk.volume, disk.path, disk.format, disk.boot, disk.read_only]
    content += [disk.slot] if disk.slot else []
    return content if disk.network is None else [*content, asdict(disk.network)]


def uuid_of(id: str) -> str:
    """Return the domain UUID of a VM: RFC 9562 version 5 in our namespace, the same on every node."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{id}"))


def accelerated(arch: str, facts: HypervisorFacts) -> bool:
    """Whether a guest of that architecture runs on the node's own CPUs (facts.archs begins with the node's own)."""
    return facts.accelerator == "kvm" and bool(facts.archs) and facts.archs[0] == arch


def domain_xml(spec: DomainSpec, facts: HypervisorFacts, mark: Mark) -> str:
    """Return the libvirt configuration of a VM. ValueError when the node cannot run its architecture."""
    vm = spec.vm
    if vm.arch not in _MACHINE or vm.arch not in facts.archs:
        raise ValueError(f"{vm.id} is for {vm.arch or 'no architecture'}; this node runs {', '.join(facts.archs) or 'none'}")
    kvm = accelerated(vm.arch, facts)
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    _add(domain, "name", text=vm.id)
    _add(domain, "uuid", text=uuid_of(vm.id))
    if vm.name:
        _add(domain, "title", text=vm.name)
    _add(domain, "metadata").append(mark.element())
    _add(domain, "memory", text=str(vm.memory_bytes // 1024), unit="KiB")
    _add(domain, "vcpu", text=str(vm.cpus))
    _platform(domain, spec, kvm=kvm)
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _add(domain, event, text=action)
    _devices(_add(domain, "devices"), spec)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def disk_element(disk: Disk, target: str) -> ET.Element:
    """Return the device element of a disk; its alias names the volume, so an observed disk can be told from any other."""
    element = ET.Element("disk", type="network" if disk.network is not None else "file", device="disk")
    _add(element, "driver", name="qemu", type=disk.format, cache="none", discard="unmap")
    _source(element, disk)
    _add(element, "target", dev=target, bus="virtio")
    _add(element, "serial", text=disk.volume)
    if disk.read_only:
        _add(element, "readonly")
    if disk.boot:
        _add(element, "boot", order="1")
    _add(element, "alias", name=ALIAS_PREFIX + disk.volume)
    return element


def _source(element: ET.Element, disk: Disk) -> None:
    """Add where the bytes are: libvirt's domain format, disk type "file" or "network"."""
    network = disk.network
    if network is None:
        _add(element, "source", file=disk.path)
        return
    source = _add(element, "source", protocol=network.protocol, name=disk.path)
    for endpoint in network.hosts:
        host, port = split_endpoint(endpoint)
        _add(source, "host", name=host, port=str(port))
    if network.config:
        _add(source, "config", file=network.config)
    if network.secret:
        auth = _add(source, "auth", username=network.user)
        _add(auth, "secret", type=_SECRET_TYPES.get(network.protocol, network.protocol), uuid=network.secret)


def disk_elements(domain: ET.Element) -> dict[str, ET.Element]:
    """Return the disks in a domain's XML that are volumes of ours, by volume id."""
    found = {}
    for element in domain.iterfind("devices/disk"):
        alias = element.find("alias")
        name = alias.get("name", "") if alias is not None else ""
        if name.startswith(ALIAS_PREFIX):
            found[name.removeprefix(ALIAS_PREFIX)] = element
    return found


def volumes_in(domain: ET.Element) -> tuple[str, ...]:
    """Return the volumes in a domain's XML, in the order of their targets: vda, vdb, ..."""
    targets = {volume: element.find("target") for volume, element in disk_elements(domain).items()}
    names = {volume: target.get("dev", "") if target is not None else "" for volume, target in targets.items()}
    return tuple(sorted(names, key=lambda volume: (names[volume], volume)))


def free_target(domains: list[ET.Element], slot: int = 0) -> str:
    """Return the disk name of a slot (0 is vda), or else the first, that none of these configurations uses.

    ValueError when all 26 are taken.
    """
    taken = {element.get("dev") for domain in domains for element in domain.iterfind("devices/disk/target")}
    for letter in _LETTERS[slot : slot + 1] + _LETTERS:
        if f"vd{letter}" not in taken:
            return f"vd{letter}"
    raise ValueError("a guest has at most 26 disks")


def taps_in(domain: ET.Element) -> tuple[str, ...]:
    """Return the TAP names of the cards in a domain's XML."""
    targets = (element.get("dev", "") for element in domain.iterfind("devices/interface/target"))
    return tuple(name for name in targets if name)


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    if text:
        element.text = text
    return element


def _platform(domain: ET.Element, spec: DomainSpec, *, kvm: bool) -> None:
    arm = spec.vm.arch == "aarch64"
    system = _add(domain, "os")
    _add(system, "type", text="hvm", arch=spec.vm.arch, machine=_MACHINE[spec.vm.arch])
    if arm:
        # AArch64 machines have no other firmware; without this libvirt picks the build that refuses unsigned loaders.
        system.set("firmware", "efi")
        _add(_add(system, "firmware"), "feature", enabled="no", name="secure-boot")
    features = _add(domain, "features")
    _add(features, "acpi")
    if arm and not kvm:
        _add(features, "gic", version="2" if spec.vm.cpus <= GIC_V2_CPUS_MAX else "3")
    if not arm:
        _add(features, "apic")
    if not kvm:
        _add(_add(features, "tcg"), "tb-cache", text=str(TRANSLATION_CACHE_MIB), unit="MiB")
    if kvm:
        cpu = _add(domain, "cpu", mode="host-passthrough", check="none", migratable="on")
    elif arm:
        # "maximum" has pointer authentication, which costs an emulated guest four times its boot.
        cpu = _add(domain, "cpu", mode="custom", match="exact", check="none")
        _add(cpu, "model", text="cortex-a57", fallback="forbid")
    else:
        cpu = _add(domain, "cpu", mode="maximum", check="none", migratable="on")
    _add(cpu, "topology", sockets="1", dies="1", cores=str(spec.vm.cpus), threads="1")
    clock = _add(domain, "clock", offset="utc")
    if kvm and not arm:
        _add(clock, "timer", name="rtc", tickpolicy="catchup")
        _add(clock, "timer", name="pit", tickpolicy="delay")
        _add(clock, "timer", name="hpet", present="no")


def _devices(devices: ET.Element, spec: DomainSpec) -> None:
    _controllers(devices, spec)
    for disk, target in _targets(spec.disks):
        devices.append(disk_element(disk, target))
    if spec.seed:
        seed = _add(devices, "disk", type="file", device="cdrom")
        _add(seed, "driver", name="qemu", type="raw")
        _add(seed, "source", file=spec.seed)
        _add(seed, "target", dev="sda", bus="scsi")
        _add(seed, "readonly")
    for nic in spec.vm.nics:
        _interface(devices, nic)
    serial = _add(devices, "serial", type="pty")
    if spec.console_log:
        _add(serial, "log", file=spec.console_log, append="on")
    _add(serial, "target", port="0")
    _add(_add(devices, "console", type="pty"), "target", type="serial", port="0")
    _add(_add(devices, "channel", type="unix"), "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(_add(devices, "rng", model="virtio"), "backend", text="/dev/urandom", model="random")
    _add(devices, "memballoon", model="virtio", freePageReporting="on")
    if spec.vm.arch == "x86_64":
        # How a kernel says it panicked; libvirt 9 has no such device for "virt".
        _add(devices, "panic", model="isa")


def _targets(disks: Sequence[Disk]) -> list[tuple[Disk, str]]:
    """Return the disks in the order the guest is to find them, each with its name: that of its slot, or the first free one."""
    taken: set[str] = set()
    result = []
    for disk in sorted(disks, key=lambda disk: disk.slot):
        target = next(f"vd{letter}" for letter in _LETTERS[disk.slot :] + _LETTERS if f"vd{letter}" not in taken)
        taken.add(target)
        result.append((disk, target))
    return result


def _controllers(devices: ET.Element, spec: DomainSpec) -> None:
    _add(devices, "controller", type="pci", index="0", model="pcie-root")
    # One per card, disk, serial bus, generator, balloon, SCSI controller; the rest are for what is added later.
    for index in range(1, len(spec.vm.nics) + len(spec.disks) + 4 + SPARE_PORTS + 1):
        _add(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
    if spec.vm.arch == "x86_64":
        _add(devices, "controller", type="usb", index="0", model="none")
    _add(devices, "controller", type="virtio-serial", index="0")
    if spec.seed:
        _add(devices, "controller", type="scsi", index="0", model="virtio-scsi")


def _interface(devices: ET.Element, nic: VmNic) -> None:
    interface = _add(devices, "interface", type="ethernet")
    _add(interface, "mac", address=nic.mac)
    _add(interface, "target", dev=nic.tap, managed="yes")
    _add(interface, "model", type="virtio")
    if nic.mtu:
        _add(interface, "mtu", size=str(nic.mtu))
    # No PXE: its option ROM waits for a key at every boot.
    _add(interface, "rom", enabled="no")
