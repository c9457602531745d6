"""A volume was detached from one VM and attached to another on the same node: the second guest opened it while the first still
had it open, as it had not let go yet.

Mended by: a guest opens a volume only when no other guest that runs has it (agent/guests.py: _opening).
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    1,
    Size(controllers=1, nodes=1, users=1, faults=1, duration_s=30.0, skew_s=0.0),
    (
        Event(0.0, "u1", "create_vm", ("a", 1, 128)),
        Event(0.1, "u1", "create_vm", ("b", 1, 128)),
        Event(0.2, "u1", "create_attached", ("data", 0)),
        Event(10.0, "", "clinging", ("n1", 0, 10.0)),
        Event(10.0, "", "clinging", ("n1", 1, 10.0)),
        Event(10.0, "", "clinging", ("n1", 2, 10.0)),
        Event(11.0, "u1", "detach", (0,)),
        Event(11.1, "u1", "attach", (0, 1)),
    ),
)
