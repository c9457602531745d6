"""A guest shut itself down, its node's event of that was lost, and its user asked for it to be started.

The agent had last seen it running, took that for the answer to the new request, and left it off when it saw that it was. Now a
new request is answered by what is seen after it came.
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    seed="drivers-12~4",
    size=Size(controllers=1, nodes=2, users=1, rounds=4, faults=12, duration_s=60.0, skew_s=0.0),
    events=(
        Event(4.82, "u1", "create_vm", ("disks-u1", 1, 128)),
        Event(42.74, "", "events_lost", ("n2", 10.0)),
        Event(45.07, "u1", "shut_down_inside", (5,)),
        Event(45.07, "u1", "start", (5,)),
    ),
)
