"""The shrinker finds the few events a failure takes, and the smallest cloud it still happens in."""

from __future__ import annotations

import pytest

from tests.sim import shrink
from tests.sim.play import draw
from tests.sim.shrink import Shrinker
from tests.sim.story import Event, Size, Story
from tests.sim.swarm import Result

NEEDED = ("crash", "purge_vm")
STORY = Story(
    9,
    Size(controllers=3, nodes=4, users=3),
    tuple(
        Event(float(at), actor, name)
        for at, (actor, name) in enumerate(
            [("u1", "create_vm"), ("", "cut"), ("u1", "purge_vm"), ("", "crash"), ("u1", "grow")] * 6
        )
    ),
)


def failing(story: Story) -> Result:
    """Fails while both events happen; in a rarer way on some turns only."""
    names = {event.name for event in story.events}
    fails = names.issuperset(NEEDED) and (len(story.events) > 4 or "~" in str(story.seed))
    return Result(story.seed, "lost: something was lost", "lost") if fails else Result(story.seed)


def test_only_what_it_takes_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "judge", failing)
    found = Shrinker(STORY, "lost").run()
    assert sorted(event.name for event in found.story.events) == sorted(NEEDED)
    assert (found.story.size.controllers, found.story.size.nodes, found.story.size.users) == (1, 1, 1)
    assert found.story.size.skew_s == 0
    assert failing(found.story).kind == "lost"
    assert found.tries < shrink.TRIES_MAX


def test_another_failure_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "judge", failing)
    with pytest.raises(ValueError, match="fails with 'lost', not with 'orphans'"):
        Shrinker(STORY, "orphans")


def test_a_drawn_story_can_be_written_down_and_read_again() -> None:
    for seed in range(20):
        story = draw(seed)
        assert eval(repr(story), {"Story": Story, "Size": Size, "Event": Event}) == story
