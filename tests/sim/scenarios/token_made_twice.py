"""A request for a join token arrived twice: the second time gave the token another secret, and the answer that was given to the
first let nobody in.

Mended by: a repeated call adds a secret to the token (api/nodes.py).
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    2,
    Size(controllers=1, nodes=1, users=1, faults=1, duration_s=5.0, skew_s=0.0),
    (
        Event(0.0, "", "twice", (1.0, 0.01, 5.0)),
        Event(1.0, "u1", "join", ("m1",)),
    ),
)
