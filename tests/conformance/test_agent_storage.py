"""The agent on real files: images, volumes and seeds on disk, everything else played."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cairn.agent.app import Agent
from cairn.agent.config import Config
from cairn.agent.guestfiles import GuestFolders
from cairn.agent.hypervisor.fake import FakeHypervisor
from cairn.agent.identity import Membership
from cairn.net.fake import FakeDataplane, FakeGuestServices
from cairn.proto.seams import SystemClock, SystemDisk, SystemIds
from cairn.proto.v1.agent_pb2 import Desired, DesiredImage, DesiredVm, VmReport
from cairn.storage.local import LocalImages, LocalVolumes

from tests.conformance.storage_kit import RAW, put
from tests.unit.agent_kit import (
    CONTENT,
    Machine,
    NoInventory,
    NoTransport,
    image,
    ran,
    root_volume,
    state_of,
    until,
    vm_objects,
)

VM = "i-00000001"


def agent_on(machine: Machine, folder: Path) -> Agent:
    clock = SystemClock()
    return Agent(
        Config(name="n1", listen="127.0.0.1:7446", underlay_mtu=1500),
        NoTransport(),
        clock,
        SystemIds(),
        SystemDisk(folder / "ledger"),
        FakeHypervisor(machine.host, clock),
        [LocalVolumes(folder)],
        LocalImages(folder),
        FakeDataplane(machine.net),
        FakeGuestServices(),
        NoInventory(),
        membership=Membership("node-00000001", ("127.0.0.1:7443",)),
        files=GuestFolders(folder / "seeds", folder / "console"),
    )


@pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("genisoimage")), reason="no qemu-img or genisoimage")
async def test_a_guest_comes_and_goes_on_real_files(tmp_path: Path) -> None:
    machine = Machine()
    await put(LocalImages(tmp_path), CONTENT, RAW)
    agent = agent_on(machine, tmp_path)
    await agent.start()
    await machine.snapshot(agent, vm_objects())
    await ran(agent, VM)
    guest = machine.host.guests[VM]
    assert Path(guest.spec.disks[0].path).is_file()
    assert Path(guest.spec.seed).read_bytes()[32769:32774] == b"CD001"
    await agent.stop()
    agent = agent_on(machine, tmp_path)
    await agent.start()
    await ran(agent, VM)
    assert machine.host.boots == [VM]
    gone = {f"vm/{VM}": Desired(vm=DesiredVm(id=VM, absent=True))}
    gone["image/img-00000001"] = Desired(image=DesiredImage(id="img-00000001", digest=image().digest, absent=True))
    await machine.upsert(agent, {**gone, "volume/vol-00000001": Desired(volume=root_volume(absent=True))})
    await until("absent", lambda: state_of(agent, VM) == VmReport.STATE_ABSENT, 30)

    def left() -> list[Path]:
        found = [path for path in tmp_path.rglob("*") if path.is_file()]
        return [path for path in found if path.parent.name != "ledger" and path.name != ".lock"]

    await until("no file left", lambda: not left(), 30)
    await agent.stop()
