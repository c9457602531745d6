"""The drivers of a node: one that fails hides nothing of the others; what is left in pools is swept every so often."""

from __future__ import annotations

from cairn.agent.app import SWEEP_S, TRIM_S
from cairn.storage.base import StorageError
from cairn.storage.drivers import Drivers
from cairn.storage.fake import FakePool, FakeVolumes

from tests.unit.agent_kit import Machine, elapse, run


class Untidy(FakeVolumes):
    """One with things to sweep, which cannot be the first time."""

    def __init__(self) -> None:
        super().__init__(FakePool())
        self.swept = 0

    async def sweep(self) -> None:
        self.swept += 1
        if self.swept == 1:
            raise StorageError("it is open elsewhere")


async def test_those_without_anything_to_sweep_are_left_alone() -> None:
    assert await Drivers([FakeVolumes(FakePool())]).sweep() == []
    untidy = Untidy()
    assert [str(error) for error in await Drivers([untidy]).sweep()] == ["it is open elsewhere"]
    assert await Drivers([untidy]).sweep() == []


def test_an_agent_sweeps_each_hour_and_sooner_after_a_failure() -> None:
    async def scenario() -> None:
        machine, untidy = Machine(), Untidy()
        agent = machine.agent()
        agent.drivers = Drivers([untidy])
        await agent.start()
        await elapse(TRIM_S + 1)
        assert untidy.swept == 1
        await elapse(TRIM_S)
        assert untidy.swept == 2
        await elapse(SWEEP_S - 2 * TRIM_S)
        assert untidy.swept == 2
        await elapse(2 * TRIM_S)
        assert untidy.swept == 3
        await agent.stop()

    run(scenario)
