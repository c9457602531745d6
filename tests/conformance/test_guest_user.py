"""Guests' processes are the distribution's unprivileged user: a guest boots so, with disk, seed and console log of ours."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.importorskip("libvirt")

from cairn.agent.guestfiles import KEPT_BYTES, LOG_BYTES_MAX, GuestFolders
from cairn.agent.hypervisor.base import Disk, DomainSpec
from cairn.agent.hypervisor.libvirt import LibvirtHypervisor
from cairn.proto.seams import SystemClock
from cairn.proto.v1.agent_pb2 import DesiredVm, DesiredVolume
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.local import LocalImages, LocalVolumes
from cairn.storage.owner import Owner

from tests.conformance.hypervisor_kit import MIB, needs_libvirt, read_until, unique
from tests.conformance.storage_kit import digest_of
from tests.lab import guest, libvirtd
from tests.lab.hosts import wait_until

pytestmark = [needs_libvirt, pytest.mark.libvirt]
USER, GROUP = "libvirt-qemu", "kvm"
VM, VOLUME = "i-0000007u", "vol-0000007u"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the user may pass: pytest's own folders are closed to it."""
    made = Path(tempfile.mkdtemp(prefix="cairn-user-", dir="/var/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def hypervisor(folder: Path) -> AsyncIterator[LibvirtHypervisor]:
    libvirtd.add_accounts()
    libvirtd.warm(folder)
    with libvirtd.running(folder / "host", unique("chu"), USER, GROUP) as (settings, _):
        driver = LibvirtHypervisor(SystemClock(), settings.uri)
        yield driver
        await driver.close()


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            yield chunk


def _of(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_uid, stat.S_IMODE(found.st_mode)


def _process(id: str) -> Path:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in words[0] and any(f"guest={id}".encode() in word for word in words):
            return path.parent
    raise AssertionError(f"no QEMU runs {id}")


async def test_a_guest_runs_as_the_unprivileged_user(folder: Path, hypervisor: LibvirtHypervisor) -> None:
    owner = Owner.named(USER)
    images, volumes = LocalImages(folder / "pool", owner), LocalVolumes(folder / "pool", owner)
    source = guest.build(folder / "demo.qcow2")
    digest = digest_of(source.read_bytes())
    await images.put(digest, source.stat().st_size, ImageFormat.IMAGE_FORMAT_QCOW2, _chunks(source))
    await volumes.create(DesiredVolume(id=VOLUME, size_bytes=64 * MIB, image_digest=digest))
    files = GuestFolders(folder / "seeds", folder / "console", owner)
    vm = DesiredVm(id=VM, name="web", hostname="lowly", cpus=1, memory_bytes=128 * MIB, arch="x86_64")
    await files.write_seed(vm)
    attached = await volumes.attachment(VOLUME)
    disk = Disk(VOLUME, attached.path, attached.format, boot=True)
    await hypervisor.define(DomainSpec(vm, (disk,), files.seed(VM), files.console_log(VM)))
    await hypervisor.start(VM, power_generation=1, reboot_generation=0)
    console = await hypervisor.console(VM)
    await hypervisor.resume(VM)
    await read_until(console, "root@lowly:~#")
    status = (_process(VM) / "status").read_text()
    assert f"\nUid:\t{owner.uid}\t{owner.uid}\t{owner.uid}" in status
    assert "\nCapEff:\t0000000000000000" in status
    assert "GUEST-READY host=lowly" in Path(files.console_log(VM)).read_text(errors="replace")
    for path in (attached.path, files.seed(VM), files.console_log(VM)):
        assert _of(path) == (owner.uid, 0o600), path
    (image,) = (folder / "pool" / "images").glob("[0-9a-f]*")
    assert _of(str(image)) == (0, 0o640), "no guest can write what all others start from"

    log = Path(files.console_log(VM))
    with log.open("ab") as grown:
        grown.write(b"x" * LOG_BYTES_MAX)
    await files.trim()
    assert log.stat().st_size < KEPT_BYTES
    assert Path(f"{log}.old").stat().st_size == KEPT_BYTES
    await console.write(b"echo still-lo''gged > /dev/ttyS0\n")
    await read_until(console, "still-logged")
    # At the new end; the last letters come a moment after the console has them.
    what = "the process to write its log on"
    await asyncio.to_thread(wait_until, what, lambda: "still-logged" in log.read_text(errors="replace"))
    await hypervisor.stop(VM, force=True)
    await console.close()
    await hypervisor.undefine(VM)
    await files.remove(VM)
    assert not list((folder / "console").iterdir())
