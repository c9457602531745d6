"""What a node says its guests can be, from recorded answers of libvirt and the kernel."""

from __future__ import annotations

import pytest

pytest.importorskip("libvirt")

import libvirt
from cairn.agent.hypervisor.capabilities import hardware_virtualisation, read_facts

VMX = "processor : 0\nflags\t\t: fpu vme vmx sse2\n"
SVM = "processor : 0\nflags\t\t: fpu svm\n"
NEITHER = "processor : 0\nmodel name : vmx-less\nflags\t\t: fpu vme hypervisor svm_lock\n"


def guest(arch: str, *kinds: str) -> str:
    domains = "".join(f"<domain type='{kind}'/>" for kind in kinds)
    return f"<guest><os_type>hvm</os_type><arch name='{arch}'>{domains}</arch></guest>"


class Recorded:
    """A virConnect that answers from a recording."""

    def __init__(self, own: str, *guests: str, firmware: str = "<value>efi</value>") -> None:
        self.own, self.guests, self.firmware = own, guests, firmware

    def getCapabilities(self) -> str:
        return f"<capabilities><host><cpu><arch>{self.own}</arch></cpu></host>{''.join(self.guests)}</capabilities>"

    def getDomainCapabilities(self, _emulator: None, arch: str, _machine: str, _kind: str) -> str:
        if arch == "aarch64" and self.firmware == "broken":
            raise libvirt.libvirtError("no such machine")
        return f"<domainCapabilities><os><enum name='firmware'>{self.firmware}</enum></os></domainCapabilities>"

    def getLibVersion(self) -> int:
        return 9_000_000

    def getVersion(self) -> int:
        return 7_002_022


@pytest.mark.parametrize(
    ("cpuinfo", "accelerator", "mode"),
    [(VMX, "kvm", "host-passthrough"), (SVM, "kvm", "host-passthrough"), (NEITHER, "tcg", "maximum")],
)
def test_kvm_counts_only_when_the_cpu_has_it(cpuinfo: str, accelerator: str, mode: str) -> None:
    facts = read_facts(Recorded("x86_64", guest("x86_64", "qemu", "kvm")), cpuinfo)
    assert (facts.accelerator, facts.cpu_mode, list(facts.archs)) == (accelerator, mode, ["x86_64"])
    assert (facts.libvirt_version, facts.qemu_version) == ("9.0.0", "7.2.22")


def test_kvm_counts_only_when_libvirt_offers_it() -> None:
    assert read_facts(Recorded("x86_64", guest("x86_64", "qemu")), VMX).accelerator == "tcg"


def test_emulated_architectures_are_offered_only_where_all_guests_are_emulated() -> None:
    guests = (guest("i686", "qemu", "kvm"), guest("aarch64", "qemu"), guest("x86_64", "qemu", "kvm"))
    assert list(read_facts(Recorded("x86_64", *guests), VMX).archs) == ["x86_64"]
    assert list(read_facts(Recorded("x86_64", *guests), NEITHER).archs) == ["x86_64", "aarch64"]


def test_aarch64_guests_need_firmware() -> None:
    guests = (guest("x86_64", "qemu"), guest("aarch64", "qemu"))
    assert list(read_facts(Recorded("x86_64", *guests, firmware=""), NEITHER).archs) == ["x86_64"]
    assert list(read_facts(Recorded("x86_64", *guests, firmware="broken"), NEITHER).archs) == ["x86_64"]


def test_an_aarch64_node_has_no_flag_to_look_for() -> None:
    facts = read_facts(Recorded("aarch64", guest("aarch64", "qemu", "kvm")), "processor : 0\nFeatures : fp asimd\n")
    assert (facts.accelerator, list(facts.archs)) == ("kvm", ["aarch64"])
    assert not hardware_virtualisation("riscv64", VMX)
