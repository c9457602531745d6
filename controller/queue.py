"""The keys one reconciler is to look at: those that changed, those whose time has come, and in the background a scan of all.

    queue.add(key)             it changed: as soon as possible, each key once, in order
    queue.at(time_s, key)      at a time, or earlier if it changes
    queue.scan(keys)           all there are, a slice at a time, when nothing that changed waits
    queue.take()               the keys to look at now, in their order, until the caller has enough

A change never waits behind a scan; and of every few slices one is the scan's, so that it ends however much changes. Rejected:
one queue for both (a change waited for a scan of 20,000 keys for 250 ms).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from cairn.proto.seams import Ids

BACKOFF_S: Final = 0.1
BACKOFF_S_MAX: Final = 30.0
# Keys of a scan looked at before what changed comes again; and the share of slices that are the scan's alone.
SCAN_SLICE: Final = 64
SCAN_SHARE: Final = 8
# Times that were brought forward leave their old entries behind, up to so many beyond the living.
_STALE_MAX: Final = 64


def backoff_s(failures: int, ids: Ids, most_s: float = BACKOFF_S_MAX) -> float:
    """Return how long to wait after so many failures in a row, one at least."""
    return min(BACKOFF_S * 2.0 ** min(failures - 1, 16), most_s) * (0.5 + ids.jitter() / 2)


class Queue:
    """See the module."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._now: OrderedDict[str, None] = OrderedDict()
        self._later: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._scan: Iterator[str] | None = None
        self._slices = 0

    def __len__(self) -> int:
        """How many are known to wait; what a scan has yet to name is not counted."""
        return len(self._now)

    @property
    def scanning(self) -> bool:
        """Whether a scan is under way."""
        return self._scan is not None

    def __bool__(self) -> bool:
        return bool(self._now) or self.scanning

    def add(self, key: str) -> None:
        """Look at it as soon as possible."""
        self._now[key] = None

    def put_back(self, keys: Sequence[str]) -> None:
        """Look at these first."""
        for key in reversed(keys):
            self._now[key] = None
            self._now.move_to_end(key, last=False)

    def scan(self, keys: Iterable[str]) -> None:
        """Look at all of these in the background; the scan before, if it has not ended, ends here."""
        self._scan = iter(keys)

    def at(self, time_s: float, key: str) -> None:
        """Look at it then, or earlier if it changes."""
        if time_s >= self._due.get(key, float("inf")):
            return
        self._due[key] = time_s
        heapq.heappush(self._later, (time_s, key))
        if len(self._later) > 2 * len(self._due) + _STALE_MAX:
            self._later = [(due_s, each) for each, due_s in self._due.items()]
            heapq.heapify(self._later)

    def back_off(self, now_s: float, key: str) -> None:
        """Look at it again after a while, longer each time in a row."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self.at(now_s + backoff_s(failures, self._ids), key)

    def succeeded(self, key: str) -> None:
        """Forget its failures."""
        self._failures.pop(key, None)

    def forget(self, key: str) -> None:
        """It is not ours to look at any more: its failures and its time are another's."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    def take(self) -> Iterator[str]:
        """Yield the keys of one slice, each taken out as it is yielded. Raises what naming the keys of a scan raises.

        All that changed, then up to SCAN_SLICE keys of the scan; now and then only those.
        """
        self._slices += 1
        if self._scan is None or self._slices % SCAN_SHARE:
            while self._now:
                yield self._now.popitem(last=False)[0]
        if self._scan is None:
            return
        found = 0
        for key in islice(self._scan, SCAN_SLICE):
            found += 1
            self._now.pop(key, None)
            yield key
        if found < SCAN_SLICE:
            self._scan = None

    def promote(self, now_s: float) -> None:
        """Move what is due to the keys to look at now."""
        while self._later and self._later[0][0] <= now_s:
            due_s, key = heapq.heappop(self._later)
            if self._due.get(key) == due_s:
                del self._due[key]
                self.add(key)

    def next_s(self) -> float:
        """Return when the next key is due; infinity when none is."""
        return self._later[0][0] if self._later else float("inf")
