"""The audit's files of all controllers: a host keeps them whatever becomes of its controller. Read by their bytes."""

from __future__ import annotations

from collections.abc import Sequence

from cairn.controller.archive import Archive
from cairn.controller.audit_files import FakeFiles
from cairn.proto.pki import Authority, Identity
from cairn.proto.seams import Clock
from cairn.proto.v1.audit_pb2 import AuditSegment, AuditSegmentContent


class Filed:
    """Each file is read once: what is written stays."""

    def __init__(self, controllers: Sequence[str], authority: Authority) -> None:
        self.files = {name: FakeFiles() for name in controllers}
        self._ca_pem = authority.cert_pem
        self._pairs = {name: authority.issue(Identity("controller", name)) for name in controllers}
        self._read: set[tuple[str, str]] = set()
        self._records: set[tuple[str, int, bytes]] = set()

    def archive(self, controller: str, clock: Clock) -> Archive:
        """Return them as one life of a controller has them."""
        return Archive(self.files[controller], lambda: self._pairs[controller], self._ca_pem, clock, controller)

    def calm(self) -> None:
        """Let all be written again."""
        for files in self.files.values():
            files.fails = ""

    def holds(self, chain: str, number: int, record: bytes) -> bool:
        """Tell whether a record is in some file, as it was stored."""
        for controller, files in self.files.items():
            for name, stored in files.held.items():
                if (controller, name) not in self._read:
                    self._read.add((controller, name))
                    content = AuditSegmentContent.FromString(AuditSegment.FromString(stored).content)
                    self._records |= {(content.chain, each.number, each.record) for each in content.records}
        return (chain, number, record) in self._records
