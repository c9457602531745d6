"""The agent on fake drivers: a VM's life, faults, cold start, what is never removed."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from cairn.agent.hypervisor.base import ExitCause
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredImage,
    DesiredPeer,
    DesiredVm,
    ImageReport,
    PortReport,
    VmDisk,
    VmReport,
    VolumeReport,
)
from cairn.proto.v1.node_pb2 import NodeFacts
from cairn.proto.v1.vm_pb2 import (
    POWER_STATE_RUNNING,
    POWER_STATE_STOPPED,
    RESTART_POLICY_ALWAYS,
    RESTART_POLICY_NEVER,
)
from cairn.storage.base import StorageError

from tests.unit.agent_kit import DIGEST, MIB, Machine, elapse, ran, root_volume, run, settled, state_of, until, vm_objects

VM, KEY = "i-00000001", "vm/i-00000001"


def test_a_vm_is_made_in_order_and_runs_once() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent(latency_s=0.01)
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await settled(agent)
        assert machine.host.boots == [VM]
        assert machine.net.is_bound("nic-00000001")
        assert machine.services.vms.keys() == {VM}
        report = agent.reports.latest(KEY)
        assert report is not None
        assert (report.vm.power_generation, report.vm.spec_revision, report.vm.accelerator) == (1, 5, "tcg")
        port = agent.reports.latest("port/nic-00000001")
        assert port is not None
        assert port.port.state == PortReport.STATE_ACTIVE
        await agent.stop()

    run(scenario)


def test_peers_come_and_go_by_themselves() -> None:
    """The network's own object says nothing of them; an older controller's does."""

    def peer(number: int, vtep: str) -> Desired:
        mac, address = f"02:00:5e:10:00:{number:02x}", f"169.254.0.{number}"
        return Desired(
            peer=DesiredPeer(vpc="rtr-00000001", node=f"n{number}", vtep=vtep, transit_address=address, router_mac=mac)
        )

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()

        async def peers() -> list[tuple[str, str]]:
            await settled(agent)
            return sorted((each.transit_address, each.vtep) for each in machine.net.networks["rtr-00000001"].network.peers)

        await machine.snapshot(agent, {**vm_objects(), "peer/rtr-00000001/n2": peer(2, "172.31.0.12")})
        await ran(agent, VM)
        assert await peers() == [("169.254.0.2", "172.31.0.12")]
        await machine.upsert(
            agent, {"peer/rtr-00000001/n3": peer(3, "172.31.0.13"), "peer/rtr-00000001/n2": peer(2, "172.31.0.22")}
        )
        assert await peers() == [("169.254.0.2", "172.31.0.22"), ("169.254.0.3", "172.31.0.13")]
        await machine.remove(agent, ["peer/rtr-00000001/n2"])
        assert await peers() == [("169.254.0.3", "172.31.0.13")]
        old = vm_objects()
        told = peer(4, "172.31.0.14").peer
        old["network/rtr-00000001"].network.peers.add(
            node="n4", vtep=told.vtep, transit_address=told.transit_address, router_mac=told.router_mac
        )
        await machine.snapshot(agent, old)
        assert await peers() == [("169.254.0.4", "172.31.0.14")]
        await agent.stop()

    run(scenario)


def test_nothing_is_done_again_once_all_is_well() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await settled(agent)
        before = (agent.guests.actions, agent.networks.actions, agent.ledger.held, machine.disk.syncs)
        await elapse(100)
        await settled(agent)
        assert (agent.guests.actions, agent.networks.actions, agent.ledger.held, machine.disk.syncs) == before
        await agent.stop()

    run(scenario)


def test_facts_that_come_late_are_told_of_guests_already_reported() -> None:
    """Found by simulation: an agent started anew told of its guests without their accelerator, until its next scan."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        known = agent.reports.facts
        agent.reports.put_facts(NodeFacts())
        agent.reports.take()
        agent.reports.put_facts(known)
        assert [each.report.vm.accelerator for each in agent.reports.take() if each.report.key == KEY] == ["tcg"]
        await agent.stop()

    run(scenario)


