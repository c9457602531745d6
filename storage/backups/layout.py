"""The file a backup is: a qcow2 image laid out before a byte of it is written, as it is known beforehand what it will hold.

Header, reference count table, its blocks, first-level table, second-level tables, then the data in the order of the disk: so
any range of the file can be made by itself (`Layout.pieces`), and who reads it knows after its tables where everything is
(`Reader`). Clusters of 64 KiB; what reads as zeros is said in the tables and takes no room; nothing is compressed, as a
cluster's place would then depend on those before it. An incremental one names its parent as backing file. Source: QEMU's
docs/interop/qcow2.txt.

A reader takes no other file than this writer's: the tables it was given must be those it would make itself of what they say,
byte for byte. So nothing in a stranger's repository can have it read elsewhere, or open anything. `qemu-img` reads these files
too.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
from cairn.storage.qcow2 import CLUSTER_BYTES, L1_ENTRIES_MAX, L1_ENTRY_BYTES, SECTOR_BYTES, head

READ_BYTES: Final = 1 << 20
_TABLE: Final = CLUSTER_BYTES // 8
_COUNTS: Final = CLUSTER_BYTES // 2
# The cluster has exactly one reference; the cluster reads as zeros.
_COPIED: Final = 1 << 63
_ZERO: Final = 1
_HEAD = struct.Struct(">4sIQIIQIIQQIIQ")


class BadLayout(Exception):
    """The file is none that this module writes. Says what is different."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a disk: changed ones, or such that read as zeros now."""

    offset: int
    length: int
    is_zero: bool = False

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Run:
    """Clusters one after the other of which the file has the data, or says that they are zeros."""

    first: int
    count: int
    is_data: bool

    @property
    def end(self) -> int:
        """The first cluster after it."""
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Read:
    """A piece of the file that is to be read from the disk."""

    offset: int
    length: int


