"""What is counted as used is what there was: added up from the records as they changed, and from what was on the hosts.

Each commit that makes, changes or removes a VM, volume or image, or a report of a guest, says when it was. From these moments a
life of each object is added up here, in another way than the product does: how long it was there, how long it ran, how many
bytes for how long. At rest the stored pieces and what is open must come to the same, to the microsecond.

And a VM's time must be that of its guest's process on the hosts, but for what was reported late and what clocks were wrong by:
both are seen from here. Where the store had forgotten its history, or was made anew, what changed in between may differ, if it
is marked, or within the gap that is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cairn.proto.v1.agent_pb2 import VmReport

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Changed, Cloud, Commit

_KINDS: Final = ("vm", "volume", "image")
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# What clocks may be apart when nothing is wrong with them.
_SKEW_US: Final = 1_000_000
# What two roundings may come to.
_GRAIN_US: Final = 10


@dataclass
class Life:
    """An object from when it was made: until `since_us` it is added up."""

    since_us: int
    size: int = 0
    # Node -> which start of its guest runs there.
    running: dict[str, Any] = field(default_factory=dict)
    # Processors and bytes of memory; and what its next start is to have, asked for with a revision.
    power: tuple[int, int] = (0, 0)
    asked: tuple[int, tuple[int, int]] | None = None
    us: int = 0
    running_us: int = 0
    cpu_us: int = 0
    memory_byte_us: int = 0
    byte_us: int = 0
    gone: bool = False
    # When it changed, and in which revisions.
    moments: list[int] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)

    def roll(self, us: int) -> None:
        """Add up until a moment at which what counts changed; none goes back."""
        passed = max(0, us - self.since_us)
        self.us += passed
        self.running_us += passed if self.running else 0
        self.cpu_us += passed * self.power[0] if self.running else 0
        self.memory_byte_us += passed * self.power[1] if self.running else 0
        self.byte_us += passed * self.size
        self.since_us += passed
        self.moments.append(us)

    def ask(self, power: tuple[int, int], revision: int) -> None:
        """It is to have that: at once while it is off, from its next start on while it runs."""
        if not self.running:
            self.power, self.asked = power, None
        elif power == self.power:
            self.asked = None
        elif self.asked is None or self.asked[1] != power:
            self.asked = revision, power

    def begin(self) -> None:
        """It is started anew, or will be."""
        if self.asked is not None:
            self.power, self.asked = self.asked[1], None

    def report(self, node: str, report: VmReport | None, us: int) -> None:
        """A node says that of its guest."""
        if report is None or report.state != VmReport.STATE_RUNNING:
            if node in self.running:
                self.roll(us)
                del self.running[node]
                if not self.running:
                    self.begin()
            return
        if node not in self.running:
            self.roll(us)
            if not self.running:
                self.begin()
        elif self.asked is not None and (self.running[node] != report.start_time or report.spec_revision >= self.asked[0]):
            self.roll(us)
            self.begin()
        self.running[node] = report.start_time


@dataclass
class Truth:
    """A VM's guest in true time: on hosts, as reported, and by how much the two were apart; what clocks were wrong by."""

    at_us: int
    hosts: set[str] = field(default_factory=set)
    reported: set[str] = field(default_factory=set)
    hosts_us: int = 0
    apart_us: int = 0
    wrong_us: int = 0
    worst_us: int = 0

    def judge(self, us: int, now_us: int) -> None:
        """A moment was told, wrong by so much; one that is told of later is not taken to be before it."""
        self.worst_us = max(self.worst_us, abs(us - now_us))
        self.wrong_us += self.worst_us

    def roll(self, us: int) -> None:
        """Add up until now."""
        passed, self.at_us = us - self.at_us, us
        self.hosts_us += passed if self.hosts else 0
        self.apart_us += passed if bool(self.hosts) != bool(self.reported) else 0


@dataclass
class Kept:
    """What the records say of an object, up to a moment."""

    us: int = 0
    running_us: int = 0
    cpu_us: int = 0
    memory_byte_us: int = 0
    byte_us: int = 0
    marked: bool = False


