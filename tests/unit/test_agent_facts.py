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
        FakeInventory(SMALL, "n1"), guests, Drivers([pools]), reports, vtep="10.0.0.1", underlay_mtu=1500, version="1"
    )
    await facts.refresh()
    said = reports.facts
    pools.good = pool((1 << 30) + (1 << 20))
    await facts.refresh()
    assert reports.facts is said
    pools.good = pool(1 << 35)
    await facts.refresh()
    assert reports.facts.pools[0].used_bytes == 1 << 35
