"""The audit's files of one controller: every record that it has seen, so that what the store lets go of is kept.

Each controller keeps its own, of all chains: whoever is asked searches what he has, and two have to be lost before anything is.
One that was away while others let records go says so in a file of its own (a gap), so that a file that is taken away is told
from one that never was. What is kept is found by names alone; a file is read when its records are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cairn.controller.api.chain import hash_of, number_of
from cairn.controller.api.selection import Turns
from cairn.controller.audit_files import AuditFiles, FilesError
from cairn.controller.segments import Segment, SegmentError, content_of, fill, sealed, verified
from cairn.controller.store.base import Item
from cairn.proto.log import logger
from cairn.proto.pki import Pair, PkiError
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.audit_pb2 import AuditSegmentContent

_log = logger("audit")
# Records in a file.
SEGMENT_MAX: Final = 100


class Archive:
    """pair: this controller's certificate and key, as they are now; ca_pem: whom it trusts."""

    def __init__(self, files: AuditFiles, pair: Callable[[], Pair], ca_pem: bytes, clock: Clock, controller: str) -> None:
        self._files, self._pair, self._ca_pem = files, pair, ca_pem
        self._clock, self._controller = clock, controller
        self._known: dict[tuple[str, str], list[Segment]] | None = None
        # (chain, series) -> hash of the last record that is kept.
        self._hashes: dict[tuple[str, str], bytes] = {}

    async def segments(self, chain: str, series: str) -> list[Segment]:
        """Return what is kept of a chain, in order. Raises FilesError."""
        return list((await self._index()).get((chain, series), []))

    async def end(self, chain: str, series: str) -> tuple[int, bytes]:
        """Return the number of the last record kept of a chain, and its hash; 0: none is. Raises FilesError, SegmentError."""
        segments = (await self._index()).get((chain, series))
        if not segments:
            return 0, b""
        if (chain, series) not in self._hashes:
            try:
                self._hashes[chain, series] = (await self.content(segments[-1])).hash
            except SegmentError as error:
                raise SegmentError(f"{segments[-1].name}: {error}") from error
        return segments[-1].last, self._hashes[chain, series]

    async def keep(self, chain: str, series: str, previous: bytes, items: Sequence[Item]) -> None:
        """Write records that follow what is kept. Raises FilesError."""
        first, last = number_of(items[0].key), number_of(items[-1].key)
        content = AuditSegmentContent(chain=chain, series=series, first=first, last=last)
        content.previous, content.hash = previous, hash_of(items[-1].value)
        fill(content, items)
        await self._write(content)

    async def pass_over(self, chain: str, series: str, first: int, last: int, hash: bytes) -> None:
        """Write down that records were let go of that are not kept here. hash: of the last. Raises FilesError."""
        _log.warning("audit_not_kept_here", chain=chain, first=first, last=last)
        await self._write(AuditSegmentContent(chain=chain, series=series, first=first, last=last, hash=hash))

    async def content(self, segment: Segment) -> AuditSegmentContent:
        """Return what is in a file, as it stands there. Raises FilesError, SegmentError."""
        content = content_of(await self._files.read(segment.name))
        if (content.first, content.last) != (segment.first, segment.last):
            raise SegmentError("it is not what its name says")
        return content

    async def verified(self, segment: Segment) -> AuditSegmentContent:
        """Return what is in a file that is known to be what was written. Raises FilesError, SegmentError."""
        return verified(segment.name, await self._files.read(segment.name), self._ca_pem)

    async def _write(self, content: AuditSegmentContent) -> None:
        content.controller = self._controller
        content.time.CopyFrom(timestamp(self._clock.now()))
        segment, known = Segment.of(content), await self._index()
        try:
            pair = self._pair()
        except (PkiError, OSError) as error:
            raise FilesError(f"the certificate that files are signed with cannot be used: {error}") from error
        await self._files.write(segment.name, sealed(pair, content))
        known.setdefault((segment.chain, segment.series), []).append(segment)
        self._hashes[segment.chain, segment.series] = content.hash

    async def _index(self) -> dict[tuple[str, str], list[Segment]]:
        if self._known is None:
            found, turns = dict[tuple[str, str], list[Segment]](), Turns()
            # Names are sorted: so are those of a chain.
            for name in await self._files.names():
                if turns.over:
                    await turns.next()
                segment = Segment.parse(name)
                if segment is None:
                    _log.warning("no_file_of_the_audit", name=name)
                    continue
                found.setdefault((segment.chain, segment.series), []).append(segment)
            if self._known is None:
                # Else who asked at the same time was first, and may have written since.
                self._known = found
        return self._known
