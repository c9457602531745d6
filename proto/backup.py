"""A backup of the control plane as a file: how it is laid out, and how it is read without trusting it.

    "cairn-backup 1\\n"                 so that a person, or file(1), can tell what it is
    varint length, BackupPart.header    cluster, epoch, revision, time, counts per kind
    varint length, BackupPart.records   again and again, in the order of their keys; at most PART_BYTES each, or one record
    varint length, BackupPart.trailer   number of records, SHA-256 of every byte before this part's length

Lengths are those of protobuf's writeDelimitedTo, so any language reads it with proto/v1/backup.proto. Written and read as a
stream: nobody holds more than a part of it. A file that was cut has no trailer; one that was changed has another checksum;
both are Damaged, and so is a file whose counts are not what its header says.

    reader = Reader()
    for chunk in chunks:
        for part in reader.feed(chunk): ...
    header = reader.finish()            # only now is what was read to be believed

Rejected: JSON lines (ten times the bytes, and values would have to be decoded by a controller that may not know them), etcd's
own snapshot (sessions, requests and revisions come with it; it fits only etcd, and says nothing about what is in it).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from cairn.proto.v1.backup_pb2 import BackupHeader, BackupPart, BackupRecord, BackupRecords, BackupTrailer
from google.protobuf.message import DecodeError

FORMAT: Final = 1
MAGIC: Final = f"cairn-backup {FORMAT}\n".encode()
_FAMILY: Final = b"cairn-backup "
# Records of one part, unless one alone is larger.
PART_BYTES: Final = 256 << 10
# No part is larger: a length beyond it is garbage. etcd's values are 1.5 MiB at most.
PART_BYTES_MAX: Final = 4 << 20
_VARINT_BYTES_MAX: Final = 5


class Damaged(Exception):
    """The file is not a whole, unchanged backup; the text says what is wrong with it."""


class Writer:
    """Makes the bytes of a file, part by part."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._records = 0

    def begin(self, header: BackupHeader) -> bytes:
        """Return the first bytes of the file."""
        header.format = FORMAT
        return self._taken(MAGIC + _delimited(BackupPart(header=header)))

    def records(self, records: Iterable[BackupRecord]) -> Iterator[bytes]:
        """Yield the bytes of records, in parts of bounded size."""
        part, size_bytes = BackupRecords(), 0
        for record in records:
            if part.records and size_bytes + record.ByteSize() > PART_BYTES:
                yield self._part(part)
                part, size_bytes = BackupRecords(), 0
            part.records.append(record)
            size_bytes += record.ByteSize()
        if part.records:
            yield self._part(part)

    def end(self) -> bytes:
        """Return the last bytes."""
        return _delimited(BackupPart(trailer=BackupTrailer(records=self._records, sha256=self._sha256.digest())))

    def _part(self, part: BackupRecords) -> bytes:
        self._records += len(part.records)
        return self._taken(_delimited(BackupPart(records=part)))

    def _taken(self, content: bytes) -> bytes:
        self._sha256.update(content)
        return content


class Reader:
    """Reads a file as it comes in. Nothing of it counts before `finish` has returned."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._rest = b""
        self._begun = False
        self._last_key = ""
        self._counts: Counter[str] = Counter()
        self.header: BackupHeader | None = None
        self.trailer: BackupTrailer | None = None

    def feed(self, chunk: bytes) -> Iterator[BackupPart]:
        """Take more bytes; yield the parts that are complete. Raises Damaged."""
        self._rest += chunk
        if not self._begun and not self._begin():
            return
        while (found := _whole(self._rest)) is not None:
            start, end = found
            part = _parsed(self._rest[start:end])
            whole, self._rest = self._rest[:end], self._rest[end:]
            self._check(part)
            if part.WhichOneof("part") != "trailer":
                self._sha256.update(whole)
            yield part

    def finish(self) -> BackupHeader:
        """Return the header once all was read and is right. Raises Damaged."""
        if not self._begun or self.header is None:
            raise Damaged("it is not a backup of a Cairn cluster")
        if self.trailer is None:
            raise Damaged(f"it was cut: it ends after {self._counts.total()} records, without its end")
        if self._rest:
            raise Damaged(f"{len(self._rest)} bytes follow its end")
        if self.trailer.sha256 != self._sha256.digest():
            raise Damaged("its checksum is wrong: it was changed since it was made")
        said = {each.kind: each.count for each in self.header.counts if each.count}
        if self.trailer.records != self._counts.total() or said != dict(self._counts):
            raise Damaged("it does not hold as many records as it says")
        return self.header

    def _begin(self) -> bool:
        """Take the first line; False when it is not all there yet."""
        if len(self._rest) < len(MAGIC) and MAGIC.startswith(self._rest):
            return False
        if not self._rest.startswith(MAGIC):
            if self._rest.startswith(_FAMILY):
                raise Damaged(f"it is of another format than {FORMAT}: use the release that made it")
            raise Damaged("it is not a backup of a Cairn cluster")
        self._sha256.update(MAGIC)
        self._rest, self._begun = self._rest[len(MAGIC) :], True
        return True

    def _check(self, part: BackupPart) -> None:
        what = part.WhichOneof("part")
        if self.trailer is not None:
            raise Damaged("something follows its end")
        if (self.header is None) != (what == "header"):
            raise Damaged("its header is not at its beginning")
        if what == "header":
            self.header = part.header
        elif what == "trailer":
            self.trailer = part.trailer
        elif what != "records":
            raise Damaged("it has a part that this release does not know")
        for record in part.records.records:
            key = f"{record.kind}/{record.id}"
            if key <= self._last_key or not record.kind or not record.id:
                raise Damaged(f"its records are not in order at {key!r}")
            self._last_key = key
            self._counts[record.kind] += 1


def _delimited(part: BackupPart) -> bytes:
    content = part.SerializeToString(deterministic=True)
    return _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _whole(content: bytes) -> tuple[int, int] | None:
    """Return where the first part starts and ends, after its length; None when it is not all there. Raises Damaged."""
    length = 0
    for index, byte in enumerate(content[:_VARINT_BYTES_MAX]):
        length |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if not 0 < length <= PART_BYTES_MAX:
                raise Damaged("it has a part of impossible length")
            end = index + 1 + length
            return (index + 1, end) if len(content) >= end else None
    if len(content) >= _VARINT_BYTES_MAX:
        raise Damaged("it has a part of impossible length")
    return None


def _parsed(content: bytes) -> BackupPart:
    try:
        return BackupPart.FromString(content)
    except DecodeError as error:
        raise Damaged("it has a part that cannot be read") from error
