"""Facts of a node: each part by itself; what cannot be read keeps what was known."""

from __future__ import annotations

from cairn.agent.facts import Facts
from cairn.agent.hypervisor.base import HypervisorError
from cairn.agent.reports import Reports
from cairn.hardware.fake import SMALL, FakeInventory
from cairn.proto.seams import SystemClock
from cairn.proto.v1.node_pb2 import HypervisorFacts, NodeFacts, StoragePool
from cairn.storage.base import StorageError
from cairn.storage.drivers import Drivers

from tests.unit.agent_kit import Machine, elapse, ran, run, until, vm_objects


class Broken:
    """A part that fails while it is told to; as a volume driver, that of the local pool."""

    name = "local"

    def __init__(self, good: object, error: Exception) -> None:
        self.good, self.error, self.broken = good, error, True

    async def facts(self) -> object:
        if self.broken:
            raise self.error
        return self.good

    async def collect(self) -> NodeFacts:
        if self.broken:
            raise self.error
        return await FakeInventory(SMALL, "n1").collect()


async def test_a_part_that_fails_keeps_no_other_back() -> None:
    parts = {
        "hardware": Broken(None, OSError("the bus is off")),
        "hypervisor": Broken(HypervisorFacts(accelerator="tcg", archs=["x86_64"]), HypervisorError("no libvirt")),
        "pools": Broken(StoragePool(type="local", total_bytes=1 << 40), StorageError("no folder")),
    }

    def seen(reports: Reports) -> dict[str, bool]:
        facts = reports.facts
        return {"hardware": bool(facts.arch), "hypervisor": bool(facts.hypervisor.archs), "pools": len(facts.pools) == 1}

    for good in parts:
        for name, part in parts.items():
            part.broken = name != good
        reports = Reports(SystemClock())
        facts = Facts(
            parts["hardware"],
            parts["hypervisor"],
            Drivers([parts["pools"]]),
            reports,
            silent=lambda: "",
            vtep="10.0.0.1",
            underlay_mtu=1500,
            version="1",
        )
        await facts.refresh()
        assert seen(reports) == {name: name == good for name in parts}
        assert reports.facts.vtep == "10.0.0.1"
        for part in parts.values():
            part.broken = False
        await facts.refresh()
        assert all(seen(reports).values())
        for part in parts.values():
            part.broken = True
        await facts.refresh()
        assert all(seen(reports).values())


async def test_a_node_at_rest_tells_nothing() -> None:
    """Bytes written here and there are no news: a thousand nodes would write a record each, every minute."""

    def pool(used_bytes: int) -> StoragePool:
        return StoragePool(type="local", total_bytes=1 << 40, used_bytes=used_bytes, free_bytes=(1 << 40) - used_bytes)

    pools = Broken(pool(1 << 30), StorageError(""))
    guests = Broken(HypervisorFacts(accelerator="tcg", archs=["x86_64"]), HypervisorError(""))
    pools.broken = guests.broken = False
    reports = Reports(SystemClock())
    facts = Facts(
        FakeInventory(SMALL, "n1"),
        guests,
        Drivers([pools]),
        reports,
        silent=lambda: "",
        vtep="10.0.0.1",
        underlay_mtu=1500,
        version="1",
    )
    await facts.refresh()
    said = reports.facts
    pools.good = pool((1 << 30) + (1 << 20))
    await facts.refresh()
    assert reports.facts is said
    pools.good = pool(1 << 35)
    await facts.refresh()
    assert reports.facts.pools[0].used_bytes == 1 << 35


async def test_a_silent_hypervisor_is_told_and_so_is_its_end() -> None:
    reports, why = Reports(SystemClock()), [""]
    pools = Broken(StoragePool(type="local", total_bytes=1 << 40), StorageError(""))
    guests = Broken(HypervisorFacts(accelerator="tcg", archs=["x86_64"]), HypervisorError(""))
    pools.broken = guests.broken = False
    facts = Facts(
        FakeInventory(SMALL, "n1"), guests, Drivers([pools]), reports,
        silent=lambda: why[0], vtep="10.0.0.1", underlay_mtu=1500, version="1",
    )  # fmt: skip

    async def told() -> tuple[str, list[str]]:
        await facts.refresh()
        return reports.facts.hypervisor.silent, [each.event.reason for each in reports.take() if each.HasField("event")]

    assert await told() == ("", [])
    why[0] = "no such socket"
    assert await told() == ("no such socket", ["HypervisorSilent"])
    assert reports.facts.hypervisor.archs == ["x86_64"], "what it can run is known all the same"
    said = reports.facts
    assert await told() == ("no such socket", [])
    assert reports.facts is said, "told once"
    why[0] = ""
    assert await told() == ("", ["HypervisorAnswers"])


def test_a_hypervisor_that_is_away_for_long_is_called_silent() -> None:
    """Not one that is restarted; and the words stay the same, or each of them would be written to the store."""

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, "i-00000001")

        def silent() -> str:
            return agent.reports.facts.hypervisor.silent

        machine.knobs.fail_before["list"] = 2
        agent.world.mark()
        await elapse(60.0)
        assert (machine.knobs.fail_before["list"], silent()) == (0, "")
        machine.knobs.fail_before["list"] = 1_000_000
        agent.world.mark()
        await until("it to be told", silent)
        said = agent.reports.facts
        await elapse(120.0)
        assert agent.reports.facts is said
        machine.knobs.fail_before["list"] = 0
        await until("its end to be told", lambda: not silent())
        await agent.stop()

    run(scenario)