class Metered(Checker):
    """Follows what commits say; looks at the sums at rest."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}
        self._truths: dict[str, Truth] = {}

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Take in what changed, and when."""
        counted = [each for each in commit.changes if each.kind in _KINDS or _guest(each)]
        if commit.whole or not counted:
            return
        stamps = [each.after.time for each in commit.changes if each.kind == "usage_clock" and each.after is not None]
        if not stamps:
            yield f"{counted[0].key} was changed and nothing says when"
            return
        us, now_us = stamps[0].ToMicroseconds(), _now_us(cloud)
        for change in counted:
            if vm := _guest(change):
                self._reported(change, vm, us, now_us, commit.revision)
            else:
                self._changed(change, us, now_us, commit.revision)

    def _changed(self, change: Changed, us: int, now_us: int | None, revision: int) -> None:
        life = self._lives.get(change.key)
        if change.before is None and change.after is not None:
            life = self._lives[change.key] = Life(us, moments=[us])
            if change.kind == "vm" and now_us is not None:
                truth = self._truths[change.id] = Truth(now_us)
                truth.judge(us, now_us)
        if life is None:
            # It was there before anybody looked.
            return
        life.revisions.append(revision)
        size = change.after.spec.size_bytes if change.after is not None and change.kind != "vm" else 0
        if change.after is None or size != life.size:
            life.roll(us)
        life.gone, life.size = change.after is None, size
        if change.kind == "vm" and change.after is not None:
            life.ask((change.after.spec.cpus, change.after.spec.memory_bytes), revision)
        if change.kind == "vm" and change.after is None:
            self._end(change.id, us, now_us)
            life.running.clear()

    def _end(self, vm: str, us: int, now_us: int | None) -> None:
        truth = self._truths.get(vm)
        if truth is not None and now_us is not None:
            truth.roll(now_us)
            truth.judge(us, now_us)
            truth.reported.clear()
            truth.hosts.clear()

    def _reported(self, change: Changed, vm: str, us: int, now_us: int | None, revision: int) -> None:
        life, truth, node = self._lives.get(f"vm/{vm}"), self._truths.get(vm), change.id.partition("/")[0]
        if life is None or life.gone:
            return
        report = change.after.report.vm if change.after is not None else None
        runs = report is not None and report.state == VmReport.STATE_RUNNING
        life.revisions.append(revision)
        moments = len(life.moments)
        life.report(node, report, us)
        if truth is not None and now_us is not None:
            truth.roll(now_us)
            if len(life.moments) != moments:
                truth.judge(us, now_us)
            (truth.reported.add if runs else truth.reported.discard)(node)

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Guests come and go."""
        now_us = _now_us(cloud)
        if now_us is None:
            return
        for vm, truth in self._truths.items():
            is_here = vm in cloud.hosts[node].guests and not self._lives[f"vm/{vm}"].gone
            if is_here != (node in truth.hosts):
                truth.roll(now_us)
                (truth.hosts.add if is_here else truth.hosts.discard)(node)
        yield from ()

    def totals_s(self, cloud: Cloud) -> tuple[float, float, float]:
        """Return of all VMs that are gone: seconds on hosts, seconds counted, and for how long reports said otherwise."""
        kept, gone = _kept(cloud), [vm for vm in self._truths if self._lives[f"vm/{vm}"].gone]
        counted_us = sum(kept.get(f"vm/{vm}", Kept()).running_us for vm in gone)
        hosts_us, apart_us = (sum(getattr(self._truths[vm], each) for vm in gone) for each in ("hosts_us", "apart_us"))
        return hosts_us / 1e6, counted_us / 1e6, apart_us / 1e6

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Compare."""
        yield from self._compared(cloud)

    def emptied(self, cloud: Cloud) -> Iterator[str]:
        """The same when VMs and volumes are gone."""
        yield from self._compared(cloud)

    def bared(self, cloud: Cloud) -> Iterator[str]:
        """The same when all is gone: nothing goes on counting."""
        yield from self._compared(cloud)
        yield from (f"{id} goes on counting" for id in sorted(cloud.all("usage_open")))

    def listed(self, cloud: Cloud, who: str, kind: str, objects: Sequence[Any]) -> Iterator[str]:
        """What a controller reports is that, too. objects: pages of a report by objects, of all time."""
        if kind != "usage":
            return
        rows = {f"{each.kind}/{each.object}": each for page in objects for each in page.usages}
        for object, life in sorted(self._lives.items()):
            # What ended after this controller's clock is not reported by it yet; what is there goes on.
            is_whole = life.gone and all(life.since_us <= _us(page.until_time) for page in objects)
            row = rows.get(object)
            if not is_whole or (row is not None and row.inexact_seconds) or self._is_unseen(cloud, life):
                continue
            told = (round(row.seconds * 1e6), round(row.running_seconds * 1e6)) if row is not None else (0, 0)
            if any(abs(said - due) > _GRAIN_US for said, due in zip(told, (life.us, life.running_us), strict=True)):
                was = f"{life.us}, {life.running_us}"
                yield f"{who} reports that {object} was there for {told[0]} us and ran for {told[1]}: {was}"
        for object, row in sorted(rows.items()):
            if row.open != (cloud.get("usage_open", object) is not None):
                yield f"{who} reports that {object} {'is there' if row.open else 'ended'}"

    @staticmethod
    def _is_unseen(cloud: Cloud, life: Life) -> bool:
        return any(_unseen(gap, life) for gap in cloud.all("usage_gap").values())

    def _compared(self, cloud: Cloud) -> Iterator[str]:
        kept, gaps = _kept(cloud), list(cloud.all("usage_gap").values())
        for object, life in sorted(self._lives.items()):
            held, open = kept.get(object, Kept()), cloud.get("usage_open", object)
            if (open is None) != life.gone:
                yield f"{object} {'is gone and goes on counting' if life.gone else 'is there and does not count'}"
                continue
            until_us = max(life.since_us, open.since_us) if open is not None else life.since_us
            marked = held.marked or (open is not None and open.inexact)
            if marked and not gaps:
                yield f"{object} is marked as not exact, and no gap is told"
            if marked or any(_unseen(gap, life) for gap in gaps):
                continue
            yield from self._one(object, life, until_us, held, open)

    def _one(self, object: str, life: Life, until_us: int, held: Kept, open: Any) -> Iterator[str]:
        rest_us, open_us = until_us - life.since_us, until_us - open.since_us if open is not None else 0
        (cpus, memory), runs_us = life.power, rest_us if life.running else 0
        runs, size = (bool(open.guests), open.size_bytes) if open is not None else (False, 0)
        if open is not None and (runs, size) != (bool(life.running), life.size):
            yield f"{object} counts as running {runs} with {size} bytes, and is {bool(life.running)} with {life.size}"
        pairs = (
            ("us", life.us + rest_us, held.us + open_us),
            ("running us", life.running_us + runs_us, held.running_us + open_us * runs),
            ("CPU us", life.cpu_us + runs_us * cpus, held.cpu_us + open_us * runs * (open.cpus if open is not None else 0)),
            (
                "memory byte us",
                life.memory_byte_us + runs_us * memory,
                held.memory_byte_us + open_us * runs * (open.memory_bytes if open is not None else 0),
            ),
            (
                "byte us",
                life.byte_us + rest_us * life.size,
                held.byte_us + open_us * size,
            ),
        )
        for what, was, counted in pairs:
            if was != counted:
                yield f"{object} has {was} {what} by its records, and {counted} are counted ({counted - was:+})"
        if (truth := self._truths.get(object.partition("/")[2])) is not None:
            apart = truth.apart_us + truth.wrong_us + _GRAIN_US
            if not truth.hosts and not truth.reported and abs(truth.hosts_us - pairs[1][2]) > apart:
                say = f"{truth.hosts_us} us on hosts, {pairs[1][2]} are counted; reports and clocks account for {apart}"
                yield f"{object} ran for {say}"


