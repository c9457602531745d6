"""AgentService when the store went back, and when it was restored."""

from __future__ import annotations

from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.errors import BadState, TryAgain
from cairn.proto.v1.cluster_pb2 import Cluster

from tests.unit.sync_kit import N1, Agent, agent, world


async def test_a_store_that_went_back_is_refused_at_once_and_told() -> None:
    """A node that was told a later revision than the store has: old data was put in its place."""
    async with world() as at:
        service = at.services[0]
        newest = await at.store.revision()
        ahead = Agent(service, N1)
        ahead.hello(held=newest + 5)
        error = await ahead.connect().ended()
        assert isinstance(error, BadState)
        assert "cairn cluster restore" in error.say
        assert service.standing.ahead[N1].revision == newest + 5
        await at.until(lambda: (N1, "StoreWentBack") in at.events())
        again = Agent(service, N1)
        again.hello(held=newest + 5)
        assert isinstance(await again.connect().ended(), BadState)
        assert at.events().count((N1, "StoreWentBack")) == 1
        back = Agent(service, N1)
        back.hello(held=newest)
        back.connect()
        await at.until(lambda: back.bookmarks)
        assert N1 not in service.standing.ahead
        await back.break_off()


async def test_a_stream_ends_with_its_epoch() -> None:
    """A restore changes the cluster's record: what was told before is of another epoch than what is to be told then."""
    async with world() as at:
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        await at.store.commit(Txn("peers").put(kinds.CLUSTER, CLUSTER_ID, Cluster(name="test", epoch=2)))
        assert isinstance(await here.ended(), TryAgain)
        assert here.epochs == {1}
        again = Agent(at.services[0], N1)
        again.hello(held=10**6, epoch=1)
        again.connect()
        await at.until(lambda: again.bookmarks)
        assert again.epochs == {2}
        await again.break_off()
