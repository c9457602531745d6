"""Makes a failing story shorter while it still fails in the same way: what is left is what it takes.

    shrunk = shrink(story, kind)        # kind: a checker's name or an exception's

Events are dropped in ever smaller chunks (delta debugging: Zeller and Hildebrandt, "Simplifying and isolating failure-inducing
input", 2002), then the cloud is made smaller: fewer nodes, controllers, users, exact clocks. Other seeds of the same shorter
story are tried when the story's own seed fails no more, since what is drawn while it runs (delays, turns) moves with every
event left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from tests.sim.story import FAULT, Size, Story
from tests.sim.swarm import Result, judge

TRIES_MAX: Final = 600
# Other turns and delays tried for a shorter story that went well.
TURNS: Final = 4


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The shortest story found, how it failed, and how many were played."""

    story: Story
    result: Result
    tries: int


class Shrinker:
    """Keeps the shortest failing story so far."""

    def __init__(
        self, story: Story, kind: str, *, tries_max: int = TRIES_MAX, told: Callable[[str], None] = lambda _: None
    ) -> None:
        self.kind, self.tries_max, self._told = kind, tries_max, told
        self.tries = 0
        self.story, self.result = story, judge(story)
        if self.result.kind != kind:
            raise ValueError(f"the story fails with {self.result.kind or 'nothing'!r}, not with {kind!r}")

    def run(self) -> Shrunk:
        """Shrink until nothing more can go."""
        before = None
        while before != self.story and self.tries < self.tries_max:
            before = self.story
            self._drop_events()
            self._smaller_cloud()
        return Shrunk(self.story, self.result, self.tries)

    def _fails(self, story: Story) -> bool:
        """Take a shorter story if it still fails, with its own turns or with others."""
        base = str(story.seed).partition("~")[0]
        seeds: list[int | str] = [story.seed, *(f"{base}~{turn}" for turn in range(1, TURNS + 1))]
        for seed in seeds:
            if self.tries >= self.tries_max:
                return False
            self.tries += 1
            candidate = replace(story, seed=seed)
            result = judge(candidate)
            if result.kind == self.kind:
                self.story, self.result = candidate, result
                self._told(f"{len(candidate.events)} events, {_size(candidate.size)}: {result.failure.splitlines()[0][:100]}")
                return True
        return False

    def _drop_events(self) -> None:
        chunk = max(1, len(self.story.events) // 2)
        while True:
            start = 0
            while start < len(self.story.events):
                left_out = range(start, min(start + chunk, len(self.story.events)))
                if not self._fails(self.story.without(left_out)):
                    start += chunk
            if chunk == 1 or self.tries >= self.tries_max:
                return
            chunk //= 2

    def _smaller_cloud(self) -> None:
        for size in _smaller(self.story):
            self._fails(replace(self.story, size=size))


def _smaller(story: Story) -> Iterator[Size]:
    """Yield smaller sizes in which everybody the story names is still there."""
    size = story.size
    named = {str(part) for event in story.events for part in event.args} | {event.actor for event in story.events}
    if size.skew_s:
        yield replace(size, skew_s=0.0)
    for field, names in (("controllers", size.controller_names), ("nodes", size.node_names), ("users", size.user_names)):
        if len(names) > 1 and names[-1] not in named:
            yield replace(size, **{field: len(names) - 1})
    ends_s = max((event.at_s for event in story.events if event.actor == FAULT), default=0.0)
    if size.duration_s > 2 * ends_s + 10:
        yield replace(size, duration_s=round(ends_s + 10, 2))


def _size(size: Size) -> str:
    return f"{size.controllers} controllers, {size.nodes} nodes, {size.users} users"
