"""What all nodes of a VPC are told alike: a stream that was sent it up to some point is sent exactly what differs."""

from __future__ import annotations

import random

import pytest
from cairn.controller import shared as shared_module
from cairn.controller.shared import NOTHING, Shared, difference
from cairn.proto.v1.agent_pb2 import Desired, DesiredForward, Upsert


@pytest.mark.parametrize("seed", range(10))
def test_what_is_gone_is_forgotten_and_removed_from_whoever_holds_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that are slow come over from what was compacted meanwhile."""
    monkeypatch.setattr(shared_module, "GONE_MAX", 3)
    rng, nodes = random.Random(seed), ["n0", "n1", "n2"]
    shared = Shared()
    sent: dict[str, tuple[Shared, int, dict[str, bytes]]] = {node: (NOTHING, 0, {}) for node in nodes}
    there: dict[str, tuple[str, int]] = {}
    for step in range(300):
        key = f"forward/v/{rng.randint(0, 9)}"
        if rng.random() < 0.4:
            node, _ = there.pop(key, ("n0", 0))
            shared.put(key, node, None)
        else:
            there[key] = rng.choice(nodes), rng.randint(0, 3)
            shared.put(key, there[key][0], Desired(forward=DesiredForward(address=str(there[key][1]))))
        if shared.is_bloated:
            shared = shared.compacted()
        if rng.random() < 0.05:
            shared = NOTHING if rng.random() < 0.5 else shared
        for node in nodes if step == 299 else rng.sample(nodes, rng.randint(0, 1)):
            old, number, held = sent[node]
            for name, upsert in difference(old, number, shared, node):
                held.pop(name, None)
                if upsert:
                    held[name] = upsert
            sent[node] = shared, shared.last, held
            assert {name: Upsert.FromString(upsert).object.forward.address for name, upsert in held.items()} == {
                name: str(value) for name, (where, value) in there.items() if where != node and shared is not NOTHING
            }
        if shared is NOTHING:
            shared, there = Shared(), {}
    assert len(list(shared.entries())) <= 10
