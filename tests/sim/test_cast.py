"""Everybody who could play does: no act that no seed draws, no fault that never strikes."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.sim import cast
from tests.sim.asked import Asked, AskedVm
from tests.sim.play import draw, play
from tests.sim.story import BUSY, FAULT, Story, draw_story
from tests.sim.workloads import renames

SEEDS = range(1, 301)
PLAYED_MAX = 30
_DRIVERS = ("hypervisor", "volume", "image", "dataplane")
# What each module of faults counts, or has counted, when it strikes.
STRIKES = {
    "administrators": {"administrator crash", "administrator power", "administrator cut"},
    "clocks": {"clock_jumps", "clock_drifts"},
    "disks": {"ledger_full", "ledger_errors", "ledger_slow", "pool_full", "disk_fills"},
    "drivers": {
        *(f"{driver} {how}" for driver in _DRIVERS for how in ("before", "after", "hang")),
        "daemon_restarts", "events_lost", "deaf", "clinging",
    },
    "files": {"files_fail"},
    "forgetful": {"guests_forgotten"},
    "impostor": {"impostor"},
    "issuer": {"issuer gone", "issuer slow", "issuer key"},
    "leases": {"leases_end", "taken_over", "compacted", "leader_lost"},
    "links": {"reset", "silence", "late"},
    "operator": {"rules_flushed", "paused_by_hand", "killed_by_hand", "undefined_by_hand", "started_by_hand"},
    "restore": {"restore_store"},
    "slow": {"slow_host", "slow_process", "parted", "patience", "duplicate"},
    "unreadable": {"unreadable", "missing"},
    "upgrades": {"older", "newer"},
    "store": {
        "lost_answer", "lost_request", "late_commit", "unavailable", "silent_watch", "compacted_watch", "member_loss",
        "full",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return [draw(seed) for seed in (*SEEDS, "crowded-1")]


@pytest.mark.parametrize("module", [*cast.WORKLOADS, *cast.FAULTS], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_act_is_drawn(module: ModuleType, stories: list[Story]) -> None:
    drawn = Counter(event.name for story in stories for event in story.events)
    assert {name: drawn[name] for name in module.ACTS if not drawn[name]} == {}


def test_nothing_is_drawn_that_nobody_can_play(stories: list[Story]) -> None:
    users, nobody = cast.acts(cast.WORKLOADS), cast.acts(cast.FAULTS)
    for story in stories:
        for event in story.events:
            assert event.name in (nobody if event.actor == FAULT else users), event
            assert event.actor in (FAULT, *story.size.user_names), event
            assert event.at_s >= 0, event


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", STRIKES)
def test_every_fault_strikes(name: str) -> None:
    """Plays busy stories with one kind of fault until each of its forms has struck."""
    faults = [module for module in cast.FAULTS if module.__name__.endswith(f".{name}")]
    struck: Counter[str] = Counter()
    for seed in range(PLAYED_MAX):
        story = draw_story(f"{name}-{seed}", cast.WORKLOADS, faults, BUSY)
        struck.update(play(story).result["struck"])
        if struck.keys() >= STRIKES[name]:
            return
    assert STRIKES[name] - struck.keys() == set()


def test_every_module_of_faults_is_known_here() -> None:
    assert {module.__name__.rpartition(".")[2] for module in cast.FAULTS} == {
        *STRIKES,
        "processes",
        "administrators",
        "older_backup",
    }


def test_a_story_is_drawn_the_same_again(stories: list[Story]) -> None:
    assert [draw(story.seed) for story in stories[:20]] == stories[:20]


@pytest.mark.parametrize(
    ("old", "other", "wrong"), [("wanted-1", "wanted-1", False), ("web", "wanted-1", True), ("wanted-1", "db", True)]
)
def test_a_name_that_several_want_may_be_somebody_elses_by_then(old: str, other: str, wrong: bool) -> None:
    """One of those who wanted it was answered late; that it is not free for a third is no fault then."""
    vm = AskedVm("i-1", old, "u1")
    asked = Asked(vms={"i-1": vm, "i-2": AskedVm("i-2", other, "u2")})

    async def update_vm(named: Any, _field: str) -> Any:
        return named

    async def create_vm(_name: str, **_more: Any) -> None:
        return None

    async def attempt(call: Any, *_codes: Any) -> Any:
        return await call

    client = SimpleNamespace(update_vm=update_vm, create_vm=create_vm)
    user: Any = SimpleNamespace(name="u1", vm=lambda _index: vm, asked=asked, client=client, attempt=attempt)
    asyncio.run(renames.rename(user, 0, 7, True))
    assert bool(asked.contradictions) is wrong
