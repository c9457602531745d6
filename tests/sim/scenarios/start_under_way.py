"""A start that was asked for before a guest was suspended by hand, and reached its node after, let it run.

Mended in the fault paused_by_hand: the node cannot tell which came first, and whoever asked for a start was promised one.
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    "start_under_way",
    Size(controllers=1, nodes=1, users=1, rounds=4, faults=4, duration_s=60.0, skew_s=0.0),
    (
        Event(1.0, "u1", "create_vm", ("late-u1-0", 1, 128)),
        Event(20.0, "", "cut", ("n1", "*", 10.0)),
        Event(22.0, "u1", "start", (0,)),
        Event(24.0, "", "paused_by_hand", ("n1", 0, 30.0)),
    ),
)
