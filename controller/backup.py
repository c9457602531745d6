"""Making a backup: every record of one revision, read in pages, told as the bytes of a file (proto/backup.py).

What is in it is what only the store knows: what users asked for and what was decided. What is leased (sessions, requests,
plans, events) and what nodes say again when they connect (reports) is not. Kinds this controller does not know are taken as
they are. Two passes: the header says how many records of each kind follow, so a file tells what is in it before it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from cairn.controller.standing import CLUSTER_KEY
from cairn.controller.store.base import Item, Store
from cairn.proto import kinds
from cairn.proto.backup import Writer
from cairn.proto.errors import BadState
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.backup_pb2 import BackupHeader, BackupRecord
from cairn.proto.v1.cluster_pb2 import Cluster

PAGE_ITEMS: Final = 200


def parts_of(key: str) -> tuple[str, str]:
    """Return (kind's name, id) of a key of ours, also of a kind that this release does not know."""
    name, _, id = key.removeprefix(kinds.ROOT).partition("/")
    return name, id


def is_kept(item: Item) -> bool:
    """Tell whether a record belongs into a backup."""
    return not item.lease and is_of_backups(item.key)


def is_of_backups(key: str) -> bool:
    """Tell whether a record of that key does, as far as its kind goes; a kind that this release does not know does."""
    name, id = parts_of(key)
    kind = kinds.BY_NAME.get(name)
    return bool(name and id) and (kind is None or kind.kept)


async def pages(store: Store, revision: int) -> AsyncIterator[list[Item]]:
    """Yield all our records of a revision, in the order of their keys. Raises StoreError."""
    start = ""
    while True:
        items, _ = await store.read(kinds.ROOT, start=start, limit=PAGE_ITEMS, revision=revision)
        yield items
        if len(items) < PAGE_ITEMS:
            return
        start = items[-1].key + "\0"


async def cluster_record(store: Store) -> tuple[Cluster, int, int]:
    """Return (the cluster's own record, its mod revision, the store's revision); an empty record when there is none."""
    items, revision = await store.read(CLUSTER_KEY, end=CLUSTER_KEY + "\0")
    if not items:
        return Cluster(), 0, revision
    return Cluster.FromString(items[0].value), items[0].mod_revision, revision


async def backup(store: Store, clock: Clock, version: str) -> AsyncGenerator[bytes]:
    """Yield a backup's bytes in parts of bounded size. Raises BadState while a restore is under way, StoreError."""
    cluster, _, revision = await cluster_record(store)
    if cluster.HasField("restore"):
        say = "a restore is under way: what is in the store is half of this and half of that"
        raise BadState("cluster", cluster.name, f"{say}; finish it first with `cairn cluster restore FILE`")
    counts: Counter[str] = Counter()
    async for page in pages(store, revision):
        counts.update(parts_of(item.key)[0] for item in page if is_kept(item))
    header = BackupHeader(
        cluster=cluster.name, epoch=cluster.epoch, revision=revision, backup_time=timestamp(clock.now()), version=version
    )
    for name in sorted(counts):
        header.counts.add(kind=name, count=counts[name])
    writer = Writer()
    yield writer.begin(header)
    async for page in pages(store, revision):
        for part in writer.records(_record(item) for item in page if is_kept(item)):
            yield part
    yield writer.end()


def _record(item: Item) -> BackupRecord:
    name, id = parts_of(item.key)
    return BackupRecord(kind=name, id=id, value=item.value)
