"""A volume that was here and is gone is told as lost, never made again behind its owner's back."""

from __future__ import annotations

import pytest
from cairn.proto.v1.agent_pb2 import Desired, DesiredVolume, VmReport, VolumeReport

from tests.unit.agent_kit import Machine, elapse, ran, run, settled, state_of, until, vm_objects

VM, VOLUME = "i-00000001", "vol-00000001"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_lost_volume_is_not_made_again(*, restarted: bool) -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await settled(agent)
        # The pool's file system is gone; then the power goes.
        kept = machine.pool.volumes.pop(VOLUME)
        await elapse(40)
        machine.host.power_off()
        if restarted:
            await agent.stop()
            machine.disk.lose_power()
            agent = machine.agent()
            await agent.start()
        await elapse(120)
        report = agent.reports.latest(f"volume/{VOLUME}")
        assert report is not None
        assert report.volume.state == VolumeReport.STATE_FAILED
        assert "is its pool mounted" in report.volume.error
        assert VOLUME not in machine.pool.volumes
        assert machine.host.boots == [VM]
        assert state_of(agent, VM) != VmReport.STATE_RUNNING
        machine.pool.volumes[VOLUME] = kept
        await until("the guest to run again", lambda: machine.host.boots == [VM, VM], 120)
        await agent.stop()

    run(scenario)


def test_a_lost_volume_can_be_deleted() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        objects = vm_objects()
        await machine.snapshot(agent, objects)
        await ran(agent, VM)
        machine.pool.volumes.pop(VOLUME)
        machine.host.power_off()
        objects["vm/" + VM].vm.absent = True
        objects[f"volume/{VOLUME}"] = Desired(volume=DesiredVolume(id=VOLUME, absent=True))
        await machine.snapshot(agent, objects)

        def state() -> int:
            report = agent.reports.latest(f"volume/{VOLUME}")
            return report.volume.state if report is not None else 0

        await until("it to be reported absent", lambda: state() == VolumeReport.STATE_ABSENT, 120)
        await agent.stop()

    run(scenario)