def test_removal_leaves_nothing() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        objects = vm_objects()
        await machine.snapshot(agent, objects)
        await ran(agent, VM)
        absent = {
            KEY: Desired(vm=DesiredVm(id=VM, absent=True)),
            "volume/vol-00000001": Desired(volume=root_volume(absent=True)),
            "image/img-00000001": Desired(image=DesiredImage(id="img-00000001", digest=DIGEST, absent=True)),
        }
        await machine.upsert(agent, absent)
        await until("absent", lambda: state_of(agent, VM) == VmReport.STATE_ABSENT)

        def volume_is_gone() -> bool:
            report = agent.reports.latest("volume/vol-00000001")
            return report is not None and report.volume.state == VolumeReport.STATE_ABSENT

        await until("volume gone", volume_is_gone, 5.0)
        await until("image gone", lambda: not machine.pool.images)
        await machine.remove(agent, objects)
        await until("all gone", machine.is_empty)
        assert agent.reports.latest(KEY) is None
        await agent.stop()

    run(scenario)


def test_it_waits_for_the_image_and_says_so() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await settled(agent)
        report, fetch = agent.reports.latest(KEY), agent.reports.latest("image/img-00000001")
        assert report is not None
        assert fetch is not None
        assert report.vm.state == VmReport.STATE_PREPARING
        assert "upload" in report.vm.say
        assert fetch.image.state == ImageReport.STATE_FETCHING
        machine.hold_image()
        await ran(agent, VM)
        await agent.stop()

    run(scenario)


