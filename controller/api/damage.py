"""The check of all records that `cairn cluster fsck` asks for: what is wrong at two moments, not what is just being changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from cairn.controller.api.selection import Turns
from cairn.controller.model.damage import findings
from cairn.controller.store.base import View
from cairn.proto.v1.cluster_pb2 import CheckClusterResponse, Finding

# Between the two looks.
AGAIN_AFTER_S: Final = 2.0
# Findings of one answer.
AT_ONCE: Final = 500


async def checked(view: View) -> AsyncGenerator[CheckClusterResponse]:
    """Yield what is found now and still a moment later. `view` moves on with the store."""
    found = await _look(view)
    if found:
        await asyncio.sleep(AGAIN_AFTER_S)
        again = {(each.check, each.object, each.say) for each in await _look(view)}
        found = [each for each in found if (each.check, each.object, each.say) in again]
    for at in range(0, len(found), AT_ONCE):
        yield CheckClusterResponse(findings=found[at : at + AT_ONCE])


async def _look(view: View) -> list[Finding]:
    turns, found = Turns(), list[Finding]()
    for finding in findings(view):
        if finding is not None:
            found.append(finding)
        if turns.over:
            await turns.next()
    return found
