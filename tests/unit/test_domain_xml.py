"""Domain XML, as a person would read it: each case is a file in tests/golden/domain. CAIRN_GOLDEN=write writes them anew."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from cairn.agent.hypervisor.base import Disk, DomainSpec, ExitCause
from cairn.agent.hypervisor.domain_xml import (
    SPARE_PORTS,
    digest_of,
    disk_element,
    disk_elements,
    domain_xml,
    free_target,
    taps_in,
    uuid_of,
)
from cairn.agent.hypervisor.mark import Mark, Phase, find_mark
from cairn.proto.ids import mac_of, tap_of
from cairn.proto.v1.agent_pb2 import DesiredVm, VmNic
from cairn.proto.v1.node_pb2 import HypervisorFacts
from cairn.storage.base import Network

GOLDEN = Path(__file__).parent.parent / "golden" / "domain"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
GIB = 1024**3


def facts(accelerator: str, *archs: str) -> HypervisorFacts:
    return HypervisorFacts(accelerator=accelerator, archs=archs)


def spec(
    arch: str = "x86_64", *, cpus: int = 1, memory_bytes: int = GIB, disks: int = 1, cards: int = 1, seed: bool = True
) -> DomainSpec:
    volumes = [f"vol-0000000{letter}" for letter in "abcdefgh"[:disks]]
    ports = [f"nic-0000000{letter}" for letter in "abcdefgh"[:cards]]
    vm = DesiredVm(
        id="i-0000001a",
        name="web",
        hostname="web",
        arch=arch,
        cpus=cpus,
        memory_bytes=memory_bytes,
        nics=[VmNic(port=port, tap=tap_of(port), mac=mac_of(port), mtu=1450) for port in ports],
        spec_revision=12,
        user_data=b"#!/bin/sh\necho not-to-be-seen",
        ssh_keys=["ssh-ed25519 not-to-be-seen"],
    )
    root = "/var/lib/cairn"
    return DomainSpec(
        vm,
        tuple(Disk(v, f"{root}/volumes/{v}", "raw" if n == 2 else "qcow2", boot=n == 0) for n, v in enumerate(volumes)),
        seed=f"{root}/seeds/{vm.id}.iso" if seed else "",
        console_log=f"{root}/console/{vm.id}.log" if seed else "",
    )


NETWORK = Network("rbd", ("10.0.0.1:6789", "[fd00::2]:6789"), "cairn", "6f1c4b1e-0000-4000-8000-000000000001")
NETWORK_DISK = Disk("vol-0000000a", "tank/vol-0000000a", "raw", boot=True, network=NETWORK)
CASES = {
    "x86_64-kvm": (spec(), facts("kvm", "x86_64")),
    "x86_64-tcg": (spec(), facts("tcg", "x86_64")),
    "x86_64-tcg-many": (spec(cpus=4, memory_bytes=8 * GIB, disks=4, cards=3), facts("tcg", "x86_64", "aarch64")),
    "x86_64-tcg-bare": (spec(memory_bytes=128 << 20, cards=0, seed=False), facts("tcg", "x86_64")),
    "x86_64-kvm-network": (replace(spec(), disks=(NETWORK_DISK,)), facts("kvm", "x86_64")),
    "aarch64-kvm": (spec("aarch64", cpus=2), facts("kvm", "aarch64")),
    "aarch64-tcg": (spec("aarch64", cpus=2), facts("tcg", "x86_64", "aarch64")),
}


def build(case: str) -> str:
    wanted, node = CASES[case]
    return domain_xml(wanted, node, Mark(wanted.vm.id).redefined(wanted, digest_of(wanted)))


@pytest.mark.parametrize("case", CASES)
def test_domain_xml_is_as_written_down(case: str) -> None:
    path = GOLDEN / f"{case}.xml"
    if os.environ.get("CAIRN_GOLDEN") == "write":
        path.write_text(build(case))
    assert build(case) == path.read_text(), "if this is meant: CAIRN_GOLDEN=write pytest tests/unit/test_domain_xml.py"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(not SCHEMA.exists() or not shutil.which("xmllint"), reason="libvirt's schema or xmllint is not installed")
def test_domain_xml_follows_libvirts_schema(case: str) -> None:
    command = ["xmllint", "--noout", "--relaxng", str(SCHEMA), "-"]
    checked = subprocess.run(command, input=build(case), capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_nothing_secret_is_in_it(case: str) -> None:
    assert "not-to-be-seen" not in build(case)


@pytest.mark.parametrize(
    ("arch", "node"), [("aarch64", facts("kvm", "x86_64")), ("", facts("kvm", "x86_64")), ("x86_64", facts("tcg"))]
)
def test_an_architecture_the_node_lacks_is_refused(arch: str, node: HypervisorFacts) -> None:
    wanted = spec(arch)
    with pytest.raises(ValueError, match=r"i-0000001a is for"):
        domain_xml(wanted, node, Mark(wanted.vm.id))


def test_there_is_a_port_for_every_device_and_some_to_spare() -> None:
    tree = ET.fromstring(build("x86_64-tcg-many"))
    ports = tree.findall("devices/controller[@model='pcie-root-port']")
    plugged = [
        *tree.findall("devices/interface"),
        *tree.findall("devices/disk[@device='disk']"),
        *tree.findall("devices/controller[@model='virtio-scsi']"),
        *tree.findall("devices/controller[@type='virtio-serial']"),
        *tree.findall("devices/rng"),
        *tree.findall("devices/memballoon"),
    ]
    assert len(ports) == len(plugged) + SPARE_PORTS


def test_the_uuid_is_the_vms_for_ever() -> None:
    assert uuid_of("i-0000001a") == "e4ce4714-65f3-5f08-bc7f-ed7cd614f5d9"
    assert uuid_of("i-0000001b") != uuid_of("i-0000001a")


def test_disks_and_taps_are_found_again() -> None:
    tree = ET.fromstring(build("x86_64-tcg-many"))
    assert list(disk_elements(tree)) == [f"vol-0000000{letter}" for letter in "abcd"]
    assert taps_in(tree) == ("tap-0000000a", "tap-0000000b", "tap-0000000c")
    assert free_target([tree]) == "vde"


def test_a_guest_has_at_most_26_disks() -> None:
    tree = ET.fromstring("<domain><devices/></domain>")
    devices = tree.find("devices")
    assert devices is not None
    for number in range(26):
        devices.append(disk_element(Disk(f"vol-{number:08}", "/x", "raw"), free_target([tree])))
    with pytest.raises(ValueError, match="26"):
        free_target([tree])


def test_several_resets_at_once_are_one_beginning() -> None:
    """A guest that is asked by the power button goes down, and libvirt resets it more than once."""
    mark = Mark("i-0000001a").started(1, 0, "", 1000.0)
    assert (mark.boots, mark.rebooted_generation) == (1, 0)
    once = dataclasses.replace(mark, reboot_generation=1).reset(1001.0)
    assert (once.boots, once.boot_time, once.rebooted_generation) == (2, 1001.0, 1)
    assert once.reset(1001.4).reset(1003.0) == once
    forced = dataclasses.replace(once, reboot_generation=2, forced=True)
    again = forced.reset(1001.1)
    assert (again.boots, again.rebooted_generation) == (3, 2), "what was reset meanwhile is another"
    asked = dataclasses.replace(once, reboot_generation=2)
    assert asked.reset(1001.1) == asked, "no guest obeys so soon: the firmware resets once more"
    obeyed = asked.reset(1003.5)
    assert (obeyed.boots, obeyed.rebooted_generation) == (3, 2)
    assert once.reset(1010.0).boots == 3


def test_the_mark_is_read_as_it_was_written() -> None:
    mark = Mark("i-0000001a", "a <b> & 'c'", 4, "d1", 5, 6, Phase.STOPPING, ExitCause.CRASHED, 1_800_000_000.125)
    mark = dataclasses.replace(mark, boots=3, boot_time=1_800_000_009.5, rebooted_generation=5, forced=True)
    tree = ET.fromstring("<domain><name>i-0000001a</name><metadata/></domain>")
    metadata = tree.find("metadata")
    assert metadata is not None
    assert find_mark(tree) is None
    metadata.append(mark.element())
    assert find_mark(ET.fromstring(ET.tostring(tree))) == mark
    name = tree.find("name")
    assert name is not None
    element = metadata[0]
    for attribute in ("boots", "boot_time", "rebooted_generation"):
        del element.attrib[attribute]
    older = find_mark(tree)
    assert older is not None
    assert (older.boots, older.boot_time, older.rebooted_generation) == (1, mark.start_time, 6), "one boot, and it did as asked"
    element.set("phase", "of a release to come")
    newer = find_mark(tree)
    assert newer is not None
    assert newer.phase is Phase.NONE, "one that cannot be read would hide every guest of the node"
    name.text = "somebody-elses-copy"
    assert find_mark(tree) is None, "a clone under another name is not ours"


def test_a_disk_that_is_no_file() -> None:
    network, disk = NETWORK, NETWORK_DISK
    element = disk_element(disk, "vdb")
    source = element.find("source")
    assert source is not None
    assert (element.get("type"), source.attrib) == ("network", {"protocol": "rbd", "name": "tank/vol-0000000a"})
    assert [host.attrib for host in source.iterfind("host")] == [
        {"name": "10.0.0.1", "port": "6789"}, {"name": "fd00::2", "port": "6789"},
    ]  # fmt: skip
    auth, secret = source.find("auth"), source.find("auth/secret")
    assert auth is not None
    assert secret is not None
    assert (auth.get("username"), secret.attrib) == ("cairn", {"type": "ceph", "uuid": network.secret})
    found = ET.Element("domain")
    ET.SubElement(found, "devices").append(element)
    assert disk_elements(found) == {"vol-0000000a": element}, "it is told from others as a file is"
    whole = spec()
    moved = replace(network, hosts=network.hosts[:1])
    disks = (disk, replace(disk, network=moved), replace(disk, network=None))
    assert len({digest_of(replace(whole, disks=(each,))) for each in disks}) == 3
