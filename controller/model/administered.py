"""What nodes tell of volumes in shared pools that they administered, and restored records may not know (docs/decisions/0034).

Several may tell of one: who was cut off when it went to another goes on by its ledger. It is one volume, which only grew; so it
is as large as the largest they tell of. That one of them had made it is so for all.
"""

from __future__ import annotations

from typing import Final

from cairn.controller.model.nodes import connected
from cairn.controller.model.pools import reaching
from cairn.controller.model.where import in_shared_pool, volume_node
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.v1.agent_pb2 import DesiredVolume, Unknown

# As a node in the id of an Erasure: wherever it is.
EVERYWHERE: Final = "-"


def is_of_shared_pool(given: DesiredVolume) -> bool:
    """Tell whether a node was told of a volume that is not in a pool of its own."""
    return given.type not in ("", LOCAL_POOL)


def told_of_shared(view: View, volume: str) -> Unknown | None:
    """Return what nodes tell of a volume in a shared pool, in the name of who can best go on with it; None: nobody does."""
    ids = view.by(kinds.UNKNOWN, "key", f"{kinds.VOLUME.name}/{volume}")
    told = [each for id in ids if (each := view.get(kinds.UNKNOWN, id)) is not None and is_of_shared_pool(each.desired.volume)]
    told = [each for each in told if not each.desired.volume.absent]
    if not told:
        return None
    best = max(told, key=lambda each: (_reaches(view, each), each.desired.volume.generation, each.node))
    found = Unknown()
    found.CopyFrom(best)
    given = found.desired.volume
    given.size_bytes = max(each.desired.volume.size_bytes for each in told)
    given.generation = max(each.desired.volume.generation for each in told)
    given.made = any(each.desired.volume.made for each in told)
    return found


def _reaches(view: View, told: Unknown) -> bool:
    return connected(view, told.node) and told.node in reaching(view, told.desired.volume.pool)


def let_go_of(view: View, node: str, volume: str) -> DesiredVolume | None:
    """Return the word that a node is to let go of a volume that it told as unknown, as the records know all of it; None: none.

    They do not while it is larger than they say: then that is to be adopted first.
    """
    record, told = view.get(kinds.VOLUME, volume), view.get(kinds.UNKNOWN, f"{node}/{kinds.VOLUME.name}/{volume}")
    if record is None or told is None or not is_of_shared_pool(told.desired.volume) or told.desired.volume.absent:
        return None
    given = told.desired.volume
    if not in_shared_pool(view, volume) or volume_node(view, volume) in ("", node) or given.size_bytes > record.spec.size_bytes:
        return None
    return DesiredVolume(id=volume, type=given.type, pool=given.pool, elsewhere=True)
