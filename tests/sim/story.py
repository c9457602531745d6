"""A story: what users do and what breaks. Drawn from a seed before anything runs, so that parts of it can be left out.

    story = draw(7)                     # which workloads, which faults, how large a cloud: all from the seed
    for event in story.events: print(event)
    shorter = story.without({3, 8})     # the shrinker asks whether it still fails

Each workload and each fault is one module (see cast.py) with

    def draw(draw: random.Random, size: Size) -> Iterable[Event]    what happens, with everything decided now
    ACTS = {"create_vm": create_vm, ...}                            how: async functions of (User, *args) or (World, *args)

An argument never names what only running can tell: "the third of my VMs" is an index into those the user has then, so an event
keeps its meaning when events before it are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

FAULT: Final = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens: at a time after the cloud is up (seconds), by a user, or by nobody (a fault)."""

    at_s: float
    actor: str
    name: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at_s:8.2f} s  {self.actor or '-':3} {self.name}{self.args!r}"


@dataclass(frozen=True, slots=True)
class Size:
    """How large a cloud, and for how long there are faults."""

    controllers: int = 3
    nodes: int = 3
    users: int = 2
    # Things a user does of each workload it takes part in.
    rounds: int = 4
    # Faults of each kind.
    faults: int = 4
    duration_s: float = 90.0
    # Clocks of processes are wrong by up to this much.
    skew_s: float = 0.5
    # What each server has.
    threads: int = 16
    memory_gib: int = 24
    # How many times longer than on a fast core computation takes; 0: no time at all.
    cpu: float = 0.0
    # How many VMs are made at once, by workloads of masses; 0: those do not take part, and the others do.
    many: int = 0

    @property
    def user_names(self) -> list[str]:
        """Return the users."""
        return [f"u{number}" for number in range(1, self.users + 1)]

    @property
    def controller_names(self) -> list[str]:
        """Return the controllers."""
        return [f"c{number}" for number in range(1, self.controllers + 1)]

    @property
    def node_names(self) -> list[str]:
        """Return the nodes there are at the start."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]


# As much trouble as a small cloud can be given in a minute.
BUSY: Final = Size(controllers=3, nodes=2, users=2, rounds=4, faults=12, duration_s=60.0, skew_s=0.5)
# Few servers that hold many VMs each; and many servers. `many` of such a size is how many VMs there are.
_SERVERS: Final = Size(threads=64, memory_gib=96, cpu=1.0)
CROWDED: Final = replace(_SERVERS, controllers=2, nodes=2, users=1, rounds=2, faults=3, duration_s=60.0, many=120)
LARGE: Final = replace(_SERVERS, nodes=200, users=4, rounds=2, faults=8, duration_s=300.0, many=5000)
MIDDLE: Final = replace(LARGE, nodes=40, faults=4, duration_s=120.0, many=600)
# By what a seed begins with.
SIZES: Final = {"busy": BUSY, "crowded": CROWDED, "middle": MIDDLE, "large": LARGE}
# One story in so many is crowded.
CROWDED_ONE_IN: Final = 100


@dataclass(frozen=True, slots=True)
class Story:
    """A seed, a size, and what happens in order of time."""

    seed: int | str
    size: Size
    events: tuple[Event, ...]

    def without(self, left_out: Collection[int]) -> Story:
        """Return it without the events at those positions."""
        return replace(self, events=tuple(event for index, event in enumerate(self.events) if index not in left_out))

    def by(self, actor: str) -> list[Event]:
        """Return what a user does."""
        return [event for event in self.events if event.actor == actor]


def draw_size(draw: random.Random) -> Size:
    """Draw how large."""
    if draw.random() * CROWDED_ONE_IN < 1:
        return CROWDED
    return Size(
        controllers=draw.choice((1, 2, 3, 3)),
        nodes=draw.choice((1, 2, 3, 3, 4, 5)),
        users=draw.choice((1, 2, 2, 3)),
        rounds=draw.choice((2, 3, 4, 6)),
        faults=draw.choice((0, 2, 4, 6)),
        duration_s=draw.choice((30.0, 60.0, 120.0)),
        skew_s=draw.choice((0.0, 0.5, 5.0)),
        cpu=draw.choice((0.0, 0.0, 1.0, 20.0)),
    )


def draw_story(seed: int | str, workloads: Sequence[Any], faults: Sequence[Any], size: Size | None = None) -> Story:
    """Draw a story from a seed: some of the workloads, some of the faults, each from a random stream of its own."""
    draw = random.Random(f"{seed}/story")
    size = size or draw_size(draw)
    workloads = [module for module in workloads if getattr(module, "MASSES", False) == bool(size.many)]
    events: list[Event] = []
    for module in [*_some(draw, workloads), *_some(draw, faults)]:
        events += module.draw(random.Random(f"{seed}/{module.__name__}"), size)
    return Story(seed, size, tuple(sorted(events, key=_order)))


def _some(draw: random.Random, modules: Sequence[Any]) -> list[Any]:
    """Draw which take part: none of rare kinds hides behind all of them at once."""
    share = draw.choice((0.3, 0.6, 1.0))
    chosen = [module for module in modules if draw.random() < share]
    return chosen or [draw.choice(modules)]


def _order(event: Event) -> tuple[float, str, str, str]:
    return event.at_s, event.actor, event.name, repr(event.args)


def spread(draw: random.Random, size: Size, count: int) -> list[float]:
    """Return that many moments of the story, in order: seconds, rounded so that they read well."""
    return sorted(round(draw.uniform(0, size.duration_s), 2) for _ in range(count))


Draw = Callable[[random.Random, Size], Sequence[Event]]
