"""A guest was resized there and back, and started anew by hand in between, its agent down: it has the other size, untold.

Mended in agent/plan.py: a process that is not ours is asked what it has, also when nobody saw the one before it end.
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    "started_by_hand_unseen",
    Size(controllers=1, nodes=1, users=1, rounds=4, faults=4, duration_s=60.0, skew_s=0.0),
    (
        Event(1.0, "u1", "create_vm", ("hand-u1-0", 1, 128)),
        Event(15.0, "u1", "resize", (0, 2, 256)),
        Event(20.0, "", "crash", ("n1", 20.0)),
        Event(22.0, "", "killed_by_hand", ("n1", 0)),
        Event(24.0, "", "started_by_hand", ("n1", 0)),
        Event(26.0, "u1", "resize", (0, 1, 128)),
    ),
)
