"""One file of the audit: its name, which says what is in it, and its bytes, signed by the controller that wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from cairn.controller.api.chain import first_break, number_of, record_id
from cairn.controller.store.base import Item
from cairn.proto import kinds
from cairn.proto.pki import Pair, PkiError
from cairn.proto.signing import signed, signer_of
from cairn.proto.v1.audit_pb2 import Audit, AuditSegment, AuditSegmentContent
from google.protobuf.message import DecodeError

# In names, of a chain that an older release began.
_NO_SERIES: Final = "0"
_RECORDS, _GAP = "audit", "gap"


class SegmentError(Exception):
    """A file is not what it should be; the sentence says how."""


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """What a file's name says of it. Numbers, revisions and times (seconds) of its records: from the least to the greatest."""

    chain: str
    series: str
    first: int
    last: int
    revisions: tuple[int, int] = (0, 0)
    times: tuple[int, int] = (0, 0)
    # Nothing is in it: the records were let go of while this controller could not keep them.
    gap: bool = False

    @property
    def records(self) -> int:
        """How many are in it."""
        return 0 if self.gap else self.last - self.first + 1

    @property
    def name(self) -> str:
        """The file's."""
        pairs = [f"{self.first:012d}-{self.last:012d}", *("-".join(map(str, each)) for each in (self.revisions, self.times))]
        return ".".join([self.chain, self.series or _NO_SERIES, *pairs, _GAP if self.gap else _RECORDS])

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return what a name says; None: it is not that of a segment."""
        parts = name.rsplit(".", 5)
        if len(parts) != 6 or parts[5] not in (_RECORDS, _GAP):
            return None
        chain, series, *texts, kind = parts
        pairs = [tuple(map(int, text.split("-"))) for text in texts if _is_pair(text)]
        if len(pairs) != 3:
            return None
        (first, last), revisions, times = pairs
        series = "" if series == _NO_SERIES else series
        return cls(chain, series, first, last, (revisions[0], revisions[1]), (times[0], times[1]), kind == _GAP)

    @classmethod
    def of(cls, content: AuditSegmentContent) -> Self:
        """Return what the name of a file with this content says."""
        revisions = [each.revision for each in content.records]
        times = [time for each in content.records if (time := _time(each.record)) is not None]
        return cls(
            content.chain,
            content.series,
            content.first,
            content.last,
            _ends(revisions),
            _ends(times),
            not content.records,
        )


def _is_pair(text: str) -> bool:
    parts = text.split("-")
    return len(parts) == 2 and all(part.isdecimal() for part in parts)


def _ends(numbers: Sequence[int]) -> tuple[int, int]:
    return (max(0, min(numbers)), max(0, *numbers)) if numbers else (0, 0)


def _time(record: bytes) -> int | None:
    try:
        return int(Audit.FromString(record).time.seconds)
    except DecodeError:
        return None


def items_of(content: AuditSegmentContent) -> list[Item]:
    """Return the records as the store had them."""
    keys = [kinds.AUDIT.key(record_id(content.chain, each.number)) for each in content.records]
    pairs = zip(keys, content.records, strict=True)
    return [Item(key, each.record, each.revision, each.revision) for key, each in pairs]


def fill(content: AuditSegmentContent, items: Sequence[Item]) -> None:
    """Add records as the store has them."""
    for item in items:
        content.records.add(number=number_of(item.key), revision=item.mod_revision, record=item.value)


def sealed(pair: Pair, content: AuditSegmentContent) -> bytes:
    """Return a file's bytes."""
    inner = content.SerializeToString(deterministic=True)
    return AuditSegment(content=inner, signature=signed(pair, inner), certificate_pem=pair.cert_pem).SerializeToString()


def content_of(stored: bytes) -> AuditSegmentContent:
    """Return what is in a file, as it stands there. Raises SegmentError."""
    try:
        return AuditSegmentContent.FromString(AuditSegment.FromString(stored).content)
    except DecodeError as error:
        raise SegmentError("it cannot be read") from error


def verified(name: str, stored: bytes, ca_pem: bytes) -> AuditSegmentContent:
    """Return what is in a file, once it is known to be what a controller of this cluster wrote. Raises SegmentError."""
    content = content_of(stored)
    whole = AuditSegment.FromString(stored)
    try:
        identity = signer_of(whole.certificate_pem, ca_pem, whole.content, whole.signature)
    except PkiError as error:
        raise SegmentError(f"who wrote it is not known: {error}") from error
    if (identity.kind, identity.id) != ("controller", content.controller):
        raise SegmentError(f"it is signed by {identity.kind} {identity.id!r}, not by controller {content.controller!r}")
    if Segment.of(content).name != name:
        raise SegmentError(f"its name is not that of what is in it: {Segment.of(content).name}")
    if content.records:
        broken = first_break(content.chain, content.first - 1, content.previous, items_of(content))
        if broken:
            raise SegmentError(broken)
    return content
