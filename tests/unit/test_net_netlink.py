"""The kernel's dataplane, as far as it can be tried without a kernel's devices."""

from __future__ import annotations

import pytest
from cairn.net import namespace
from cairn.net.base import Action, NetError, Observed, Wanted
from cairn.net.netlink import NetlinkDataplane
from cairn.net.plan import EnsureNetwork, plan
from cairn.proto.v1.agent_pb2 import DesiredNetwork, DesiredPort


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


async def test_a_namespace_that_cannot_be_read_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    dataplane = NetlinkDataplane(prefix="cairn-none-")

    def observe(name: str, vpc: str) -> Observed:
        if name.endswith("00000001"):
            raise NetError(f"read the network namespace {name}: no")
        return Observed(networks={vpc: DesiredNetwork(vpc=vpc)})

    monkeypatch.setattr(namespace, "names", lambda prefix: [f"{prefix}0000000{n}" for n in (1, 2)])
    monkeypatch.setattr(dataplane, "_observe", observe)
    monkeypatch.setattr(dataplane, "_waiting_taps", frozenset)
    try:
        found = await dataplane.observe()
    finally:
        await dataplane.close()
    assert set(found.networks) == {"rtr-00000002"}
    assert set(found.unseen) == {"rtr-00000001"}


def test_nothing_is_planned_for_a_network_that_cannot_be_looked_at() -> None:
    hidden, port = DesiredNetwork(vpc="rtr-00000001"), DesiredPort(id="nic-00000001", vpc="rtr-00000001", tap="tap-00000001")
    other = DesiredNetwork(vpc="rtr-00000002")
    wanted = Wanted({each.vpc: each for each in (hidden, other)}, {port.id: port}, {})
    observed = Observed(waiting_taps=frozenset({port.tap}), unseen={hidden.vpc: NetError("no")})
    assert plan(wanted, observed) == [EnsureNetwork(other)]
