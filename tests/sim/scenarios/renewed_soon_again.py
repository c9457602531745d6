"""A controller that does not sign woke up before it had heard of the others, and its certificate ended: it tried once an hour.

Whatever else goes wrong when it wakes up again, what failed has to be tried again soon.
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

_NIGHT = (("leases_end", "c2"), ("leader_lost", "c1"), ("crash", "n2"), ("crash", "c3"))
STORY = Story(
    "n-7",
    Size(controllers=3, nodes=2, users=1, rounds=1, faults=1, duration_s=10.0, skew_s=0.5),
    (
        Event(1.0, "u1", "create_vm", ("night-u1-0", 1, 128)),
        Event(10.0, "u1", "night", (3.0, _NIGHT, 120.0)),
    ),
)
