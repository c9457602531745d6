"""What the runtime does while the store takes nothing: little, and for all that waits at once."""

from __future__ import annotations

from typing import Any

import pytest
from cairn.controller.runtime import Loop
from cairn.proto import kinds

from tests.unit.test_runtime import Marker, running


async def test_a_store_that_takes_nothing_is_asked_again_little_by_little_however_much_there_is_to_do() -> None:
    """Each key was tried again for itself: as many attempts as there were keys."""
    ids = [f"vol-{i:08}" for i in range(40)]
    async with running(Marker()) as at:
        at.store.faults = ["unavailable"] * 4
        await at.volume(*ids)
        await at.marked(*ids)
        assert at.store.sent <= 4 + 4, "each attempt is for all"
        at.store.faults = ["unavailable"]
        sent = at.store.sent
        await at.volume("vol-later")
        await at.marked("vol-later")
        assert at.store.sent <= sent + 2, "and the first after a success comes soon"


async def test_who_rests_in_the_middle_of_a_scan_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next scan being due, it looked again and again whether it could begin."""
    looks, prepare = [0], Loop._prepare

    def counted(self: Loop, changes: Any) -> None:
        looks[0] += 1
        prepare(self, changes)

    monkeypatch.setattr(Loop, "_prepare", counted)
    ids = [f"vol-{i:08}" for i in range(400)]
    async with running(Marker(), scan_s=0.02) as at:
        at.shards.ours = lambda _: False
        await at.volume(*ids)
        await at.until(lambda: at.cache.view.count(kinds.VOLUME) == len(ids))
        at.store.faults, looks[0] = ["unavailable"] * 5, 0
        at.shards.ours = lambda _: True
        await at.marked(*ids)
        assert looks[0] < 1000
