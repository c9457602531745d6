"""The connection to libvirt when its daemon goes away during a call: on libvirt's own test driver, without a daemon."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
from cairn.agent.hypervisor import connection as connections  # noqa: E402
from cairn.agent.hypervisor.base import HypervisorError  # noqa: E402
from cairn.agent.hypervisor.connection import Connection  # noqa: E402


class TestDriverConnection(Connection):
    """Opens the test driver, which knows no close callbacks."""

    __test__ = False
    opened = 0

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Any:
        connection = libvirt.open(self.uri)
        self._registrations[connection] = []
        self.opened += 1
        return connection


def test_a_call_that_fails_on_a_connection_closed_meanwhile_says_so_and_the_next_connects_again() -> None:
    """The end of the connection is told to another thread, which closes it before the call that failed looks at it."""

    def dies(connection: Any) -> None:
        connection.close()
        connection.getHostname()

    async def scenario() -> None:
        connection = TestDriverConnection("test:///default", lambda _name, _event: None, lambda: None)
        with pytest.raises(HypervisorError, match="undefine i-1: invalid connection pointer") as caught:
            await connection.call("undefine i-1", dies)
        assert caught.value.retryable
        assert await connection.call("list", lambda each: each.listAllDomains()[0].name()) == "test"
        assert connection.opened == 2
        await connection.close()

    asyncio.run(scenario())


def test_calls_that_libvirt_does_not_answer_are_given_up_and_keep_no_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that hangs was asked to shut down; now its power is to be cut."""
    monkeypatch.setattr(connections, "GIVE_UP_S", 0.2)
    answer = threading.Event()

    def hangs(_connection: Any) -> None:
        answer.wait(30)

    async def scenario() -> None:
        connection = TestDriverConnection("test:///default", lambda _name, _event: None, lambda: None)
        try:
            asked = [connection.call(f"stop i-{number}", hangs) for number in range(2 * connections.WORKERS)]
            ended = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
            assert all(isinstance(each, HypervisorError) and each.retryable for each in ended)
            assert "stop i-0: no answer within" in str(ended[0])
            named = connection.call("list", lambda each: each.listAllDomains()[0].name())
            assert await asyncio.wait_for(named, 10) == "test"
        finally:
            answer.set()
            await connection.close()

    asyncio.run(scenario())
