"""Two VMs asked for the same address at the same moment, and both were answered: one of them waited for it for ever.

Mended by: a port that asks for an address writes its subnet, so that the two conflict (api/ports.py).
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    1,
    Size(controllers=1, nodes=1, users=1, faults=0, duration_s=5.0, skew_s=0.0),
    (
        Event(0.0, "", "store_trouble", ((), 0.05, 5.0)),
        Event(0.5, "u1", "take_address", (0, 2)),
    ),
)
