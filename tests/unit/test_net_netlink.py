"""The kernel's dataplane, as far as it can be tried without a kernel's devices."""

from __future__ import annotations

import pytest
from cairn.net.base import Action, NetError
from cairn.net.netlink import NetlinkDataplane
from cairn.net.plan import EnsureNetwork
from cairn.proto.v1.agent_pb2 import DesiredNetwork


async def test_a_network_that_makes_no_sense_here_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one with a subnet of a family that a newer controller knows: all networks of the node were given up with it."""
    dataplane = NetlinkDataplane(prefix="cairn-none-")

    def perform(_name: str, batch: list[Action]) -> list[NetError | None]:
        if batch[0].key == "network/rtr-00000001":
            raise ValueError("Expected 4 octets in 'fd00::'")
        return [None]

    monkeypatch.setattr(dataplane, "_perform_blocking", perform)
    try:
        networks = [DesiredNetwork(vpc="rtr-00000001"), DesiredNetwork(vpc="rtr-00000002")]
        first, second = await dataplane.apply([EnsureNetwork(network) for network in networks])
    finally:
        await dataplane.close()
    assert second.error is None
    assert first.error is not None
    assert "Expected 4 octets" in str(first.error)
    assert not first.error.retryable
