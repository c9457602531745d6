"""TAPs as libvirt really makes them: moved after the start returned, gone when the guest ends, never taken away."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cairn.agent.hypervisor.base import Disk, DomainSpec, DomainState
from cairn.agent.hypervisor.libvirt import LibvirtHypervisor
from cairn.net import namespace
from cairn.net.base import Dataplane, Observed, Wanted
from cairn.net.netlink import NetlinkDataplane
from cairn.net.plan import plan
from cairn.proto.seams import SystemClock
from cairn.proto.v1.agent_pb2 import DesiredVm

from tests.conformance.net_kit import Card, Vpc, id_of, missing, run, settle, wanted_on
from tests.lab import libvirtd

reason = missing() or libvirtd.missing()
pytestmark = [pytest.mark.root, pytest.mark.libvirt, pytest.mark.skipif(bool(reason), reason=reason)]

BLUE = id_of("vxnet", 1)
VPC = Vpc(1, {BLUE: "10.0.1.0/24"}, 5000)
CARD = Card(11, VPC.id, BLUE, "10.0.1.11/24", 1)
NODES = {1: "192.0.2.7"}
WANTED = wanted_on(1, NODES, [VPC], [CARD])
DEADLINE_S = 30.0


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[tuple[str, libvirtd.Libvirtd]]:
    libvirtd.warm(tmp_path / "warm")
    name = f"cdl{os.getpid()}"
    with libvirtd.running(tmp_path / "host", name) as (settings, _):
        run("ip", "-n", name, "link", "set", "lo", "up")
        try:
            yield name, settings
        finally:
            for stray in namespace.names(f"{name}-"):
                namespace.remove(stray)


def spec(folder: Path) -> DomainSpec:
    disk = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "16M"], check=True)
    vm = DesiredVm(id=CARD.port().vm, name="web", hostname="web", cpus=1, memory_bytes=128 << 20, arch="x86_64")
    vm.nics.add(port=CARD.id, tap=CARD.tap, mac=CARD.mac, mtu=1450)
    return DomainSpec(vm, (Disk("vol-00000001", str(disk), "qcow2", boot=True),))


async def until_gone(dataplane: Dataplane) -> Observed:
    """The observation once the TAP has vanished with its guest."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while True:
        observed = await dataplane.observe()
        present = any(state.tap_present for state in observed.ports.values())
        if not (present or observed.waiting_taps or observed.stray_taps):
            return observed
        assert loop.time() < deadline, observed
        await asyncio.sleep(0.02)


async def test_a_guest_of_libvirt_is_bound_restarted_and_let_go(machine: tuple[str, libvirtd.Libvirtd], tmp_path: Path) -> None:
    name, settings = machine
    driver = LibvirtHypervisor(SystemClock(), settings.uri)
    dataplane = NetlinkDataplane(node=namespace.FOLDER / name, prefix=f"{name}-")
    id = CARD.port().vm
    try:
        await settle(dataplane, WANTED)
        await driver.define(spec(tmp_path))
        for round in range(2):
            await driver.start(id, power_generation=round, reboot_generation=0)
            observed = await dataplane.observe()
            assert observed.waiting_taps == {CARD.tap}
            assert plan(WANTED, observed, started_taps=()) == []
            assert (await settle(dataplane, WANTED)).ports[CARD.id].bound
            await driver.resume(id)
            (domain,) = await driver.list()
            assert domain.state is DomainState.RUNNING
            held = await settle(dataplane, Wanted())
            assert held.stray_taps == {VPC.id: {CARD.tap}}, "not wanted any more, but the guest has it"
            assert (await settle(dataplane, WANTED)).ports[CARD.id].bound
            await driver.stop(id, force=True)
            await until_gone(dataplane)
        await driver.undefine(id)
        assert await settle(dataplane, Wanted()) == Observed()
        assert namespace.names(f"{name}-") == []
    finally:
        await driver.close()
        await dataplane.close()
