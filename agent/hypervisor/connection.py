"""One libvirt connection that comes back: calls in a few threads, events from libvirt's own loop, reconnect.

libvirt-python blocks and calls back in the thread that runs libvirt's event loop. So: calls go to a bounded pool; one daemon
thread per process runs the event loop; whatever it hears is handed to asyncio with call_soon_threadsafe and touched nowhere
else. Keep-alive turns a hung daemon into a closed connection, and a closed one is opened again until `close`.
Rejected: libvirtaio (it puts libvirt's file descriptors into our loop, and every blocking call would still need a thread).
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import libvirt
import structlog
from cairn.agent.hypervisor.base import HypervisorError, NoSuchDomain

WORKERS: Final = 8
# A call that takes longer is given up, though its thread cannot be; so many threads may be stuck besides the workers.
GIVE_UP_S: Final = 120.0
STUCK_MAX: Final = 64
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 3
RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 2.0

# What will not go away by trying again: the request is wrong for this hypervisor.
_PERMANENT: Final = frozenset(
    {
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_INVALID_ARG,
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    }
)

T = TypeVar("T")
log = structlog.get_logger(__name__)


@functools.cache
def run_event_loop() -> threading.Thread:
    """Register libvirt's event loop and run it for the life of the process; libvirt allows one per process."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    thread = threading.Thread(target=run, name="libvirt-events", daemon=True)
    thread.start()
    return thread


def failure(what: str, error: libvirt.libvirtError) -> HypervisorError:
    """Return our error for one of libvirt's: what was attempted, why it failed, whether to try again."""
    code, say = error.get_error_code(), f"{what}: {error.get_error_message() or error}"
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return NoSuchDomain(say)
    return HypervisorError(say, retryable=code not in _PERMANENT)


class Connection:
    """The connection to one libvirtd. Use from one asyncio loop."""

    def __init__(
        self,
        uri: str,
        on_event: Callable[[str, int], None],
        on_connect: Callable[[], None],
        on_reboot: Callable[[str], None] = lambda _name: None,
    ) -> None:
        """on_event(domain name, VIR_DOMAIN_EVENT_*), on_reboot(domain name) and on_connect() are called in the asyncio loop."""
        self.uri = uri
        self._on_event = on_event
        self._on_connect = on_connect
        self._on_reboot = on_reboot
        self._pool = ThreadPoolExecutor(WORKERS + STUCK_MAX, thread_name_prefix="libvirt")
        self._turns = asyncio.Semaphore(WORKERS)
        self._current: Any = None
        self._registrations: dict[Any, list[int]] = {}
        self._opening = asyncio.Lock()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def call(self, what: str, act: Callable[[Any], T]) -> T:
        """Run act(virConnect) in a thread. HypervisorError says `what` was attempted; nothing is repeated by itself.

        libvirt waits for a guest's process without an end, and the guest that hangs is the one whose power is to be cut: who
        waits is told so after GIVE_UP_S, and what it waited for may still happen.
        """
        self.keep()
        connection = await self._get(what)
        try:
            async with self._turns:
                work = asyncio.get_running_loop().run_in_executor(self._pool, act, connection)
                return await _within(work, what)
        except libvirt.libvirtError as error:
            if not _is_alive(connection):
                self._forget(connection)
            raise failure(what, error) from error

    def keep(self) -> None:
        """Stay connected from now on, and so hear events."""
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="libvirt-keeper")

    async def close(self) -> None:
        """Disconnect for good."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        async with self._opening:
            connection, self._current = self._current, None
            if connection is not None:
                await asyncio.get_running_loop().run_in_executor(self._pool, self._disconnect, connection)
        self._pool.shutdown(wait=False)

    async def _get(self, what: str) -> Any:
        if self._closed:
            raise HypervisorError(f"{what}: the connection to {self.uri} was closed", retryable=False)
        async with self._opening:
            if self._current is None:
                loop = asyncio.get_running_loop()
                try:
                    self._current = await loop.run_in_executor(self._pool, self._connect, loop)
                except libvirt.libvirtError as error:
                    raise failure(f"{what}: connect to {self.uri}", error) from error
                self._lost.clear()
                self._on_connect()
            return self._current

    async def _keep(self) -> None:
        delay_s = RETRY_FIRST_S
        while True:
            try:
                await self._get("keep connected")
                delay_s = RETRY_FIRST_S
                await self._lost.wait()
            except HypervisorError as error:
                log.warning("libvirt not reached", uri=self.uri, error=str(error), retry_s=delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_LAST_S)

    def _forget(self, connection: Any) -> None:
        if connection is not self._current:
            return
        self._current = None
        self._lost.set()
        log.warning("libvirt connection lost", uri=self.uri)
        if not self._closed:
            self._pool.submit(self._disconnect, connection)

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Any:
        """In a pool thread: open, ask to be told of its end, ask for domain events."""
        run_event_loop()
        connection = libvirt.open(self.uri)
        tell = functools.partial(_tell, loop)
        try:
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            connection.registerCloseCallback(lambda gone, _reason, _opaque: tell(self._forget, gone), None)
            lifecycle = connection.domainEventRegisterAny(
                None,
                libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                lambda _connection, domain, event, _detail, _opaque: tell(self._on_event, domain.name(), event),
                None,
            )
            reboot = connection.domainEventRegisterAny(
                None,
                libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
                lambda _connection, domain, _opaque: tell(self._on_reboot, domain.name()),
                None,
            )
        except libvirt.libvirtError:
            connection.close()
            raise
        self._registrations[connection] = [lifecycle, reboot]
        return connection

    def _disconnect(self, connection: Any) -> None:
        """In a pool thread: let go of a connection that may be broken. Callbacks first: they would keep it open."""
        heard = self._registrations.pop(connection)
        for act in (
            *(functools.partial(connection.domainEventDeregisterAny, each) for each in heard),
            connection.unregisterCloseCallback,
            connection.close,
        ):
            try:
                act()
            except libvirt.libvirtError as error:
                log.debug("libvirt disconnect", error=str(error))


async def _within(work: asyncio.Future[T], what: str) -> T:
    """Return what a thread's work returns. HypervisorError when it takes longer than GIVE_UP_S: then it goes on, unheard."""
    try:
        done, _ = await asyncio.wait({work}, timeout=GIVE_UP_S)
    finally:
        if not work.done():
            work.add_done_callback(_ended_late)
    if not done:
        raise HypervisorError(f"{what}: no answer within {GIVE_UP_S:.0f} s; does its guest's process hang?")
    return work.result()


def _ended_late(work: asyncio.Future[Any]) -> None:
    error = None if work.cancelled() else work.exception()
    log.info("libvirt answered late", error=str(error or ""))


def _is_alive(connection: Any) -> bool:
    """Whether calls can still be made. One whose end was noticed while a call was under way is closed already."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _tell(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *arguments: Any) -> None:
    """In libvirt's thread: hand over to asyncio, unless its loop has ended."""
    try:
        loop.call_soon_threadsafe(act, *arguments)
    except RuntimeError as error:
        log.debug("libvirt event after the end", error=str(error))
