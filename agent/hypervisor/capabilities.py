"""What guests can be on this node, from libvirt's capabilities and the CPU's own word.

/dev/kvm is not believed: on some virtual machines it exists and libvirt offers it, yet guests crawl. KVM counts only when
libvirt offers it and the CPU itself has hardware virtualisation: vmx or svm in /proc/cpuinfo on x86. On AArch64 there is no
such flag, but the kernel makes /dev/kvm only when it was booted at EL2, so libvirt's word is enough.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any, Final

import libvirt
from cairn.proto.v1.node_pb2 import HypervisorFacts

GUEST_ARCHS: Final = ("x86_64", "aarch64")
_MACHINE: Final = {"x86_64": "q35", "aarch64": "virt"}


def read_facts(connection: Any, cpuinfo: str) -> HypervisorFacts:
    """Return the facts; archs begins with the node's own. With KVM only that one: other nodes may run the others natively."""
    # From libvirtd over a root-only socket, not from outside.
    capabilities = ET.fromstring(connection.getCapabilities())  # noqa: S314
    own = capabilities.findtext("host/cpu/arch", "")
    offered = {arch: kinds for arch in GUEST_ARCHS if (kinds := _kinds(capabilities, arch))}
    kvm = "kvm" in offered.get(own, set()) and hardware_virtualisation(own, cpuinfo)
    archs = [own] if kvm else sorted(offered, key=lambda arch: arch != own)
    return HypervisorFacts(
        accelerator="kvm" if kvm else "tcg",
        archs=[arch for arch in archs if _boots(connection, arch, "kvm" if kvm else "qemu")],
        libvirt_version=_dotted(connection.getLibVersion()),
        qemu_version=_dotted(connection.getVersion()),
        cpu_mode="host-passthrough" if kvm else "maximum",
    )


def hardware_virtualisation(arch: str, cpuinfo: str) -> bool:
    """Whether the CPU can run guests by itself."""
    if arch == "x86_64":
        return re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.MULTILINE) is not None
    return arch == "aarch64"


def _kinds(capabilities: ET.Element, arch: str) -> set[str]:
    """Domain types ("qemu", "kvm") that libvirt offers for an architecture."""
    found = capabilities.iterfind(f"guest/arch[@name='{arch}']/domain")
    return {domain.get("type", "") for domain in found}


def _boots(connection: Any, arch: str, kind: str) -> bool:
    """Whether a disk can boot there: AArch64 needs UEFI firmware to be installed."""
    if arch == "x86_64":
        return True
    try:
        shown = connection.getDomainCapabilities(None, arch, _MACHINE[arch], kind)
    except libvirt.libvirtError:
        return False
    values = ET.fromstring(shown).iterfind("os/enum[@name='firmware']/value")  # noqa: S314
    return any(value.text == "efi" for value in values)


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
