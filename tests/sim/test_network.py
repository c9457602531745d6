"""The simulated network tells what a real one would: a connection that one side gave up is not believed in for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cairn.proto.pki import Identity

from tests.sim.loop import SimLoop, run
from tests.sim.network import KEEPALIVE_S, Connection, Network


class Side:
    """One side of a call that only reads."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    def broken(self, why: str) -> None:
        self.over.set()


@pytest.mark.parametrize("seed", range(5))
def test_who_only_reads_learns_that_the_other_side_gave_up_while_the_link_was_cut(seed: int) -> None:
    async def scenario() -> None:
        loop: Any = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        network = Network(loop, seed)
        connection = Connection(network, "u1", "c1", Identity("user", "u1"), listener=None)
        network.connections[connection.number] = connection
        sides = Side(), Side()
        for number, side in enumerate(sides):
            connection.join(number, side)
        network.block("u1", "c1", both=True)
        await asyncio.wait([asyncio.ensure_future(side.over.wait()) for side in sides], return_when=asyncio.FIRST_COMPLETED)
        assert sum(connection.open) == 1, "the other one believes in it"
        network.heal()
        async with asyncio.timeout(KEEPALIVE_S[1]):
            await asyncio.gather(*(side.over.wait() for side in sides))

    run(seed, scenario)


def test_what_was_sent_before_a_restore_does_not_arrive_a_second_time_after_it() -> None:
    async def scenario() -> None:
        loop: Any = asyncio.get_running_loop()
        network, arrived = Network(loop, 1), list[str]()
        network.once_more(lambda: arrived.append("before"))
        network.forget_requests()
        network.once_more(lambda: arrived.append("after"))
        await asyncio.sleep(network.faults.duplicate_s)
        assert arrived == ["after"]

    run(1, scenario)
