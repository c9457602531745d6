"""cairn cluster fsck: what is wrong with the records as a whole."""

from __future__ import annotations

from typing import Any, Final

from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.output import Column
from cairn.controller.words import several

COLUMNS: Final = (
    Column("CHECK", lambda finding: finding.check),
    Column("OBJECT", lambda finding: finding.object),
    Column("SAYS", lambda finding: finding.say),
)


def add_verbs(group: NounGroup) -> None:
    """Add fsck to `cairn cluster`."""
    group.verb("fsck")(fsck)


async def fsck(session: Session) -> None:
    """Check the records, changing nothing; exit code 1 when something is found.

    Checks: records that cannot be read, references to what is not there, claims that are not the sum of what is placed, names,
    numbers and addresses claimed for nobody, reports about nothing, and what nodes hold without being told to.
    """
    found = await _found(session)
    session.output.list(COLUMNS, found, empty="nothing is wrong with the records")
    if found:
        say = f"{several(len(found), 'finding')}"
        raise Failure(say, whole=True, next="docs/operations/troubleshooting.md says what each means and what to do")


async def _found(session: Session) -> list[Any]:
    from cairn.controller.cli.client import Patience
    from cairn.proto.v1.cluster_pb2 import CheckClusterRequest
    from grpc.aio import AioRpcError

    patience = Patience(session)
    while True:
        found: list[Any] = []
        try:
            async for answer in session.stub("cluster").CheckCluster(CheckClusterRequest()):
                found += answer.findings
        except AioRpcError as error:
            await patience.wait_after(error)
        else:
            return found
