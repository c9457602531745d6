"""The store on etcd (v3 API, 3.4 or later), by a client of our own: docs/decisions/0001-own-etcd-client.md says why.

    store = EtcdStore(["10.0.0.1:2379", "10.0.0.2:2379"], FileCredentials(ca, cert, key))

This file is requests and answers; etcd_connection.py decides what a failed call means, etcd_watch.py and etcd_lease.py
keep watches and leases going when members go away. A Txn becomes one etcd transaction: compare mod revisions, then all
writes, else read back the compared keys so that Conflict can name those that moved. Reads go in pages pinned to the revision of
the first. Every call has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import grpc.aio
from cairn.controller.store.base import Batch, Compacted, Conflict, Full, Item, LeaseLost, MemberStatus, TooBig, Txn
from cairn.controller.store.etcd_connection import Connection
from cairn.controller.store.etcd_lease import EtcdLease
from cairn.controller.store.etcd_refusals import alarms_of, says, too_large, where_full
from cairn.controller.store.etcd_watch import Watch
from cairn.proto.etcd import kv_pb2, rpc_pb2, rpc_pb2_grpc
from cairn.proto.pki import ETCD_SERVER_NAME
from cairn.proto.rpc import Credentials

PAGE_ITEMS: Final = 1000
STATUS_S: Final = 2.0
# How long it is remembered which members are full.
FULL_S: Final = 5.0
# In etcd's ranges: as first key, or as end, "no bound".
_UNBOUNDED: Final = b"\0"


class EtcdStore:
    """Implements Store and Membership."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials, *, server_name: str = ETCD_SERVER_NAME) -> None:
        """Endpoints: "host:port" of members; server_name: in each one's certificate. To be made in a running event loop."""
        self._connection = Connection(endpoints, credentials, server_name=server_name)
        self._leases: set[EtcdLease] = set()
        self._full, self._full_until_s = "", 0.0

    def reload(self, credentials: Credentials | None = None) -> None:
        """Use changed certificates (or another source of them) for calls from now on; files that change are noticed anyway."""
        self._connection.reload(credentials)

    async def read(
        self, prefix: str, *, start: str = "", end: str = "", limit: int = 0, revision: int = 0
    ) -> tuple[list[Item], int]:
        """Return (items sorted by key, revision of the picture)."""
        first, last = range_of(prefix, start, end)
        items: list[Item] = []
        while True:
            size = limit - len(items) if limit else PAGE_ITEMS
            page = await self._page(rpc_pb2.RangeRequest(key=first, range_end=last, limit=size, revision=revision))
            revision = revision or page.header.revision
            items += map(_item, page.kvs)
            if not page.more or len(items) == limit:
                return items, revision
            first = page.kvs[-1].key + b"\0"

    async def _page(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        try:
            return await self._connection.ask(self._connection.kv.Range, request)
        except grpc.aio.AioRpcError as error:
            if says(error, "has been compacted"):
                raise Compacted(await self._compacted(request.revision)) from error
            if says(error, "future revision"):
                raise ValueError(f"revision {request.revision} is in the future") from error
            raise

    async def _compacted(self, revision: int) -> int:
        """Return the oldest revision still kept, given one that is not: only a watch is told."""
        try:
            async with aclosing(Watch(self._connection, _UNBOUNDED, b"", revision).batches()) as batches:
                await anext(batches)
        except Compacted as error:
            return error.revision
        return revision + 1

    async def revision(self) -> int:
        """Return the newest revision, linearizable."""
        request = rpc_pb2.RangeRequest(key=_UNBOUNDED, count_only=True)
        response = await self._connection.ask(self._connection.kv.Range, request)
        return response.header.revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Yield every batch after that revision."""
        async with aclosing(Watch(self._connection, *range_of(prefix), after).batches()) as batches:
            async for batch in batches:
                yield batch

    async def commit(self, txn: Txn) -> int:
        """Apply and return the new revision."""
        txn.check_limits()
        request = rpc_pb2.TxnRequest(
            compare=[_compare(key, revision) for key, revision in txn.checks.items()],
            success=_writes(txn),
            failure=[rpc_pb2.RequestOp(request_range=_bare(key)) for key in txn.checks],
        )
        try:
            response = await self._connection.tell(self._connection.kv.Txn, request)
        except grpc.aio.AioRpcError as error:
            if says(error, "lease not found"):
                raise LeaseLost(f"a lease of {_leases(txn)} is no more") from error
            if too_large(error):
                raise TooBig(f"etcd refuses the transaction: {error.details()}") from error
            raise ValueError(f"etcd refuses the transaction: {error.details()}") from error
        except Full as error:
            raise Full(await self._where_full()) from error
        if not response.succeeded:
            raise Conflict(_moved(txn, response))
        return response.header.revision

    async def lease(self, ttl_s: float) -> EtcdLease:
        """Return a lease that is kept alive."""
        try:
            lease = await EtcdLease.grant(self._connection, ttl_s, self._leases.discard)
        except Full as error:
            raise Full(await self._where_full()) from error
        self._leases.add(lease)
        return lease

    async def compact(self, revision: int) -> None:
        """Forget history before that revision."""
        try:
            await self._connection.ask(self._connection.kv.Compact, rpc_pb2.CompactionRequest(revision=revision))
        except grpc.aio.AioRpcError as error:
            if says(error, "future revision"):
                raise ValueError(f"revision {revision} is in the future") from error
            if not says(error, "has been compacted"):
                raise

    async def members(self) -> list[MemberStatus]:
        """Ask every endpoint for its status."""
        return list(await asyncio.gather(*map(self._member, self._connection.endpoints)))

    async def _member(self, endpoint: str) -> MemberStatus:
        async with self._connection.dial([endpoint]) as channel:
            stub = rpc_pb2_grpc.MaintenanceStub(channel)
            try:
                status = await stub.Status(rpc_pb2.StatusRequest(), timeout=STATUS_S)
            except grpc.aio.AioRpcError:
                return MemberStatus(endpoint, healthy=False, say="it does not answer")
        member, leader = status.header.member_id, status.leader
        alarms = alarms_of(member, status.errors)
        troubles = [*alarms, *(["it knows no leader"] if not leader else ())]
        return MemberStatus(
            endpoint,
            healthy=not troubles,
            leader=leader == member,
            size_bytes=status.db_size,
            used_bytes=status.db_size_in_use,
            quota_bytes=status.db_size_quota,
            version=status.version,
            learner=status.is_learner,
            alarms=alarms,
            say=", ".join(troubles),
        )

    async def _where_full(self) -> str:
        """Return which members are full; whoever asks within a moment is told the same."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._full_until_s:
            self._full = where_full(await self.members())
            self._full_until_s = now_s + FULL_S
        return self._full

    async def close(self) -> None:
        """Stop everything; leases are left to run out."""
        for lease in list(self._leases):
            await lease.close(revoke=False)
        await self._connection.close()


def range_of(prefix: str, start: str = "", end: str = "") -> tuple[bytes, bytes]:
    """Return etcd's (first key, end) of a prefix, from `start` on, up to `end`."""
    first = max(prefix, start).encode() or _UNBOUNDED
    limits = [bound for bound in (end.encode(), _prefix_end(prefix.encode())) if bound]
    return first, min(limits, default=_UNBOUNDED)


def _prefix_end(prefix: bytes) -> bytes:
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b""


def _item(record: kv_pb2.KeyValue) -> Item:
    key = record.key.decode("utf-8", "replace")
    return Item(key, record.value, record.mod_revision, record.create_revision, record.lease)


def _compare(key: str, revision: int) -> rpc_pb2.Compare:
    return rpc_pb2.Compare(key=key.encode(), result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.MOD, mod_revision=revision)


def _bare(key: str) -> rpc_pb2.RangeRequest:
    return rpc_pb2.RangeRequest(key=key.encode(), keys_only=True)


def _writes(txn: Txn) -> list[rpc_pb2.RequestOp]:
    writes = [
        rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key.encode())) for key in sorted(txn.deletes)
    ]
    for key, put in txn.puts.items():
        request = rpc_pb2.PutRequest(key=key.encode(), value=put.value, lease=put.lease)
        writes.append(rpc_pb2.RequestOp(request_put=request))
    return writes


def _moved(txn: Txn, response: rpc_pb2.TxnResponse) -> list[str]:
    """Return the checked keys whose mod revision is another one."""
    found = [answer.response_range.kvs for answer in response.responses]
    now = [kvs[0].mod_revision if kvs else 0 for kvs in found]
    return [key for (key, expected), actual in zip(txn.checks.items(), now, strict=True) if actual != expected]


def _leases(txn: Txn) -> str:
    return ", ".join(sorted(key for key, put in txn.puts.items() if put.lease))
