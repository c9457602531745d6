"""Which backups of a volume stay, and in which order others go: pure functions of what the repository holds.

A rule counts the days, weeks and months in which there are backups, not those of the calendar: who makes none for a month keeps
what he has. A backup that others are built on is hidden, not removed, until they are gone; children go before their parents, so
whatever is left at any moment can be restored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cairn.storage.backups.repository import Backup, BadRepository, Catalogue


@dataclass(frozen=True, slots=True)
class Policy:
    """How many stay: the newest ones, and the newest of each day, week and month (UTC; ISO 8601 weeks) that has one."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def __post_init__(self) -> None:
        counts = (self.last, self.daily, self.weekly, self.monthly)
        if min(counts) < 0 or not any(counts):
            raise ValueError(f"a policy keeps at least one backup; this one says {self}")


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to be done, in this order."""

    hide: tuple[Backup, ...] = ()
    remove: tuple[Backup, ...] = ()


_PERIODS: tuple[tuple[str, Callable[[datetime], str]], ...] = (
    ("daily", lambda time: f"{time:%Y-%m-%d}"),
    ("weekly", lambda time: f"{time:%G-W%V}"),
    ("monthly", lambda time: f"{time:%Y-%m}"),
)


def kept(catalogue: Catalogue, volume: str, policy: Policy, now: datetime) -> dict[str, str]:
    """Return why backups of a volume stay, by the checksums of their manifests.

    What cannot be restored is not counted, so that it takes no good one's place, and stays until somebody removes it by name.
    What is of the future is not counted either: a clock was wrong.
    """
    stays: dict[str, str] = {}
    counted: list[Backup] = []
    for each in reversed(catalogue.of(volume)):
        if each.is_hidden:
            continue
        if why := _trouble(catalogue, each):
            stays[each.sha256] = f"cannot be restored ({why}): remove it by name"
        elif each.manifest.time > now:
            stays[each.sha256] = "is of the future"
        else:
            counted.append(each)
    for each in counted[: policy.last]:
        stays.setdefault(each.sha256, "last")
    for name, period in _PERIODS:
        newest: dict[str, Backup] = {}
        for each in counted:
            newest.setdefault(period(each.manifest.time), each)
        for when, each in list(newest.items())[: getattr(policy, name)]:
            stays.setdefault(each.sha256, f"{name} {when}")
    return stays


def _trouble(catalogue: Catalogue, backup: Backup) -> str:
    try:
        return next((f"{each.id}: {each.trouble}" for each in catalogue.chain(backup) if each.trouble), "")
    except BadRepository as error:
        return str(error)


def removal(backups: Sequence[Backup], unwanted: Collection[str]) -> Removal:
    """Return how to be rid of some of a volume's backups (by manifests' checksums), and of hidden ones that nobody needs."""
    by_sha256 = {each.sha256: each for each in backups}
    doomed = {each.sha256 for each in backups if each.is_hidden or each.sha256 in unwanted}
    needed: set[str] = set()
    for each in backups:
        if each.sha256 not in doomed:
            needed.update(ancestor.sha256 for ancestor in _ancestors(by_sha256, each))
    hide = [each for each in backups if each.sha256 in doomed & needed and not each.is_hidden]
    gone = [each for each in backups if each.sha256 in doomed - needed]
    # Whoever has more ancestors is nobody's ancestor among those that have fewer.
    gone.sort(key=lambda each: -sum(1 for _ in _ancestors(by_sha256, each)))
    return Removal(tuple(hide), tuple(gone))


def _ancestors(by_sha256: dict[str, Backup], backup: Backup) -> Iterable[Backup]:
    """Yield those it is built on, as far as they are here; nothing twice, whatever they say of each other."""
    seen = {backup.sha256}
    at: Backup | None = backup
    while at and at.manifest.parent and (at := by_sha256.get(at.manifest.parent.manifest)) and at.sha256 not in seen:
        seen.add(at.sha256)
        yield at
