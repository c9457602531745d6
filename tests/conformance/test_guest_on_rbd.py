"""A guest of a real libvirtd whose disk is in a real Ceph: opened with a key that libvirt keeps, written, plugged, grown."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cairn.agent.hypervisor.base import ConsoleStream, Disk, DomainSpec, HypervisorError
from cairn.agent.hypervisor.libvirt import LibvirtHypervisor
from cairn.proto.seams import SystemClock, SystemIds
from cairn.storage.base import StorageError
from cairn.storage.local import LocalImages
from cairn.storage.rbd import RbdVolumes
from cairn.storage.rbd_pool import PYTHON, Place, RbdPool

from tests.conformance.hypervisor_kit import LibvirtWorld, RealHost, libvirt_world, needs_libvirt, read_until, real_host, spec
from tests.conformance.storage_kit import MIB, volume
from tests.lab.ceph import Ceph, missing

pytestmark = [needs_libvirt, pytest.mark.skipif(bool(missing()), reason=f"no Ceph here: {missing()}")]
__all__ = ["real_host"]
ID, DATA, MORE = "i-00000001", "vol-00000011", "vol-00000012"


@dataclass
class Site:
    """A host with libvirtd, and a Ceph in its network."""

    world: LibvirtWorld
    ceph: Ceph
    pool: RbdPool
    volumes: RbdVolumes

    def driver(self) -> LibvirtHypervisor:
        keys = {self.pool.place.network: self.pool.key}
        return LibvirtHypervisor(SystemClock(), self.world.settings.uri, keys=keys, leftover_s=0.0)

    async def disk(self, id: str, slot: int) -> Disk:
        found = await self.volumes.attachment(id)
        return Disk(id, found.path, found.format, slot=slot, network=found.network)

    async def size(self, id: str) -> int:
        (found,) = await self.volumes.observe([id])
        return found.size_bytes

    async def guest(self) -> DomainSpec:
        """One that boots from a file, and has a disk in the pool."""
        system = spec(self.world, ID, system=True)
        return replace(system, disks=(*system.disks, await self.disk(DATA, 1)), console_log=self.world.console_log(ID))

    def reads(self, path: str, *commands: str) -> str:
        """What QEMU finds in an image, opened beside whoever has it."""
        place, options = self.pool.place, [part for command in commands for part in ("-c", command)]
        target = f"driver=rbd,pool={place.pool},image={path.split('/')[1]},conf={place.conf},user={place.user}"
        return self.world.host.run("qemu-io", "-r", "--image-opts", *options, target).stdout


@pytest.fixture
async def site(real_host: RealHost, tmp_path: Path) -> AsyncIterator[Site]:
    _, host, _ = real_host
    network = ("nsenter", f"--net=/run/netns/{host.namespace}")
    # Guests' processes find its configuration by the same path.
    with libvirt_world(real_host, tmp_path / "w") as world, Ceph(tmp_path / "ceph", enter=network) as ceph:
        ceph.make_pool("vms")
        pool = RbdPool(Place(str(ceph.enrol("cairn", "vms")), "cairn", "vms"), python=(*network, *PYTHON))
        volumes = RbdVolumes(pool, LocalImages(tmp_path / "images"), SystemIds(), SystemClock(), node="n1")
        for number in (11, 12):
            await volumes.create(volume(number, 64 * MIB))
        yield Site(world, ceph, pool, volumes)
        await pool.close()


async def started(site: Site, driver: LibvirtHypervisor) -> ConsoleStream:
    await driver.define(await site.guest())
    await driver.start(ID, power_generation=1, reboot_generation=0)
    console = await driver.console(ID)
    await driver.resume(ID)
    await read_until(console, ":~#")
    return console


async def does(console: ConsoleStream, command: str) -> None:
    await console.write(f"{command} && echo do''ne\n".encode())
    await read_until(console, "done\r\n")


@pytest.mark.libvirt
async def test_a_guest_writes_to_the_pool(site: Site) -> None:
    driver = site.driver()
    console = await started(site, driver)
    await does(console, "yes CAIRN | head -c 1048576 > /dev/vdb && sync")
    data = await site.disk(DATA, 1)
    assert "43 41 49 52 4e 0a" in site.reads(data.path, "read -v 0 512"), "what it wrote is in the cluster"
    with pytest.raises(StorageError, match="open elsewhere"):
        await site.volumes.delete("vol-00000011")
    await driver.attach_disk(ID, await site.disk(MORE, 2))
    await does(console, "until [ -b /dev/vdc ]; do sleep 0.1; done; echo more > /dev/vdc; sync")
    assert "6d 6f 72 65" in site.reads((await site.disk(MORE, 2)).path, "read -v 0 512")
    await driver.grow_disk(ID, MORE, 128 * MIB)
    await does(console, "until [ $(cat /sys/block/vdc/size) = 262144 ]; do sleep 0.1; done")
    assert await site.size(MORE) == 128 * MIB
    await driver.detach_disk(ID, MORE)
    await driver.stop(ID, force=True)
    await driver.close()


@pytest.mark.libvirt
async def test_what_an_administrator_grew_is_seen_once_its_guest_is_told(site: Site) -> None:
    driver = site.driver()
    console = await started(site, driver)
    await site.volumes.resize(DATA, 128 * MIB)
    await does(console, "[ $(cat /sys/block/vdb/size) = 131072 ]")
    assert await driver.seen_bytes(ID, [DATA]) == {DATA: 64 * MIB}, "its process does not look by itself"
    await driver.grow_disk(ID, DATA, 128 * MIB)
    await does(console, "until [ $(cat /sys/block/vdb/size) = 262144 ]; do sleep 0.1; done")
    assert await driver.seen_bytes(ID, [DATA]) == {DATA: 128 * MIB}
    assert await site.size(DATA) == 128 * MIB
    # A guest that is not told of it all is told the less: what nobody has seen goes, and is made again.
    await site.volumes.resize(DATA, 256 * MIB)
    site.world.virsh("blockresize", ID, "vdb", "192M")
    assert await site.size(DATA) == 192 * MIB, "this is why an agent looks at the pool just before"
    await site.volumes.resize(DATA, 256 * MIB)
    await driver.grow_disk(ID, DATA, 256 * MIB)
    await does(console, "until [ $(cat /sys/block/vdb/size) = 524288 ]; do sleep 0.1; done")
    await driver.stop(ID, force=True)
    await driver.close()


@pytest.mark.libvirt
async def test_the_key_is_libvirts_secret_and_in_no_command_line(site: Site) -> None:
    driver = site.driver()
    await started(site, driver)
    key = await site.pool.key()
    network = site.pool.place.network
    shown = subprocess.run(
        ["virsh", "-c", site.world.settings.uri, "secret-get-value", network.secret],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "private" in shown.stderr, "nobody reads it back"
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                assert key.encode() not in (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
    assert key not in site.world.virsh("dumpxml", "--security-info", ID)
    await driver.stop(ID, force=True)
    site.world.virsh("secret-undefine", network.secret)
    await driver.start(ID, power_generation=2, reboot_generation=0)
    assert site.world.running() == 1, "a libvirtd that was made anew is told again"
    await driver.close()


@pytest.mark.libvirt
async def test_a_key_that_cannot_be_had_is_said(site: Site) -> None:
    site.pool = RbdPool(replace(site.pool.place, user="nobody"), python=("/usr/bin/python3",))
    site.volumes = RbdVolumes(site.pool, LocalImages(site.world.folder / "images"), SystemIds(), SystemClock(), node="n1")
    driver = site.driver()
    system = spec(site.world, ID)
    disk = Disk(DATA, "vms/x", "raw", slot=1, network=site.pool.place.network)
    with pytest.raises(HypervisorError, match=r"the key of nobody cannot be had: .*no key of client\.nobody"):
        await driver.define(replace(system, disks=(*system.disks, disk)))
    await site.pool.close()
    await driver.close()
