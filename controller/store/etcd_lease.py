"""A lease in etcd, kept alive whatever member goes away.

Invariant: `lost` is true before etcd can have let the keys vanish without our knowing: the time to live is counted from before
the last renewal was sent, on our own clock. etcd may keep the keys a while longer (a new leader starts all leases anew).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

import grpc.aio
from cairn.controller.store.base import Unavailable
from cairn.controller.store.etcd_connection import Connection
from cairn.controller.store.etcd_refusals import says, told
from cairn.proto.etcd import rpc_pb2
from cairn.proto.log import logger

_log = logger("store")
# Of the time to live: when to renew, and how long to wait for an answer before another member is asked.
RENEW_SHARE: Final = 1 / 3
ANSWER_SHARE: Final = 1 / 6
ANSWER_MAX_S: Final = 2.0
RETRY_S: Final = 0.2


class EtcdLease:
    """See the module. Made by `grant`."""

    def __init__(
        self, connection: Connection, id: int, ttl_s: float, since_s: float, forget: Callable[[EtcdLease], None]
    ) -> None:
        self._connection, self._id, self._ttl_s, self._forget = connection, id, ttl_s, forget
        self._loop = asyncio.get_running_loop()
        self._renewed_s = since_s
        self._gone = asyncio.Event()
        self._stream: Any = None
        self._task = self._loop.create_task(self._keep())
        self._task.add_done_callback(self._ended)

    @classmethod
    async def grant(cls, connection: Connection, ttl_s: float, forget: Callable[[EtcdLease], None]) -> EtcdLease:
        """Make a lease. One whose answer is lost on the way runs out unused, so asking again is harmless."""
        since_s = asyncio.get_running_loop().time()
        request = rpc_pb2.LeaseGrantRequest(ttl=math.ceil(ttl_s))
        response = await connection.ask(connection.lease.LeaseGrant, request)
        return cls(connection, response.id, response.ttl, since_s, forget)

    @property
    def id(self) -> int:
        """Lease id for Put."""
        return self._id

    @property
    def lost(self) -> bool:
        """True once it is known to have run out, or may have."""
        return self._gone.is_set() or self._left_s() <= 0

    async def wait_lost(self) -> None:
        """Return when it is lost."""
        await self._gone.wait()

    async def close(self, *, revoke: bool = True) -> None:
        """Stop keeping it alive; revoke: its keys vanish now, or when it runs out if etcd does not answer."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._forget(self)
        if not revoke:
            return
        try:
            await self._connection.ask(self._connection.lease.LeaseRevoke, rpc_pb2.LeaseRevokeRequest(id=self._id))
        except grpc.aio.AioRpcError as error:
            if not says(error, "lease not found"):
                raise
        except Unavailable as error:
            _log.warning("lease_left_to_run_out", lease=self._id, ttl_s=self._ttl_s, error=str(error))

    def _left_s(self) -> float:
        return self._renewed_s + self._ttl_s - self._loop.time()

    async def _keep(self) -> None:
        pause_s = self._ttl_s * RENEW_SHARE
        try:
            while self._left_s() > 0:
                await asyncio.sleep(min(pause_s, self._left_s()))
                pause_s = self._ttl_s * RENEW_SHARE if await self._renew() else RETRY_S
        finally:
            self._drop_stream()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.warning("lease_lost", lease=self._id, exc_info=task.exception())
            self._gone.set()
            self._forget(self)

    async def _renew(self) -> bool:
        """Ask once; a failure closes the stream, so that the next attempt goes to another member."""
        sent_s = self._loop.time()
        try:
            async with asyncio.timeout(min(ANSWER_MAX_S, self._ttl_s * ANSWER_SHARE)):
                response = await self._exchange()
        except TimeoutError:
            _log.info("lease_not_renewed", lease=self._id, error="no answer")
        except asyncio.InvalidStateError:
            # gRPC's word for writing to a stream that has ended since.
            _log.info("lease_not_renewed", lease=self._id, error="the stream had ended")
        except grpc.aio.AioRpcError as error:
            _log.info("lease_not_renewed", lease=self._id, error=told(error))
        else:
            if isinstance(response, rpc_pb2.LeaseKeepAliveResponse):
                if response.ttl <= 0:
                    _log.info("lease_unknown", lease=self._id, left_s=self._left_s())
                self._renewed_s = sent_s if response.ttl > 0 else -math.inf
                return True
            _log.info("lease_not_renewed", lease=self._id, error="etcd ended the stream")
        self._drop_stream()
        return False

    async def _exchange(self) -> Any:
        if self._stream is None:
            self._stream = self._connection.open(self._connection.lease.LeaseKeepAlive)
        await self._stream.write(rpc_pb2.LeaseKeepAliveRequest(id=self._id))
        return await self._stream.read()

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
