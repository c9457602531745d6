"""Which controllers are alive, and which of them does what.

Every controller holds a record under a lease; work is spread over those present in the view by rendezvous hashing, so that when
one comes or goes only its own share moves. Two controllers that see different views for a moment both work on a key, or neither
does until the next scan: harmless, because commits are optimistic and reconcilers are level-triggered. No one is master.
Rejected: a ring with virtual nodes (needs tuning to be as even), leases per shard (one write per shard and takeover).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.store.base import Conflict, Indeterminate, Lease, LeaseLost, Store, Txn, Unavailable
from cairn.controller.store.cache import Cache
from cairn.proto import kinds
from cairn.proto.log import logger
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.cluster_pb2 import Cluster, ControllerSession, LastSession

_log = logger("peers")
WRITER: Final = "peers"
SESSION_TTL_S: Final = 6.0
RETRY_S: Final = 0.5
FAREWELL_S: Final = 2.0
# How often the record is looked at.
LOOK_S: Final = 2.0


def winner(names: Iterable[str], shard_key: str) -> str:
    """Return whose key it is by rendezvous (highest random weight) hashing, Thaler and Ravishankar 1998; "" among nobody."""

    def weight(name: str) -> tuple[bytes, str]:
        return hashlib.blake2b(f"{name}\0{shard_key}".encode(), digest_size=8).digest(), name

    return max(names, key=weight, default="")


class Peers:
    """This controller among its peers. `run` keeps it registered."""

    def __init__(
        self, name: str, endpoints: Sequence[str], store: Store, cache: Cache, clock: Clock, *, cluster: str, version: str = ""
    ) -> None:
        """name: unique among controllers; endpoints: where agents and clients reach it; cluster: its name if it is new."""
        self.name = name
        self._store, self._cache, self._clock = store, cache, clock
        self._cluster = cluster
        # Mod revision of our record as last written; 0: never.
        self._revision = 0
        # Mod revision of the mark that this process was the last of its name; 0: it has not come yet.
        self._came = 0
        self._session = ControllerSession(name=name, endpoints=endpoints, version=version, start_time=timestamp(clock.now()))
        # Set while our record is in the store as far as we know.
        self.registered = asyncio.Event()
        # Why it could not be registered the last time; empty while it is.
        self.trouble = ""

    def mine(self, shard_key: str) -> bool:
        """Tell whether this controller is the one to work on a key."""
        return winner(self._cache.view.ids(kinds.CONTROLLER), shard_key) == self.name

    def alive(self) -> list[str]:
        """Return the names of all live controllers, sorted."""
        return sorted(self._cache.view.ids(kinds.CONTROLLER))

    @property
    def epoch(self) -> int:
        """The cluster's epoch; 0 until the first controller has written it."""
        cluster = self._cache.view.get(kinds.CLUSTER, CLUSTER_ID)
        return 0 if cluster is None else cluster.epoch

    async def run(self) -> None:
        """Stay registered until cancelled; then leave, so that the others take over at once."""
        await self._cache.ready.wait()
        while True:
            try:
                await self._found()
                await self._attend()
                _log.warning("lease_lost", name=self.name)
            except (Conflict, Unavailable, Indeterminate, LeaseLost) as error:
                _log.warning("registration_failed", name=self.name, error=str(error))
                self.trouble = str(error)
                await asyncio.sleep(RETRY_S)

    async def _found(self) -> None:
        """Write the cluster's own record unless it is there."""
        record = Cluster(name=self._cluster, epoch=1, create_time=timestamp(self._clock.now()))
        try:
            await self._store.commit(Txn(WRITER).create(kinds.CLUSTER, CLUSTER_ID, record))
        except Conflict:
            return
        _log.info("cluster_founded", cluster=self._cluster)

    async def _attend(self) -> None:
        """Hold a session until its lease is lost. Raises StoreError; Conflict when the record has moved on meanwhile."""
        await self._until_free()
        view = self._cache.view
        lease = await self._store.lease(SESSION_TTL_S)
        try:
            # Replaces the record a previous life of this controller may have left under its own lease.
            txn = Txn(WRITER).check(kinds.CONTROLLER, self.name, view.revision_of(kinds.CONTROLLER, self.name))
            txn.put(kinds.CONTROLLER, self.name, self._session, lease=lease.id)
            if self._came:
                txn.check(kinds.CONTROLLER_LAST, self.name, self._came)
            else:
                last = LastSession(controller=self.name, since_time=self._session.start_time)
                txn.put(kinds.CONTROLLER_LAST, self.name, last)
            self._revision = await self._store.commit(txn)
            self._came = self._came or self._revision
            _log.info("registered", name=self.name, lease=lease.id)
            self.registered.set()
            self.trouble = ""
            await self._until_gone(lease, self._revision)
        finally:
            self.registered.clear()
            await self._leave(lease)

    async def _until_free(self) -> None:
        """Return, on a fresh view, unless a process of our name came after us, gone or not: it has superseded this one."""
        told = False
        while True:
            await self._cache.wait_for(await self._store.revision())
            record = self._cache.view.record(kinds.CONTROLLER, self.name)
            newer = record is not None and self._revision and record.mod_revision > self._revision
            if not await self._superseded() and (record is None or not newer or record.message == self._session):
                return
            if not told:
                by = list(record.message.endpoints) if record is not None else []
                _log.error("name_taken", name=self.name, by=by, remedy="stop this process, or give one of the two another name")
                told = True
            await asyncio.sleep(LOOK_S)

    async def _superseded(self) -> bool:
        """Tell whether the mark of who came last is another process's; one that is gone is ours to make again."""
        if not self._came:
            return False
        items, _ = await self._store.read(kinds.CONTROLLER_LAST.key(self.name), limit=1)
        if not items:
            self._came = 0
        return bool(items) and items[0].mod_revision != self._came

    async def _until_gone(self, lease: Lease, revision: int) -> None:
        """Return when the lease is lost, or the record is not as we wrote it.

        An earlier registration that was given up as in doubt may arrive late, under a lease nobody keeps alive.
        """
        while not lease.lost:
            try:
                async with asyncio.timeout(LOOK_S):
                    await lease.wait_lost()
            except TimeoutError:
                view = self._cache.view
                if view.revision >= revision and view.revision_of(kinds.CONTROLLER, self.name) != revision:
                    return

    async def _leave(self, lease: Lease) -> None:
        if lease.lost:
            await lease.close(revoke=False)
            return
        try:
            async with asyncio.timeout(FAREWELL_S):
                await lease.close()
        except TimeoutError:
            _log.info("session_left_to_run_out", name=self.name, ttl_s=SESSION_TTL_S)
