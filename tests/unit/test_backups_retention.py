"""Which backups stay: a pure function of what there is. No chain is ever broken, whatever is removed in whatever order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cairn.storage.backups.manifest import Manifest, Parent
from cairn.storage.backups.repository import Backup, Catalogue
from cairn.storage.backups.retention import Policy, kept, removal
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.backup_kit import CLUSTER, MIB, VOLUME, facts

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def backup(number: int, time: datetime, parent: int | None = None, **more: bool | str) -> Backup:
    manifest = Manifest(
        *(f"bak-{number}", facts(MIB), time, "", Parent(f"bak-{parent}", f"{parent:064d}") if parent is not None else None, ""),
        *(5 * CLUSTER, 32 * MIB, "0" * 64, 5 * CLUSTER),
    )
    return replace(Backup(manifest, f"{number:064d}"), **more)  # type: ignore[arg-type]


def numbers(catalogue: Catalogue, policy: Policy) -> list[int]:
    return sorted(int(sha256) for sha256 in kept(catalogue, VOLUME, policy, NOW))


def catalogue(*backups: Backup) -> Catalogue:
    return Catalogue(tuple(sorted(backups, key=lambda each: each.manifest.time)))


def days(count: int) -> Catalogue:
    """One each day at noon, the newest (number 0) today."""
    return catalogue(*(backup(number, NOW - timedelta(days=number)) for number in range(count)))


def test_the_last_and_the_newest_of_each_day_week_and_month() -> None:
    # 1 December 2026 is a Tuesday.
    assert numbers(days(100), Policy(last=3)) == [0, 1, 2]
    assert numbers(days(100), Policy(daily=2)) == [0, 1]
    assert numbers(days(100), Policy(weekly=3)) == [0, 2, 9]
    assert numbers(days(100), Policy(monthly=3)) == [0, 1, 31]
    assert numbers(days(100), Policy(last=1, daily=2, weekly=2, monthly=4)) == [0, 1, 2, 31, 62]


def test_of_several_in_a_day_the_newest_stays() -> None:
    hourly = catalogue(*(backup(number, NOW - timedelta(hours=number)) for number in range(48)))
    assert numbers(hourly, Policy(daily=2)) == [0, 13]


def test_days_without_backups_do_not_count() -> None:
    old = catalogue(*(backup(number, NOW - timedelta(days=300 + number)) for number in range(5)))
    assert numbers(old, Policy(daily=3)) == [0, 1, 2]


def test_what_cannot_be_restored_takes_no_good_ones_place_and_stays() -> None:
    there = catalogue(
        backup(0, NOW, parent=1),
        backup(1, NOW - timedelta(days=1), trouble="2 of its 4 parts are missing"),
        backup(2, NOW - timedelta(days=2)),
        backup(3, NOW - timedelta(days=3)),
    )
    why = kept(there, VOLUME, Policy(last=1), NOW)
    assert {int(sha256): say for sha256, say in why.items()} == {
        0: "cannot be restored (bak-1: 2 of its 4 parts are missing): remove it by name",
        1: "cannot be restored (bak-1: 2 of its 4 parts are missing): remove it by name",
        2: "last",
    }


def test_a_clock_that_was_wrong_takes_no_good_ones_place() -> None:
    there = catalogue(
        backup(0, NOW + timedelta(days=400)), backup(1, NOW - timedelta(days=1)), backup(2, NOW - timedelta(days=2))
    )
    assert numbers(there, Policy(last=1)) == [0, 1]


@pytest.mark.parametrize("counts", [{}, {"last": 0}, {"daily": -1, "last": 3}])
def test_a_policy_that_keeps_nothing_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a policy keeps at least one backup"):
        Policy(**counts)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 1 << 12),
)
def test_whatever_is_unwanted_no_chain_breaks_at_any_step(drawn: list[tuple[int, bool, bool]], mask: int) -> None:
    """Each is built on some earlier one, or on nothing; some are hidden already."""
    backups: list[Backup] = []
    for number, (pick, is_full, is_hidden) in enumerate(drawn):
        parent = None if is_full or not backups else pick % len(backups)
        backups.append(backup(number, NOW - timedelta(days=200 - number), parent, is_hidden=is_hidden))
    unwanted = {each.sha256 for number, each in enumerate(backups) if mask >> number & 1}
    plan = removal(backups, unwanted)
    there = list(backups)
    for gone in plan.remove:
        there.remove(gone)
        assert not [each for each in there if each.manifest.parent and each.manifest.parent.manifest == gone.sha256]
    visible = {each.sha256 for each in backups if not each.is_hidden} - unwanted
    hidden = {each.sha256 for each in plan.hide} | {each.sha256 for each in there if each.is_hidden}
    assert {each.sha256 for each in there} - hidden == visible
    needed = {each.sha256 for root in there if root.sha256 in visible for each in catalogue(*there).chain(root)}
    assert hidden <= needed, "nothing is kept that nobody needs"
