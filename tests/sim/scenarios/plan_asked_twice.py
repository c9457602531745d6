"""A question what would be, which the network asked again 18 seconds later, kept a second plan though all was at rest.

Mended in the checker no_plan: a plan is a look. Nobody acts on it before it is applied, and it ends by itself in ten minutes;
answering the second question from the first plan would show a picture that has since moved.
"""

from __future__ import annotations

from tests.sim.story import Event, Size, Story

STORY = Story(
    "500550~4",
    Size(controllers=1, nodes=1, users=1, rounds=4, faults=4, duration_s=60.0, skew_s=0.0),
    (
        Event(50.24, "", "twice", (1.0, 20.0, 5.0)),
        Event(50.3, "u1", "create_as_planned", ("planned-u1-1", 1.0)),
        Event(50.68, "u1", "purge_vm", (2,)),
    ),
)
