"""Blobs under attack: nonsense is refused as such, one caller cannot hold all files of a node open, nor an upload for ever."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cairn.agent import server as host_server
from cairn.agent.server import READERS_MAX, HostServer
from cairn.proto.errors import Denied, Invalid, NotFound, Refused, TryAgain
from cairn.proto.pki import Identity
from cairn.proto.v1.agent_pb2 import GetBlobRequest, PutBlobRequest
from cairn.storage.base import StorageError
from cairn.storage.local import LocalImages

CONTENT = bytes(range(256)) * 4096
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
NODE, OTHER = Identity("node", "node-00000001"), Identity("node", "node-00000002")


@pytest.fixture
def server(tmp_path: Path) -> HostServer:
    store = LocalImages(tmp_path)
    (tmp_path / "images" / DIGEST.removeprefix("sha256:")).write_bytes(CONTENT)
    nobody: Any = None
    return HostServer(lambda context: context, store, nobody, nobody, nobody)


async def begun(server: HostServer, identity: Identity = NODE, digest: str = DIGEST, offset: int = 0) -> AsyncIterator[Any]:
    call = server.GetBlob(GetBlobRequest(digest=digest, offset=offset), identity)
    assert (await anext(call)).chunk
    return call


async def test_two_thousand_requests_of_nonsense_are_refused_as_such(server: HostServer) -> None:
    rng = random.Random(5)
    digests = [
        DIGEST,
        DIGEST.upper(),
        "",
        "sha256:",
        "../../etc/shadow",
        "sha256:" + "0" * 64,
        "sha256:" + "g" * 64,
        "\0",
        DIGEST + "\n",
    ]
    refused = set()
    for _ in range(2000):
        digest, offset = rng.choice(digests), rng.choice((0, 1, len(CONTENT), 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1))
        try:
            async for _ in server.GetBlob(GetBlobRequest(digest=digest, offset=offset), NODE):
                assert digest == DIGEST
        except Refused as error:
            refused.add(type(error))
    assert refused == {Invalid, NotFound}, "never tried again by anybody"
    assert not server._readers


async def test_one_caller_holds_so_many_files_open_and_others_read_on(server: HostServer) -> None:
    held = [await begun(server) for _ in range(READERS_MAX)]
    with pytest.raises(TryAgain, match="reads 16 images here already"):
        await begun(server)
    assert await begun(server, OTHER)
    await held.pop().aclose()  # type: ignore[attr-defined]
    assert await begun(server)


async def test_whoever_is_no_node_gets_nothing(server: HostServer) -> None:
    with pytest.raises(Denied):
        await begun(server, Identity("user", "alice"))


async def test_an_upload_that_says_nothing_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lock of its bytes, which others may have to send, too."""
    monkeypatch.setattr(host_server, "SILENCE_S", 0.05)

    async def stalled() -> AsyncIterator[PutBlobRequest]:
        yield PutBlobRequest(chunk=b"first")
        await asyncio.Event().wait()

    taken: list[bytes] = []

    async def take() -> None:
        async for chunk in host_server._bytes(stalled()):
            taken.append(chunk)

    with pytest.raises(StorageError, match="nothing came for") as error:
        await asyncio.wait_for(take(), 10)
    assert error.value.retryable
    assert taken == [b"first"]
