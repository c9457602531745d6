"""One process's connections to the members of an etcd cluster, and what the outcome of a call means.

    connection = Connection(["10.0.0.1:2379", "10.0.0.2:2379"], FileCredentials(ca, cert, key))
    response = await connection.ask(connection.kv.Range, request)       # a read: tried again, on other members
    response = await connection.tell(connection.kv.Txn, request)        # a write: sent once; raises Indeterminate when in doubt

Calls go round-robin over the members that are connected. All carry etcd's "hasleader": a member cut off from the majority
refuses at once instead of keeping us waiting, and ends streams it can no longer serve. A write is only started on a connection
that is up, so a failure to connect is known to have written nothing; a failure after that is in doubt, except where etcd's
refusal says that nothing was proposed (etcd_refusals.py). Certificates are read again when their files change, within a second;
calls under way are not disturbed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from cairn.controller.store.base import Forbidden, Indeterminate, Unavailable
from cairn.controller.store.etcd_refusals import LASTING, kind_of, refused, told, too_large
from cairn.proto.channel import FailoverChannel
from cairn.proto.etcd import rpc_pb2, rpc_pb2_grpc
from cairn.proto.pki import ETCD_SERVER_NAME, parse_cert
from cairn.proto.rpc import Credentials, Material, targets_of
from cairn.proto.seams import SystemClock

R = TypeVar("R")

# How long a caller waits in all; for one member's answer to something that can be asked of another; and for the answer to a
# write (what was proposed to a leader that died is never answered: a new one takes 1 to 2 s to be elected).
TOTAL_S: Final = 6.0
ATTEMPT_S: Final = 2.0
WRITE_S: Final = 3.0
RETRY_S: Final = 0.05
RETRY_MAX_S: Final = 0.5
LOOK_EVERY_S: Final = 1.0
# How long to find out why nobody can be connected to.
WHY_S: Final = 0.5
# etcd: refuse (or end the stream) when this member knows no leader.
REQUIRE_LEADER: Final = (("hasleader", "true"),)

_OPTIONS: Final = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # etcd's answers are bounded by what we ask for (pages, fragments), not by gRPC.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # etcd allows a ping each 5 s, and none on a connection without calls.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
# Codes of answers about the request itself; trying again changes nothing.
_ANSWERED: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)
Call = Callable[..., Awaitable[R]]


class Connection:
    """See the module."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials, *, server_name: str = ETCD_SERVER_NAME) -> None:
        self.endpoints = tuple(endpoints)
        self._credentials, self._server_name = credentials, server_name
        self._known: Material | None = None
        self._look_again_s = 0.0
        self._channel = self.dial(self.endpoints)
        self.kv = rpc_pb2_grpc.KVStub(self._channel)
        self.watch = rpc_pb2_grpc.WatchStub(self._channel)
        self.lease = rpc_pb2_grpc.LeaseStub(self._channel)
        # Done once this client is closed.
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def closed(self) -> bool:
        """Whether this client is closed."""
        return self.closing.done()

    def dial(self, endpoints: Sequence[str]) -> FailoverChannel[Material]:
        """Return a channel of its own to some of the members; the caller closes it."""
        options = (
            *_OPTIONS,
            ("grpc.ssl_target_name_override", self._server_name),
            ("grpc.default_authority", self._server_name),
        )

        def connect(material: Material, target: str) -> grpc.aio.Channel:
            key, cert = (material.pair.key_pem, material.pair.cert_pem) if material.pair else (None, None)
            credentials = grpc.ssl_channel_credentials(material.ca_pem, key, cert)
            return grpc.aio.secure_channel(target, credentials, options)

        return FailoverChannel(targets_of(endpoints), self._material, connect)

    def _material(self) -> Material:
        """Return the certificates to use; looks for changes at most once in a while, because every call asks."""
        now_s = asyncio.get_running_loop().time()
        if self._known is None or now_s >= self._look_again_s:
            self._known, self._look_again_s = self._credentials.material(), now_s + LOOK_EVERY_S
        return self._known

    def reload(self, credentials: Credentials | None = None) -> None:
        """Use changed certificates, or those of another source, for calls from now on."""
        if credentials is not None:
            self._credentials = credentials
        self._known = None
        self._channel.reload()

    async def close(self) -> None:
        """Close; calls under way end as in doubt."""
        if not self.closing.done():
            self.closing.set_result(None)
        await self._channel.close()

    async def ready(self, timeout_s: float = TOTAL_S) -> None:
        """Return when a member is connected. Raises Unavailable."""
        self._check_open()
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        self.reload()
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            say = f"no member of {', '.join(self.endpoints)} can be connected to"
            raise self._failure(Unavailable, f"{say}{await self._why()}") from error

    def open(self, method: Any) -> Any:
        """Start a two-way stream."""
        return method(metadata=REQUIRE_LEADER)

    async def ask(self, call: Call[R], request: object) -> R:
        """Make a call that may be repeated, several times on different members.

        Raises Unavailable; AioRpcError when answered.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + TOTAL_S
        pause_s = RETRY_S
        while True:
            self._check_open()
            try:
                return await self._call(call, request, max(RETRY_S, min(ATTEMPT_S, until - loop.time())))
            except grpc.aio.AioRpcError as error:
                if error.code() in _ANSWERED:
                    raise
                if loop.time() + pause_s >= until or kind_of(error) in LASTING:
                    raise self._failure(kind_of(error), told(error)) from error
            except Indeterminate as error:
                raise Unavailable(str(error)) from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def tell(self, call: Call[R], request: object) -> R:
        """Make a call that must not be repeated once it may have had effect.

        Raises Unavailable (it had none), Indeterminate; AioRpcError when answered (none either).
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + TOTAL_S
        while True:
            await self.ready(max(0.0, until - loop.time()))
            try:
                return await self._call(call, request, max(RETRY_S, min(WRITE_S, until - loop.time())))
            except grpc.aio.AioRpcError as error:
                if error.code() in _ANSWERED or too_large(error):
                    raise
                if not refused(error):
                    raise Indeterminate(told(error)) from error
                if loop.time() + RETRY_S >= until or kind_of(error) in LASTING:
                    raise self._failure(kind_of(error), told(error)) from error
            await asyncio.sleep(RETRY_S)

    def _failure(self, kind: type[Unavailable], say: str) -> Unavailable:
        """Return what to raise; a certificate of ours that has ended explains whatever else is said."""
        pair = self._material().pair
        end = parse_cert(pair.cert_pem).not_valid_after_utc if pair else None
        if end is not None and end < SystemClock().now():
            return Forbidden(f"the controller's certificate for etcd has ended at {end:%Y-%m-%d %H:%M} UTC ({say})")
        return kind(say)

    async def _why(self) -> str:
        """Return why no connection comes about, as gRPC tells whoever calls without waiting for one."""
        try:
            await self.kv.Range(rpc_pb2.RangeRequest(key=b"\0", count_only=True), timeout=WHY_S)
        except grpc.aio.AioRpcError as error:
            return f" ({(error.details() or error.code().name).rpartition('last error: ')[2]})"
        return ""

    def _check_open(self) -> None:
        if self.closed:
            raise Unavailable("this client is closed")

    async def _call(self, call: Call[R], request: object, timeout_s: float) -> R:
        try:
            return await call(request, timeout=timeout_s, metadata=REQUIRE_LEADER)
        except asyncio.CancelledError as error:
            # gRPC says this too when the channel is closed under a call.
            task = asyncio.current_task()
            if self.closed and task is not None and not task.cancelling():
                raise Indeterminate("this client was closed meanwhile") from error
            raise
