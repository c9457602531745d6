"""An agent was upgraded and put back while the disk of its ledger failed: that ended the story, not the agent.

Mended in the simulation: what a newer release has written is no write of this one, and none that fails.
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    "upgraded_on_a_bad_disk",
    Size(controllers=1, nodes=1, users=1, rounds=4, faults=4, duration_s=60.0, skew_s=0.0),
    (
        Event(1.0, "u1", "create_vm", ("late-u1-0", 1, 128)),
        Event(20.0, "", "ledger_full", ("n1", 20.0)),
        Event(22.0, "", "newer_agent", ("n1", 5.0)),
    ),
)
