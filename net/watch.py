"""Notices devices that come and go behind our back: rtnetlink link messages of the node's namespace and of every VPC's.

Triggers carry a key, never data; losing one costs only time, as the agent also looks at everything now and then. In the node's
namespace only a guest's TAP that comes up matters: libvirt makes a TAP of the same name for a moment when a guest ends, but
never sets it up. In a VPC's namespace a vanished TAP or device of ours matters; messages our own actions cause are dropped
while they run.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from cairn.net import namespace, naming, rtnl

_RECEIVE_BYTES = 1 << 16


class Watch:
    """Sockets in namespaces and the keys they triggered, each once until it was taken."""

    def __init__(self, node: int, prefix: str) -> None:
        self._node = node
        self._prefix = prefix
        self._sockets: dict[str, socket.socket] = {}
        self._expecting: dict[str, int] = {}
        self._pending: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def events(self) -> AsyncIterator[str]:
        """Yield keys for ever, until closed."""
        self._loop = asyncio.get_running_loop()
        self._open("", self._node)
        self.follow(name for name in namespace.names(self._prefix))
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                key = next(iter(self._pending))
                del self._pending[key]
                yield key

    def follow(self, names: Iterable[str]) -> None:
        """Listen in exactly these namespaces, and the node's."""
        wanted = set(names)
        for name in set(self._sockets) - wanted - {""}:
            self._drop(name)
        for name in sorted(wanted - set(self._sockets)):
            try:
                with namespace.opened(namespace.FOLDER / name) as handle:
                    self._open(name, handle)
            except OSError as error:
                # Removed or half-made meanwhile: the next observation knows.
                if error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise

    def unfollow(self, name: str) -> None:
        """Stop listening in a namespace: an open socket would keep it alive."""
        self._drop(name)

    @contextmanager
    def expecting(self, name: str) -> Iterator[None]:
        """While we act on a namespace ourselves, changes of its devices are no news."""
        self._expecting[name] = self._expecting.get(name, 0) + 1
        try:
            yield
        finally:
            if name in self._sockets:
                self._read(name)
            self._expecting[name] -= 1
            if not self._expecting[name]:
                del self._expecting[name]

    def close(self) -> None:
        """Close all sockets and end events()."""
        self._closed = True
        for name in list(self._sockets):
            self._drop(name)
        self._wake.set()

    def _open(self, name: str, handle: int) -> None:
        if self._loop is None or self._closed or name in self._sockets:
            return
        with namespace.entered(handle):
            listener = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
        listener.bind((0, rtnl.RTNLGRP_LINK_BIT))
        self._sockets[name] = listener
        self._loop.add_reader(listener.fileno(), self._read, name)

    def _drop(self, name: str) -> None:
        listener = self._sockets.pop(name, None)
        if listener is not None:
            if self._loop is not None:
                self._loop.remove_reader(listener.fileno())
            listener.close()

    def _read(self, name: str) -> None:
        """Take all that is there."""
        while name in self._sockets:
            try:
                data = self._sockets[name].recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: messages were lost; look at everything.
                if error.errno != errno.ENOBUFS:
                    raise
                self._trigger("")
                continue
            for kind, link in _link_messages(data):
                key = self._key(name, kind, link)
                if key is not None:
                    self._trigger(key)

    def _trigger(self, key: str) -> None:
        self._pending[key] = None
        self._wake.set()

    def _key(self, name: str, kind: int, link: rtnl.Link) -> str | None:
        port = naming.port_of_tap(link.name)
        if not name:
            return f"port/{port}" if port and kind == rtnl.RTM_NEWLINK and link.up else None
        if kind == rtnl.RTM_DELLINK and port:
            return f"port/{port}"
        if name in self._expecting or (kind == rtnl.RTM_NEWLINK and link.up):
            return None
        if port:
            return f"port/{port}"
        return f"network/{naming.vpc_of(name, self._prefix)}"


def _link_messages(data: bytes) -> Iterator[tuple[int, rtnl.Link]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        # AF_BRIDGE messages (ports leaving a bridge) repeat what the device's own message says.
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK) and data[offset + 16] == 0:
            yield kind, rtnl.parse_link(data[offset + 16 : offset + length])
        offset += (length + 3) & ~3
