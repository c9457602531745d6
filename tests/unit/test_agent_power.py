"""What is asked of a guest's power while the guest does something by itself."""

from __future__ import annotations

from cairn.agent.hypervisor.base import ExitCause

from tests.unit.agent_kit import Machine, ran, run, settled, until, vm_objects

VM, KEY = "i-00000001", "vm/i-00000001"


def test_a_start_asked_for_just_after_the_guest_shut_itself_down_is_not_lost() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent(latency_s=0.02)
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await settled(agent)
        # The agent hears of the start first; that the guest is off it hears later, if at all.
        listeners, machine.host.notices.tell = machine.host.notices.tell, lambda _id: None  # type: ignore[method-assign]
        machine.host.end(VM, ExitCause.GUEST)
        await machine.upsert(agent, {KEY: vm_objects(power_generation=2)[KEY]})
        machine.host.notices.tell = listeners  # type: ignore[method-assign]
        await until("the guest to run again", lambda: machine.host.boots == [VM, VM], 120)
        await settled(agent)
        # One that shuts itself down afterwards stays off.
        machine.host.end(VM, ExitCause.GUEST)
        await settled(agent)
        assert machine.host.boots == [VM, VM]
        await agent.stop()

    run(scenario)


def test_a_guest_that_shut_itself_down_stays_off_though_somebody_undefines_it() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects(reboot_generation=1))
        await ran(agent, VM)
        await settled(agent)
        machine.host.end(VM, ExitCause.GUEST)
        await settled(agent)
        del machine.host.guests[VM]
        machine.host.notices.tell(VM)
        await until("its configuration to be there again", lambda: VM in machine.host.guests, 120)
        await settled(agent)
        assert machine.host.boots == [VM]
        await machine.upsert(agent, {KEY: vm_objects(reboot_generation=2)[KEY]})
        await until("the guest to run again", lambda: machine.host.boots == [VM, VM], 120)
        await agent.stop()

    run(scenario)
