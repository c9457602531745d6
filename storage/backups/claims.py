"""Who works on a volume's backups now: one at a time writes, removes or sweeps.

Whoever wants to puts a claim under a token of his own, and then looks: if there is another's, both know, and he withdraws. So
of two at once at most one goes on, by nothing more than that a listing shows what was put before. A claim is beaten while its
holder lives: its content changes. A claim that has not changed for SILENCE_S, *by the clock of whoever watches it*, is that of
a dead one and is removed. No clock is compared with another's. A holder that could not beat for half of that stops by itself
(`check`), before each thing that it writes.

This is for economy, and so that nobody sweeps what is being written; no byte's safety rests on it: a holder that was stopped
for minutes and goes on writes only objects whose names hold their checksums (repository.py).

Rejected: locks that end at a time written into them (a clock that is wrong breaks them), conditional writes (Ceph 16 has none).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from cairn.storage.backups.patience import PatientStore
from cairn.storage.backups.store import Gone, StoreError, fetch
from cairn.storage.base import StorageError

BEAT_S: Final = 15.0
SILENCE_S: Final = 120.0
_CLAIM_BYTES_MAX: Final = 4096


class Busy(StorageError):
    """Another works on this volume's backups. Retryable: when it has ended, or SILENCE_S after it died."""


class Lost(StorageError):
    """We could not show for a while that we live, or another has taken us for dead. Retryable: from the beginning."""


@dataclass
class Claim:
    """Ours, while we hold it."""

    store: PatientStore
    name: str
    what: str
    beats: int = 0
    beaten_s: float = 0.0
    lost: str = ""

    def check(self) -> None:
        """Raise Lost when we may no longer be believed to live."""
        if not self.lost and (silent := _now() - self.beaten_s) > SILENCE_S / 2:
            self.lost = f"{self.store.title} took no sign of life for {silent:.0f} s"
        if self.lost:
            raise Lost(f"stopped {self.what}: {self.lost}; what was written stays for the next try")

    async def confirm(self) -> None:
        """As check, after asking whether it is still there."""
        self.check()
        if self.name not in await _claims(self.store, self.name.rpartition("/")[0]):
            self.lost = "another took us for dead"
        self.check()

    async def beat(self) -> None:
        """Change its content."""
        self.beats += 1
        began = _now()
        await self.store.put_now(self.name, json.dumps({"what": self.what, "beat": self.beats}).encode() + b"\n")
        # From before it was sent: a watcher may have seen it as soon as that.
        self.beaten_s = began


@asynccontextmanager
async def claimed(store: PatientStore, volume: str, token: str, what: str) -> AsyncIterator[Claim]:
    """Hold a volume's claim. token: of whoever asks, [a-z0-9-]; he who asks again with the same one takes over at once.

    what: what he is doing, for messages. Raises Busy when another has it and lives, which a beat or two tells; a dead one's is
    waited for until SILENCE_S are over.
    """
    folder = f"claims/{volume}"
    claim = Claim(store, f"{folder}/{token}", what)
    await _wait_for_the_dead(store, folder, claim)
    await claim.beat()
    beating: asyncio.Task[None] | None = None
    try:
        if others := [each for each in await _claims(store, folder) if each != claim.name]:
            raise Busy(f"cannot begin {what}: {await _said(store, others[0])} at this moment")
        beating = asyncio.create_task(_beat(claim), name=f"claim of {volume}")
        yield claim
    finally:
        if beating is not None:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
        with suppress(StoreError):
            # Else it is found to be dead.
            await store.inner.delete(claim.name)


async def _beat(claim: Claim) -> None:
    while not claim.lost:
        await asyncio.sleep(BEAT_S)
        try:
            await claim.confirm()
            await claim.beat()
        except Lost:
            return
        except StoreError:
            # It is tried again, and `check` tells when that has gone on for too long.
            continue


async def _wait_for_the_dead(store: PatientStore, folder: str, ours: Claim) -> None:
    """Return when there is no other claim; one that does not change is removed. Raises Busy when one does."""
    first = {name: await _content(store, name) for name in await _claims(store, folder) if name != ours.name}
    began = _now()
    while first and _now() - began <= SILENCE_S:
        await asyncio.sleep(BEAT_S)
        now = {name: await _content(store, name) for name in await _claims(store, folder) if name != ours.name}
        if alive := sorted(name for name, content in now.items() if content is not None and first.get(name) != content):
            raise Busy(f"cannot begin {ours.what}: {await _said(store, alive[0])}")
        first = {name: content for name, content in now.items() if content is not None}
    for name in first:
        await store.delete(name)


async def _claims(store: PatientStore, folder: str) -> list[str]:
    return [each.name async for each in store.list(f"{folder}/")]


async def _content(store: PatientStore, name: str) -> bytes | None:
    try:
        return await fetch(store, name, _CLAIM_BYTES_MAX)
    except Gone:
        return None


async def _said(store: PatientStore, name: str) -> str:
    """Say what another does."""
    content = await _content(store, name)
    try:
        what = str(json.loads(content or b"{}").get("what", ""))[:200]
    except (ValueError, AttributeError):
        what = ""
    return f"another is {what or 'at work on this volume'}"


def _now() -> float:
    return asyncio.get_running_loop().time()