@pytest.mark.parametrize(
    ("policy", "cause", "state", "boots"),
    [
        (0, ExitCause.GUEST, VmReport.STATE_STOPPED, 1),
        (0, ExitCause.CRASHED, VmReport.STATE_RUNNING, 2),
        (0, ExitCause.NONE, VmReport.STATE_RUNNING, 2),
        (RESTART_POLICY_ALWAYS, ExitCause.GUEST, VmReport.STATE_RUNNING, 2),
        (RESTART_POLICY_NEVER, ExitCause.GUEST, VmReport.STATE_STOPPED, 1),
        (RESTART_POLICY_NEVER, ExitCause.CRASHED, VmReport.STATE_FAILED, 1),
        (RESTART_POLICY_NEVER, ExitCause.NONE, VmReport.STATE_STOPPED, 1),
    ],
)
@pytest.mark.parametrize("watched", [True, False])
def test_what_a_guest_does_itself(policy: int, cause: ExitCause, state: int, boots: int, watched: bool) -> None:
    """Seen as it happens, or found by an agent that comes later: the same."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects(restart_policy=policy))
        await ran(agent, VM)
        await settled(agent)
        if not watched:
            await machine.crash(agent)
        machine.host.end(VM, cause)
        if not watched:
            agent = machine.agent()
            await agent.start()
        await elapse(45)
        await settled(agent)
        assert state_of(agent, VM) == state
        assert machine.host.boots == [VM] * boots
        await machine.upsert(agent, {KEY: vm_objects(restart_policy=policy, power_generation=2)[KEY]})
        await until("it to run", lambda: machine.running() == {VM})
        await agent.stop()

    run(scenario)


def test_a_guest_that_shut_itself_down_stays_down_whoever_looks() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        machine.host.guest_poweroff(VM)
        await until("stopped", lambda: state_of(agent, VM) == VmReport.STATE_STOPPED)
        report = agent.reports.latest(KEY)
        assert report is not None
        assert "cairn vm start web1" in report.vm.say
        assert report.vm.exit == VmReport.EXIT_GUEST
        machine.host.power_off()
        await machine.crash(agent)
        agent = machine.agent()
        await agent.start()
        await elapse(100)
        assert machine.host.boots == [VM]
        await agent.stop()

    run(scenario)


def test_crashes_in_a_row_are_answered_later_and_later() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        waits = []
        for boots in range(2, 7):
            machine.host.crash(VM)
            at_s = asyncio.get_running_loop().time()
            await until("it to run again", lambda boots=boots: len(machine.host.boots) == boots)
            await ran(agent, VM)
            await settled(agent)
            waits.append(asyncio.get_running_loop().time() - at_s)
        assert all(later > earlier * 1.5 for earlier, later in itertools.pairwise(waits)), waits
        await agent.stop()

    run(scenario)


def test_stop_start_reboot_and_force() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1)[KEY]})
        await until("reboot", lambda: machine.host.boots == [VM, VM])
        await settled(agent)
        report = agent.reports.latest(KEY)
        assert report is not None
        assert report.vm.reboot_generation == 1
        machine.host.deaf.add(VM)
        stopped = {"power_state": POWER_STATE_STOPPED, "reboot_generation": 1}
        await machine.upsert(agent, {KEY: vm_objects(**stopped)[KEY]})
        await until("stopping", lambda: state_of(agent, VM) == VmReport.STATE_STOPPING)
        await elapse(70)
        assert state_of(agent, VM) == VmReport.STATE_STOPPING
        await machine.upsert(agent, {KEY: vm_objects(**stopped, force=True)[KEY]})
        await until("stopped", lambda: state_of(agent, VM) == VmReport.STATE_STOPPED)
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=1, power_generation=2)[KEY]})
        await ran(agent, VM)
        assert machine.host.boots == [VM] * 3
        await agent.stop()

    run(scenario)


def test_disks_are_plugged_live_and_a_new_size_waits_for_the_restart() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        data = root_volume(2)
        data.image = data.image_digest = ""
        disks = [VmDisk(volume="vol-00000001", boot=True), VmDisk(volume="vol-00000002")]
        more = {"volume/vol-00000002": Desired(volume=data), KEY: vm_objects(disks=disks, spec_revision=6)[KEY]}
        await machine.upsert(agent, more)

        def revision() -> int:
            report = agent.reports.latest(KEY)
            return report.vm.spec_revision if report is not None else 0

        await until("attached", lambda: revision() == 6)
        live = machine.host.guests[VM].live
        assert live is not None
        assert set(live.disks) == {"vol-00000001", "vol-00000002"}
        report = agent.reports.latest(KEY)
        assert report is not None
        assert report.vm.say == "running"
        await machine.upsert(agent, {KEY: vm_objects(spec_revision=7, memory_bytes=256 * MIB)[KEY]})
        await until("taken up", lambda: revision() == 7)
        report = agent.reports.latest(KEY)
        assert report is not None
        assert "restart" in report.vm.say
        assert set(live.disks) == {"vol-00000001"}
        assert machine.host.boots == [VM]
        await machine.upsert(agent, {KEY: vm_objects(spec_revision=7, memory_bytes=256 * MIB, reboot_generation=1)[KEY]})
        await until("restarted", lambda: machine.host.boots == [VM, VM])
        await ran(agent, VM)
        await settled(agent)
        report = agent.reports.latest(KEY)
        assert report is not None
        assert (report.vm.say, report.vm.reboot_generation) == ("running", 1)
        await agent.stop()

    run(scenario)


def test_a_volume_grows_under_its_running_guest_and_when_it_is_off() -> None:
    """Found by simulation: the configuration of a stopped guest was taken for a guest that has its disks open."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        larger = root_volume()
        larger.size_bytes *= 2
        await machine.upsert(agent, {"volume/vol-00000001": Desired(volume=larger)})

        def report() -> VolumeReport:
            latest = agent.reports.latest("volume/vol-00000001")
            return latest.volume if latest is not None else VolumeReport()

        await until("grown", lambda: report().size_bytes == larger.size_bytes)
        assert machine.host.grown == {"vol-00000001": larger.size_bytes}, "by the process that has it open"
        await machine.upsert(agent, {KEY: vm_objects(power_state=POWER_STATE_STOPPED, spec_revision=6)[KEY]})
        await until("stopped", lambda: state_of(agent, VM) == VmReport.STATE_STOPPED)
        larger.size_bytes *= 2
        await machine.upsert(agent, {"volume/vol-00000001": Desired(volume=larger)})
        await until("grown", lambda: report().size_bytes == larger.size_bytes)
        assert machine.host.grown["vol-00000001"] < larger.size_bytes, "by itself, as nobody has it open"
        assert state_of(agent, VM) == VmReport.STATE_STOPPED
        # A configuration opens nothing, but its guest may be about to start: removal waits until it is gone.
        await machine.upsert(agent, {"volume/vol-00000001": Desired(volume=root_volume(absent=True))})
        await until("told", lambda: report().say == "removed once no guest has it open")
        await machine.upsert(agent, {KEY: Desired(vm=DesiredVm(id=VM, absent=True))})
        await until("removed", lambda: report().state == VolumeReport.STATE_ABSENT)
        await agent.stop()

    run(scenario)


