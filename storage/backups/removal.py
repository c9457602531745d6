"""Removing backups, by name or by a policy, and sweeping what killed work left. Killed anywhere, what is left can be restored.

A backup's manifest goes first: from then on it is none, and the rest of it is swept, now or by the next who looks. A manifest
that cannot be read may be of a child, so nothing of its volume is removed while it is there (`discard` is the way out of that,
by name).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from cairn.storage.backups.claims import Busy, Claim, claimed
from cairn.storage.backups.repository import Backup, BadRepository, Catalogue, Repository
from cairn.storage.backups.retention import Policy, Removal, kept, removal
from cairn.storage.base import Sweeping


async def remove(repository: Repository, volume: str, ids: Collection[str], token: str) -> Removal:
    """Remove backups by their ids; those that others are built on are hidden until these go. One that is not there: no error.

    Raises Busy, Lost, StoreError, BadRepository. token: see claims.claimed.
    """
    async with claimed(repository.store, volume, token, f"removing backups of {volume}") as claim:
        catalogue = await repository.catalogue(volume)
        catalogue.require_answers(volume)
        unwanted = {each.sha256 for each in catalogue.of(volume) if each.id in ids}
        for each in catalogue.unreadable:
            if each.name.split("/")[2] in ids:
                raise BadRepository(f"{each.say}; it can be discarded by that name")
        return await _carry_out(repository, claim, catalogue, volume, unwanted)


async def prune(repository: Repository, volume: str, policy: Policy, now: datetime, token: str) -> Removal:
    """Remove what a policy does not keep. As remove."""
    async with claimed(repository.store, volume, token, f"pruning backups of {volume}") as claim:
        catalogue = await repository.catalogue(volume)
        catalogue.require_answers(volume)
        stays = kept(catalogue, volume, policy, now)
        unwanted = {each.sha256 for each in catalogue.of(volume) if each.sha256 not in stays}
        return await _carry_out(repository, claim, catalogue, volume, unwanted)


async def discard(repository: Repository, volume: str, manifest: str, token: str) -> None:
    """Remove a manifest that cannot be read, by its object's name: somebody has decided that its backup is given up."""
    async with claimed(repository.store, volume, token, f"discarding a manifest of {volume}") as claim:
        catalogue = await repository.catalogue(volume)
        if manifest not in [each.name for each in catalogue.unreadable]:
            raise BadRepository(f"{manifest} is no manifest of volume {volume} that cannot be read")
        claim.check()
        await repository.store.delete(manifest)


async def _carry_out(
    repository: Repository, claim: Claim, catalogue: Catalogue, volume: str, unwanted: Collection[str]
) -> Removal:
    plan = removal(catalogue.of(volume), unwanted)
    if (plan.hide or plan.remove) and catalogue.unreadable:
        why = "; ".join(each.say for each in catalogue.unreadable)
        raise BadRepository(f"no backup of {volume} is removed, as others may be built on it that cannot be read: {why}")
    for each in plan.hide:
        claim.check()
        await repository.store.put(each.mark, b"")
    gone = {each.sha256 for each in plan.remove}
    for each in plan.remove:
        claim.check()
        await repository.store.delete(each.manifest_name)
        left = [other for other in catalogue.of(volume) if other.folder == each.folder and other.sha256 not in gone]
        await _sweep_folder(repository, claim, each.folder, catalogue.objects[each.folder], left)
    return plan


@dataclass
class Swept:
    """What a sweep did. busy: volumes somebody else works on; doubtful: folders in which it cannot be told what is needed."""

    removed: int = 0
    busy: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)


async def sweep(repository: Repository, token: str, keep: Collection[str] = ()) -> Swept:
    """Remove what is part of no backup. keep: ids of backups that are still to be tried again, whose parts are kept for that.

    What is hidden and needed no more goes, too. Raises StoreError, Lost.
    """
    inner = repository.store.inner
    if isinstance(inner, Sweeping):
        await inner.sweep()
    volumes: set[str] = set()
    for prefix in ("volumes/", "claims/"):
        async for each in repository.store.list(prefix):
            volumes.add(each.name.split("/")[1])
    swept = Swept()
    for volume in sorted(volumes):
        try:
            async with claimed(repository.store, volume, token, f"sweeping what is left of {volume}") as claim:
                await _sweep_volume(repository, claim, volume, keep, swept)
        except Busy:
            swept.busy.append(volume)
    return swept


async def _sweep_volume(repository: Repository, claim: Claim, volume: str, keep: Collection[str], swept: Swept) -> None:
    catalogue = await repository.catalogue(volume)
    if not catalogue.unreadable:
        await _carry_out(repository, claim, catalogue, volume, ())
        catalogue = await repository.catalogue(volume)
    unsure = {each.name.rpartition("/")[0] + "/" for each in catalogue.unreadable}
    for folder, names in catalogue.objects.items():
        if folder.rstrip("/").rpartition("/")[2] in keep:
            continue
        backups = [each for each in catalogue.of(volume) if each.folder == folder]
        removed = None if folder in unsure else await _sweep_folder(repository, claim, folder, names, backups)
        if removed is None:
            swept.doubtful.append(folder)
        else:
            swept.removed += removed


async def _sweep_folder(
    repository: Repository, claim: Claim, folder: str, names: Collection[str], backups: Collection[Backup]
) -> int | None:
    """Remove what none of the folder's backups needs; return how much. None: one does not tell what it needs, so all stays."""
    needed: set[str] = set()
    for each in backups:
        needed.update(name.rpartition("/")[2] for name in (each.manifest_name, each.mark, each.manifest.list_name))
        try:
            needed.update(part.name for part in await repository.parts(each))
        except BadRepository:
            return None
    removed = 0
    for name in sorted(set(names) - needed):
        claim.check()
        await repository.store.delete(folder + name)
        removed += 1
    return removed
