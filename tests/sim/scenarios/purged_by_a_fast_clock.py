"""A VM was erased through a controller whose clock was ten minutes fast: the others waited ten minutes before they began.

Mended by: purged means that purge_time is delete_time, which asks no clock (model/lifetime.py: kept_for_s).
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    1,
    Size(controllers=3, nodes=1, users=1, faults=0, duration_s=5.0, skew_s=0.0),
    (
        Event(0.0, "", "clock_jumps", ("c1", 600.0)),
        Event(0.1, "u1", "create_vm", ("web", 1, 128)),
        Event(1.0, "u1", "purge_vm", (0,)),
    ),
)