def test_a_guest_that_clings_to_a_disk_can_still_be_rebooted_and_removed() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        data = root_volume(2)
        data.image = data.image_digest = ""
        disks = [VmDisk(volume="vol-00000001", boot=True), VmDisk(volume="vol-00000002")]
        await machine.snapshot(agent, {**vm_objects(disks=disks), "volume/vol-00000002": Desired(volume=data)})
        await ran(agent, VM)
        machine.host.clinging.add("vol-00000002")
        await machine.upsert(agent, {KEY: vm_objects(spec_revision=6)[KEY]})

        def error() -> str:
            report = agent.reports.latest(KEY)
            return report.vm.error if report is not None else ""

        await until("told", lambda: "detaching a disk failed" in error())
        assert state_of(agent, VM) == VmReport.STATE_RUNNING
        await machine.upsert(agent, {KEY: vm_objects(spec_revision=6, reboot_generation=1)[KEY]})
        await until("rebooted", lambda: machine.host.boots == [VM, VM])
        await machine.upsert(agent, {KEY: Desired(vm=DesiredVm(id=VM, absent=True))})
        await until("absent", lambda: state_of(agent, VM) == VmReport.STATE_ABSENT)
        await agent.stop()

    run(scenario)


def test_faults_are_reported_and_overcome() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        machine.knobs.fail_before.update(define=1, resume=1)
        machine.knobs.fail_after.update(start=1)
        machine.net_knobs.fail_before.update(EnsureNetwork=1)
        machine.net_knobs.fail_after.update(BindPort=1)
        machine.pool.faults["create"].append(StorageError("the disk is slow today"))
        agent = machine.agent()
        errors: set[str] = set()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        async with asyncio.timeout(300):
            while machine.running() != {VM}:
                for key in (KEY, "volume/vol-00000001", "port/nic-00000001"):
                    report = agent.reports.latest(key)
                    if report is not None and (error := getattr(report, report.WhichOneof("object") or "").error):
                        errors.add(f"{key}: {error}")
                await asyncio.sleep(0.05)
        await ran(agent, VM)
        assert machine.host.boots == [VM]
        assert any("slow today" in error for error in errors), errors
        assert any(error.startswith("port/") for error in errors), errors
        assert any("defining it failed" in error for error in errors), errors
        await settled(agent)
        report = agent.reports.latest(KEY)
        assert report is not None
        assert report.vm.error == ""
        await agent.stop()

    run(scenario)


def test_cold_start_without_a_controller() -> None:
    """Guests that run are adopted, those that do not are started, from the ledger alone."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {**vm_objects(1), **vm_objects(2)})
        await ran(agent, "i-00000001")
        await ran(agent, "i-00000002")
        await machine.crash(agent)
        machine.host.end("i-00000002", ExitCause.NONE)
        agent = machine.agent()
        await agent.start()
        await ran(agent, "i-00000001")
        await ran(agent, "i-00000002")
        assert sorted(machine.host.boots) == ["i-00000001", "i-00000002", "i-00000002"]
        await agent.stop()

    run(scenario)


def test_a_stopped_vm_is_prepared_but_not_started() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects(power_state=POWER_STATE_STOPPED, power_generation=0))
        await until("stopped", lambda: state_of(agent, VM) == VmReport.STATE_STOPPED)
        await settled(agent)
        assert machine.host.boots == []
        await machine.upsert(agent, {KEY: vm_objects(power_state=POWER_STATE_RUNNING, power_generation=1)[KEY]})
        await ran(agent, VM)
        assert machine.host.boots == [VM]
        await agent.stop()

    run(scenario)
