"""What a controller does by itself, and the audit keeps: what of it takes room in a transaction, and who writes it.

A reconciler says what it does (`Outcome.acts`); the record of each is made on the view that it was decided on, and committed by
the one writer of the chain (api/commits.py) in the very transaction that does it. So there is neither without the other: what
cannot be put on record is not done, it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from cairn.controller.model.happening import ActSpec
from cairn.controller.store.base import Txn, View
from cairn.proto.errors import Refused
from cairn.proto.v1.audit_pb2 import Audit

# Where the chain ends: put, and checked, once in a transaction with any records. Besides, the cluster's record is checked.
HEAD_RECORDS: Final = 1
HEAD_CHECKS: Final = 2
# Of one record, for who has to say how many fit before there are any: as large as one may become, where texts are not ASCII.
RECORD_BYTES_MAX: Final = 24 << 10


class Records(Protocol):
    """The audit, for who decides by himself. api/acts.py is one."""

    def closed(self) -> Refused | None:
        """Return why nothing can be put on record now, and so nothing may be done; None: it can."""
        ...

    def of(self, acts: Sequence[ActSpec], view: View, txn: Txn) -> list[Audit]:
        """Return the records of what a transaction does; view: as it was decided on, txn.writer: who did it."""
        ...

    def bytes_of(self, audits: Sequence[Audit]) -> int:
        """Return at most how many bytes records take, but for the head."""
        ...

    async def commit(self, txn: Txn, audits: Sequence[Audit]) -> int:
        """Commit with these records; return the revision. Raises what the store does; Refused when it is closed."""
        ...