def runs_of(extents: Iterable[Extent], size_bytes: int, *, is_full: bool) -> list[Run]:
    """Return what a file needs to hold of a disk, in whole clusters, sorted, none touching another of its kind.

    Of a full one what is not named is zeros, and zeros need not be named. Of an incremental one what is not named is as its
    parent has it; a cluster of which only a part is zeros is read as data. ValueError: an extent outside of the disk.
    """
    data: list[tuple[int, int]] = []
    zeros: list[tuple[int, int]] = []
    for each in extents:
        if each.offset < 0 or each.length < 0 or each.end > size_bytes:
            raise ValueError(f"bytes {each.offset} to {each.end} are not on a disk of {size_bytes} bytes")
        if each.length:
            (zeros if each.is_zero else data).append((each.offset, each.end))
    whole: list[tuple[int, int]] = []
    for start, end in [] if is_full else _merged(zeros):
        first = -(-start // CLUSTER_BYTES)
        last = -(-end // CLUSTER_BYTES) if end == size_bytes else end // CLUSTER_BYTES
        whole.append((first, last))
        # The ragged ends.
        if start < first * CLUSTER_BYTES:
            data.append((start, min(end, first * CLUSTER_BYTES)))
        if end > max(first, last) * CLUSTER_BYTES:
            data.append((max(start, last * CLUSTER_BYTES), end))
    kept = _merged((start // CLUSTER_BYTES, -(-end // CLUSTER_BYTES)) for start, end in data)
    cleared = _merged(each for each in whole if each[0] < each[1])
    runs = [Run(start, end - start, True) for start, end in kept]
    runs += [Run(start, end - start, False) for start, end in _without(cleared, kept)]
    return sorted(runs, key=lambda run: run.first)


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _without(ranges: Sequence[tuple[int, int]], taken: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what of sorted ranges is in none of the taken ones, which are sorted too."""
    at = 0
    for start, end in ranges:
        while at < len(taken) and taken[at][1] <= start:
            at += 1
        here = at
        while here < len(taken) and taken[here][0] < end:
            if taken[here][0] > start:
                yield start, taken[here][0]
            start = max(start, taken[here][1])
            here += 1
        if start < end:
            yield start, end


class Layout:
    """Where everything is in the file of a disk with these runs. backing: the parent's file name; empty: a full one.

    ValueError: a size that no qcow2 file of ours can have.
    """

    def __init__(self, size_bytes: int, runs: Sequence[Run], backing: str = "") -> None:
        self.size_bytes, self.runs, self.backing = size_bytes, runs, backing
        self._l1_entries = l1_entries(size_bytes)
        self._firsts = [run.first for run in runs]
        # Of each run, how many clusters of data the runs before it have.
        self._before = [0, *accumulate(run.count * run.is_data for run in runs)]
        self._data_runs = [index for index, run in enumerate(runs) if run.is_data]
        self._data_firsts = [self._before[index] for index in self._data_runs]
        self._tables = _tables(runs)
        self.data_clusters = self._before[-1]
        l1_clusters = -(-self._l1_entries // _TABLE)
        self._counts_clusters, self._blocks = _counts(1 + l1_clusters + len(self._tables) + self.data_clusters)
        self._l1_at = 1 + self._counts_clusters + self._blocks
        self._tables_at = self._l1_at + l1_clusters
        self.data_at = self._tables_at + len(self._tables)
        self._clusters = self.data_at + self.data_clusters

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return self._clusters * CLUSTER_BYTES

    def place(self, index: int) -> int:
        """Return at which cluster of the file the data of a run begins."""
        return self.data_at + self._before[index]

    def pieces(self, start: int, end: int) -> Iterator[bytes | Read]:
        """Yield a range of the file: bytes as they are, and what is to be read from the disk, READ_BYTES at most each."""
        end = min(end, self.file_bytes)
        while start < end:
            cluster, within = divmod(start, CLUSTER_BYTES)
            if cluster < self.data_at:
                piece: bytes | Read = self.table(cluster)[within : within + end - start]
            else:
                piece = self._data(start, end)
            yield piece
            start += len(piece) if isinstance(piece, bytes) else piece.length

    def _data(self, start: int, end: int) -> bytes | Read:
        """Return the piece at the start of a range of data: of the disk, or what follows its end in its last cluster."""
        at = start - self.data_at * CLUSTER_BYTES
        index = self._data_runs[bisect_right(self._data_firsts, at // CLUSTER_BYTES) - 1]
        run, into = self.runs[index], at - self._before[index] * CLUSTER_BYTES
        offset = run.first * CLUSTER_BYTES + into
        if offset >= self.size_bytes:
            return bytes(min(end - start, run.end * CLUSTER_BYTES - offset))
        return Read(offset, min(end - start, READ_BYTES, min(run.end * CLUSTER_BYTES, self.size_bytes) - offset))

    def table(self, cluster: int) -> bytes:
        """Return a cluster of the file that is before its data."""
        if cluster == 0:
            first = head(
                *(self.size_bytes, self._l1_entries, self._l1_at * CLUSTER_BYTES, CLUSTER_BYTES, self._counts_clusters),
                backing=self.backing,
                backing_format="qcow2" if self.backing else "",
            )
            return first.ljust(CLUSTER_BYTES, b"\0")
        if cluster <= self._counts_clusters:
            first_block = (cluster - 1) * _TABLE
            here = range(first_block, min(first_block + _TABLE, self._blocks))
            return _packed((1 + self._counts_clusters + block) * CLUSTER_BYTES for block in here)
        if cluster < self._l1_at:
            counted = self._clusters - (cluster - 1 - self._counts_clusters) * _COUNTS
            return (b"\0\1" * min(counted, _COUNTS)).ljust(CLUSTER_BYTES, b"\0")
        if cluster < self._tables_at:
            return self._l1(cluster - self._l1_at)
        return self._l2(self._tables[cluster - self._tables_at])

    def _l1(self, number: int) -> bytes:
        entries = np.zeros(_TABLE, dtype=">u8")
        lowest = number * _TABLE
        for index in range(bisect_right(self._tables, lowest - 1), bisect_right(self._tables, lowest + _TABLE - 1)):
            entries[self._tables[index] - lowest] = (self._tables_at + index) * CLUSTER_BYTES | _COPIED
        return entries.tobytes()

    def _l2(self, table: int) -> bytes:
        entries = np.zeros(_TABLE, dtype=">u8")
        lowest = table * _TABLE
        index = max(0, bisect_right(self._firsts, lowest) - 1)
        while index < len(self.runs) and self.runs[index].first < lowest + _TABLE:
            run = self.runs[index]
            start, end = max(run.first, lowest), min(run.end, lowest + _TABLE)
            if start < end and run.is_data:
                place = self.place(index) + start - run.first
                places = np.arange(place, place + end - start, dtype=np.uint64) * np.uint64(CLUSTER_BYTES) | np.uint64(_COPIED)
                entries[start - lowest : end - lowest] = places
            elif start < end:
                entries[start - lowest : end - lowest] = _ZERO
            index += 1
        return entries.tobytes()


def l1_entries(size_bytes: int) -> int:
    """Return how many entries the first-level table of a disk has; ValueError: no disk of ours has that size."""
    entries = -(-size_bytes // L1_ENTRY_BYTES)
    if size_bytes <= 0 or size_bytes % SECTOR_BYTES or entries > L1_ENTRIES_MAX:
        raise ValueError(
            f"a disk of {size_bytes} bytes cannot be a qcow2 file: whole sectors of {SECTOR_BYTES} bytes, not too many"
        )
    return entries


def _tables(runs: Sequence[Run]) -> list[int]:
    tables: list[int] = []
    for run in runs:
        first = run.first // _TABLE
        tables += range(first + 1 if tables and tables[-1] == first else first, (run.end - 1) // _TABLE + 1)
    return tables


def _counts(others: int) -> tuple[int, int]:
    """Return the clusters of the reference count table, and of its blocks, which count themselves too."""
    table, blocks = 1, 1
    while True:
        wanted = -(-(others + table + blocks) // _COUNTS)
        wider = -(-wanted // _TABLE)
        if (wider, wanted) == (table, blocks):
            return table, blocks
        table, blocks = wider, wanted


def _packed(numbers: Iterable[int]) -> bytes:
    return b"".join(struct.pack(">Q", number) for number in numbers).ljust(CLUSTER_BYTES, b"\0")


class Reader:
    """Takes a file from its beginning, in pieces of any size, until its tables are known. It keeps none of them."""

    def __init__(self, size_bytes: int, file_bytes: int, backing: str) -> None:
        """What is known of the file from elsewhere, all of which it must say too."""
        self._size_bytes, self._file_bytes, self._backing = size_bytes, file_bytes, backing
        self._rest = b""
        self._cluster = 0
        self._seen = hashlib.sha256()
        self._entries = l1_entries(size_bytes)
        self._l1_at = self._tables_at = 0
        self._tables: list[int] = []
        self._runs: list[Run] = []
        self.layout: Layout | None = None

    def feed(self, content: bytes) -> None:
        """Take the next bytes; once `layout` is there, no more are looked at. Raises BadLayout."""
        self._rest += content
        at = 0
        while self.layout is None and len(self._rest) - at >= CLUSTER_BYTES:
            self._take(self._rest[at : at + CLUSTER_BYTES])
            at += CLUSTER_BYTES
        self._rest = b"" if self.layout else self._rest[at:]

    def _take(self, cluster: bytes) -> None:
        self._seen.update(cluster)
        if self._cluster == 0:
            self._take_head(cluster)
        elif self._l1_at <= self._cluster < self._tables_at:
            lowest = (self._cluster - self._l1_at) * _TABLE
            self._tables += [lowest + int(index) for index in np.flatnonzero(np.frombuffer(cluster, dtype=">u8"))]
        elif self._cluster >= self._tables_at:
            self._take_table(self._tables[self._cluster - self._tables_at], np.frombuffer(cluster, dtype=">u8"))
        self._cluster += 1
        if self._cluster >= self._tables_at + len(self._tables):
            self._finish()

    def _take_head(self, cluster: bytes) -> None:
        magic, version, _, _, _, size, _, entries, l1_at, _, _, _, _ = _HEAD.unpack_from(cluster)
        if magic != b"QFI\xfb" or version != 3:
            raise BadLayout("it does not begin as a qcow2 file of version 3 does")
        if size != self._size_bytes or entries != self._entries:
            raise BadLayout(f"its header tells of a disk of {size} bytes, not of {self._size_bytes}")
        if l1_at % CLUSTER_BYTES or not 3 * CLUSTER_BYTES <= l1_at < self._file_bytes:
            raise BadLayout(f"its first-level table is said to be at byte {l1_at}")
        self._l1_at = l1_at // CLUSTER_BYTES
        self._tables_at = self._l1_at + -(-entries // _TABLE)

    def _take_table(self, table: int, entries: np.ndarray[Any, Any]) -> None:
        used = np.flatnonzero(entries)
        if not len(used):
            raise BadLayout("one of its second-level tables is empty")
        is_data = entries[used] != _ZERO
        breaks = np.flatnonzero((np.diff(used) != 1) | (is_data[1:] != is_data[:-1])) + 1
        for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(used)], strict=True):
            run = Run(table * _TABLE + int(used[start]), end - start, bool(is_data[start]))
            last = self._runs[-1] if self._runs else None
            if last and last.end == run.first and last.is_data == run.is_data:
                self._runs[-1] = Run(last.first, last.count + run.count, run.is_data)
            else:
                self._runs.append(run)

    def _finish(self) -> None:
        if self._runs and self._runs[-1].end > -(-self._size_bytes // CLUSTER_BYTES):
            raise BadLayout("its tables tell of clusters behind the end of its disk")
        layout = Layout(self._size_bytes, self._runs, self._backing)
        ours = hashlib.sha256()
        if layout.data_at == self._cluster and layout.file_bytes == self._file_bytes:
            for cluster in range(layout.data_at):
                ours.update(layout.table(cluster))
        if ours.digest() != self._seen.digest():
            raise BadLayout("its tables are not as Cairn writes them")
        self.layout = layout


@dataclass(frozen=True, slots=True)
class Piece:
    """Clusters of a disk, and where in a chain they are: the member's number and the cluster of its file; member -1: zeros."""

    first: int
    count: int
    member: int
    place: int

    @property
    def end(self) -> int:
        """The first cluster after it."""
        return self.first + self.count

    def part(self, start: int, end: int) -> Piece:
        """Return some of it."""
        return Piece(start, end - start, self.member, self.place + start - self.first if self.member >= 0 else 0)


def resolve(layouts: Sequence[Layout]) -> list[Piece]:
    """Return where the disk's clusters are in a chain, the oldest member first; those in no member are zeros, and left out."""
    pieces: list[Piece] = []
    for member in range(len(layouts) - 1, -1, -1):
        layout = layouts[member]
        older = [
            Piece(run.first, run.count, member if run.is_data else -1, layout.place(index) if run.is_data else 0)
            for index, run in enumerate(layout.runs)
        ]
        pieces = _beneath(pieces, older)
    return pieces


def _beneath(newer: Sequence[Piece], older: Sequence[Piece]) -> list[Piece]:
    """Return the newer pieces and, where those have nothing, the older."""
    taken = _merged((each.first, each.end) for each in newer)
    added: list[Piece] = []
    at = 0
    free = list(_without([(each.first, each.end) for each in older], taken))
    for start, end in free:
        while older[at].end <= start:
            at += 1
        added.append(older[at].part(start, end))
    return sorted([*newer, *added], key=lambda each: each.first)
