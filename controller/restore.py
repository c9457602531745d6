"""Putting a backup in the place of all records: the same afterwards, however often and wherever it was killed.

    begin    the cluster's record says that a restore is under way, and has the new epoch: from here on every other commit is
             refused by the store itself (standing.py), and controllers serve nothing
    write    what differs, in transactions of bounded size, each of which checks that record; read again until nothing differs
    end      the cluster's record says what was restored, and that it is over

Killed in between, the record stays, and so does the standstill; the same command (or another backup) begins again and finds
less to do. Two at once: the second takes the record over, and the first one's next transaction is refused.

The epoch becomes higher than the backup's and the store's, and at least the seconds since 1970: a store made anew forgets
which epochs there were, nodes do not. Live controllers and the history of events stay; what is leased besides, and what nodes
reported, goes: it is about records that may not be there any more. Rejected: a staging area in the store that controllers carry
over by themselves (twice the room in a store that may be full, and a second protocol); renaming a prefix (etcd cannot).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cairn.controller.backup import cluster_record, is_kept, is_of_backups, pages, parts_of
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.standing import CLUSTER_KEY
from cairn.controller.store.base import Conflict, Indeterminate, Item, Put, Store, Txn, Unavailable
from cairn.proto import kinds
from cairn.proto.backup import Damaged, Reader
from cairn.proto.errors import BadState, Invalid
from cairn.proto.log import logger
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.backup_pb2 import BackupHeader, RestoredObject, RestorePlan, RestoreProgress
from cairn.proto.v1.cluster_pb2 import Cluster
from cairn.proto.v1.usage_pb2 import UsageCursor
from google.protobuf.message import DecodeError

_log = logger("restore")
WRITER: Final = "restore"
# Of one transaction.
WRITES_MAX: Final = 100
WRITE_BYTES_MAX: Final = 1_000_000
RETRY_S: Final = 0.5
RETRIES_MAX: Final = 60
# Objects a plan names one by one; the others are counted.
NAMED_MAX: Final = 500
# Stay though no backup has them: who is alive, what happened, and who did it.
_STAY: Final = frozenset(
    kind.name
    for kind in (
        kinds.CONTROLLER, kinds.CONTROLLER_MEMBER, kinds.EVENT, kinds.EVENT_OF, kinds.AUDIT, kinds.AUDIT_HEAD, kinds.AUDIT_CUT,
        kinds.USAGE_CLOCK, kinds.CONTROLLER_LAST,
    )
)  # fmt: skip
# Stay, and are not put, where they are newer than the backup's: what was used since was used.
_USAGE: Final = frozenset(
    kind.name for kind in (kinds.USAGE_CURSOR, kinds.USAGE_OPEN, kinds.USAGE_DAY, kinds.USAGE_MONTH, kinds.USAGE_GAP)
)
_CURSOR: Final = kinds.USAGE_CURSOR.key("self")
_NAMED: Final = frozenset({kinds.VM.name, kinds.VOLUME.name, kinds.IMAGE.name})


@dataclass(slots=True)
class Backup:
    """A backup that was read whole and found right: key -> value."""

    header: BackupHeader
    sha256: bytes
    records: dict[str, bytes]


async def read(chunks: AsyncIterator[bytes]) -> Backup:
    """Take a file in, but for what an older release kept that no backup holds any more. Raises Invalid for a damaged one."""
    reader, records = Reader(), dict[str, bytes]()
    try:
        async for chunk in chunks:
            for part in reader.feed(chunk):
                for record in part.records.records:
                    key = f"{kinds.ROOT}{record.kind}/{record.id}"
                    if is_of_backups(key):
                        records[key] = record.value
        header = reader.finish()
    except Damaged as error:
        raise Invalid("chunk", f"the backup cannot be used: {error}") from error
    assert reader.trailer is not None
    if CLUSTER_KEY not in records:
        raise Invalid("chunk", "the backup cannot be used: it does not say of which cluster it is")
    return Backup(header, reader.trailer.sha256, records)


@dataclass(slots=True)
class Difference:
    """What a restore has to write, and what to say of it."""

    puts: dict[str, bytes] = field(default_factory=dict)
    deletes: list[str] = field(default_factory=list)
    # Kind -> [added, removed, changed, same]
    counts: dict[str, list[int]] = field(default_factory=dict)
    unknown: list[RestoredObject] = field(default_factory=list)
    returning: list[RestoredObject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.puts) + len(self.deletes)

    def count(self, key: str, what: int) -> None:
        """Count a record that comes (0), goes (1), changes (2) or stays (3)."""
        self.counts.setdefault(parts_of(key)[0], [0, 0, 0, 0])[what] += 1


async def difference(store: Store, backup: Backup, revision: int) -> Difference:
    """Compare a backup with the store at a revision. Raises StoreError."""
    found, seen = Difference(), set[str]()
    records, stay = backup.records, _STAY
    if await _counted_since(store, backup, revision):
        records = {key: value for key, value in records.items() if parts_of(key)[0] not in _USAGE}
        stay = _STAY | _USAGE
    async for page in pages(store, revision):
        for item in page:
            seen.add(item.key)
            _compare(found, records, stay, item)
    for key, value in records.items():
        if key not in seen and key != CLUSTER_KEY:
            found.puts[key] = value
            found.count(key, 0)
            _name(found.returning, key, value)
    if _CURSOR in found.puts:
        # Last, since it says that the others are there.
        found.puts[_CURSOR] = found.puts.pop(_CURSOR)
    return found


async def _counted_since(store: Store, backup: Backup, revision: int) -> bool:
    """Tell whether the store's usage is what the backup's has become, or the backup has none."""
    if _CURSOR not in backup.records:
        return True
    items, _ = await store.read(_CURSOR, end=_CURSOR + "\0", revision=revision)
    return bool(items) and _begin(items[0].value) == _begin(backup.records[_CURSOR])


def _begin(cursor: bytes) -> bytes:
    """Return what tells one history of usage from another."""
    try:
        return UsageCursor.FromString(cursor).begin_time.SerializeToString(deterministic=True)
    except DecodeError:
        return cursor


def _compare(found: Difference, records: Mapping[str, bytes], stay: frozenset[str], item: Item) -> None:
    name, _ = parts_of(item.key)
    value = records.get(item.key)
    if item.key == CLUSTER_KEY or (value is None and name in stay):
        return
    if value is None:
        found.deletes.append(item.key)
        if is_kept(item):
            found.count(item.key, 1)
            _name(found.unknown, item.key, item.value)
        return
    if value == item.value and not item.lease:
        found.count(item.key, 3)
        return
    found.puts[item.key] = value
    found.count(item.key, 2)
    if _is_deleted(item.key, item.value) and not _is_deleted(item.key, value):
        _name(found.returning, item.key, value)


def _message(key: str, value: bytes) -> Any:
    """Return a VM, volume or image; None for what is none, or cannot be read."""
    name, _ = parts_of(key)
    if name not in _NAMED:
        return None
    try:
        return kinds.BY_NAME[name].message.FromString(value)
    except DecodeError:
        return None


def _is_deleted(key: str, value: bytes) -> bool:
    message = _message(key, value)
    return message is not None and message.HasField("delete_time")


def _name(objects: list[RestoredObject], key: str, value: bytes) -> None:
    message = _message(key, value)
    if message is not None and not message.HasField("delete_time") and len(objects) < NAMED_MAX:
        name, id = parts_of(key)
        objects.append(RestoredObject(kind=name, id=id, name=message.name))


def plan_of(backup: Backup, cluster: Cluster, revision: int, found: Difference) -> RestorePlan:
    """Return what to show before it is done."""
    plan = RestorePlan(
        backup=backup.header,
        cluster=cluster.name,
        epoch=cluster.epoch,
        revision=revision,
        unknown=found.unknown,
        returning=found.returning,
    )
    for kind, (added, removed, changed, same) in sorted(found.counts.items()):
        plan.kinds.add(kind=kind, added=added, removed=removed, changed=changed, same=same)
    return plan


class Restore:
    """One attempt to put a backup in place, through one controller."""

    def __init__(self, store: Store, clock: Clock, backup: Backup, actor: str) -> None:
        self._store, self._clock, self._backup, self._actor = store, clock, backup, actor
        # Mod revision of the cluster's record as we wrote it: whoever changes it has taken over.
        self._mine = 0
        self._cluster = Cluster()

    async def plan(self) -> RestorePlan:
        """Return what it would change. Raises StoreError."""
        cluster, _, revision = await cluster_record(self._store)
        return plan_of(self._backup, cluster, revision, await difference(self._store, self._backup, revision))

    async def run(self) -> AsyncGenerator[RestoreProgress]:
        """Do it, telling how far it is. Raises BadState when another one takes over, StoreError."""
        await self._begin()
        while True:
            _, _, revision = await cluster_record(self._store)
            found = await difference(self._store, self._backup, revision)
            if not found:
                break
            done = RestoreProgress(whole=len(found))
            for txn in transactions(found):
                await self._commit(txn)
                done.written += len(txn.puts) + len(txn.deletes)
                yield done
        await self._end(revision)

    @property
    def epoch(self) -> int:
        """The epoch it gives the store."""
        return self._cluster.epoch

    async def _begin(self) -> None:
        """Stop everybody: from here on nobody else can commit anything."""
        cluster, mod_revision, _ = await cluster_record(self._store)
        kept = Cluster.FromString(self._backup.records[CLUSTER_KEY])
        kept.ClearField("restored")
        now = self._clock.now()
        kept.epoch = max(cluster.epoch + 1, self._backup.header.epoch + 1, int(now.timestamp()))
        kept.restore.sha256, kept.restore.actor = self._backup.sha256, self._actor
        kept.restore.begin_time.CopyFrom(timestamp(now))
        self._cluster = kept
        _log.warning("restore_begins", cluster=cluster.name, backup=self._backup.header.revision, epoch=kept.epoch)
        await self._write_cluster(mod_revision)

    async def _end(self, revision: int) -> None:
        header = self._backup.header
        self._cluster.ClearField("restore")
        restored = self._cluster.restored
        restored.restore_time.CopyFrom(timestamp(self._clock.now()))
        restored.backup_time.CopyFrom(header.backup_time)
        restored.backup_epoch, restored.backup_revision = header.epoch, header.revision
        restored.revision, restored.actor = revision, self._actor
        await self._write_cluster(self._mine)
        _log.warning("restored", epoch=self.epoch, backup=header.revision, revision=self._mine)

    async def _write_cluster(self, expected: int) -> None:
        value = self._cluster.SerializeToString(deterministic=True)
        txn = raw({CLUSTER_KEY: value}, [], check=expected)
        for _ in range(RETRIES_MAX):
            try:
                self._mine = await self._store.commit(txn)
                return
            except (Conflict, Indeterminate) as error:
                _log.warning("restore_in_doubt", error=str(error))
            except Unavailable as error:
                _log.warning("store_unavailable", error=str(error))
                await asyncio.sleep(RETRY_S)
            try:
                cluster, mod_revision, _ = await cluster_record(self._store)
            except Unavailable:
                continue
            if cluster == self._cluster:
                self._mine = mod_revision
                return
            if mod_revision != expected:
                raise _taken_over(cluster)
        raise Unavailable("the store did not answer for long; the same command goes on where this ended")

    async def _commit(self, txn: Txn) -> None:
        """Write some of it. What is in doubt is written again: it is the same."""
        txn.checks[CLUSTER_KEY] = self._mine
        for _ in range(RETRIES_MAX):
            try:
                await self._store.commit(txn)
                return
            except Conflict as error:
                cluster, _, _ = await cluster_record(self._store)
                raise _taken_over(cluster) from error
            except (Indeterminate, Unavailable) as error:
                _log.warning("restore_waits", error=str(error))
                await asyncio.sleep(RETRY_S)
        raise Unavailable("the store did not answer for long; the same command goes on where this ended")


def transactions(found: Difference) -> Iterator[Txn]:
    """Yield what is to be written, in transactions of bounded size."""
    deletes = list(found.deletes)
    while deletes:
        yield raw({}, deletes[:WRITES_MAX])
        del deletes[:WRITES_MAX]
    puts, size_bytes = dict[str, bytes](), 0
    for key, value in found.puts.items():
        if puts and (len(puts) == WRITES_MAX or size_bytes + len(key) + len(value) > WRITE_BYTES_MAX):
            yield raw(puts, [])
            puts, size_bytes = {}, 0
        puts[key] = value
        size_bytes += len(key) + len(value)
    if puts:
        yield raw(puts, [])


def raw(puts: dict[str, bytes], deletes: Iterable[str], *, check: int | None = None) -> Txn:
    """Return a transaction of records as they are; check: revision the cluster's record must have."""
    txn = Txn(WRITER, puts={key: Put(value) for key, value in puts.items()}, deletes=set(deletes))
    txn.writers = dict.fromkeys((*txn.puts, *txn.deletes), WRITER)
    if check is not None:
        txn.check(kinds.CLUSTER, CLUSTER_ID, check)
    return txn


def _taken_over(cluster: Cluster) -> BadState:
    by = cluster.restore.actor or cluster.restored.actor
    return BadState("cluster", cluster.name, f"another restore{f' of {by}' if by else ''} has taken over: this one is given up")