def _guest(change: Changed) -> str:
    """Return the VM that a report is of; empty: it is none of a VM."""
    kind, _, id = change.id.partition("/")[2].partition("/")
    return id if change.kind == "observed" and kind == "vm" else ""


def _kept(cloud: Cloud) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    for day in cloud.all("usage_day").values():
        for object in day.objects:
            held = found.setdefault(object.object, Kept())
            for piece in object.pieces:
                held.us += piece.us
                held.running_us += piece.us if piece.running else 0
                held.cpu_us += piece.cpu_us
                held.memory_byte_us += int.from_bytes(piece.memory_byte_us, "big")
                held.byte_us += int.from_bytes(piece.byte_us, "big")
                held.marked = held.marked or piece.inexact
    return found


def _unseen(gap: Any, life: Life) -> bool:
    """Tell whether an object changed in a stretch that was not followed; of another history its revisions are not known."""
    if gap.until_revision:
        return any(gap.after_revision < each <= gap.until_revision for each in life.revisions)
    return any(_us(gap.begin_time) - _SKEW_US <= each <= _us(gap.end_time) + _SKEW_US for each in life.moments)


def _us(time: Any) -> int:
    return int(time.ToMicroseconds())


def _now_us(cloud: Cloud) -> int | None:
    if cloud.clock is None:
        return None
    since = cloud.clock() - _EPOCH
    return since.days * _DAY_US + since.seconds * 1_000_000 + since.microseconds
