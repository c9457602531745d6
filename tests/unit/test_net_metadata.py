"""net/metadata.py: the tree a guest sees, and the small HTTP server in front of it."""

from __future__ import annotations

import asyncio
import json

import pytest
from cairn.net import metadata
from cairn.proto.v1.agent_pb2 import DesiredPort, DesiredSubnet, DesiredVm

KEY = "ssh-ed25519 AAAA somebody"


def guest(*, user_data: bytes = b"", keys: bool = True) -> metadata.Guest:
    vm = DesiredVm(id="i-00000001", name="web", hostname="web-1", user_data=user_data, ssh_keys=[KEY] if keys else [])
    vm.nics.add(port="nic-00000001", mac="2a:00:00:00:00:01", mtu=1450, subnet="vxnet-00000001", addresses=["10.0.1.11"])
    port = DesiredPort(id="nic-00000001", vpc="rtr-00000001", subnet="vxnet-00000001", addresses=["10.0.1.11"])
    port.mac, port.vm = "2a:00:00:00:00:01", vm.id
    subnet = DesiredSubnet(id="vxnet-00000001", cidr="10.0.1.0/24", gateway="10.0.1.1")
    return metadata.Guest(vm, port, {port.id: port}, {subnet.id: subnet})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/latest", "meta-data/"),
        ("/latest/meta-data/instance-id", "i-00000001"),
        ("/2009-04-04/meta-data/instance-id/", "i-00000001"),
        ("/latest/meta-data/local-hostname", "web-1"),
        ("/latest/meta-data/local-ipv4", "10.0.1.11"),
        ("/latest/meta-data/public-keys/", "0=key-0"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("/latest/meta-data/public-keys/0/openssh-key", KEY),
        ("/latest/meta-data/network/interfaces/macs/", "2a:00:00:00:00:01/"),
        ("/latest/meta-data/network/interfaces/macs/2a:00:00:00:00:01/vpc-id", "rtr-00000001"),
        ("/latest/meta-data/network/interfaces/macs/2a:00:00:00:00:01/subnet-ipv4-cidr-block", "10.0.1.0/24"),
        ("/latest/user-data", None),
        ("/latest/meta-data/instance-id/more", None),
        ("/latest/../etc/passwd", None),
        ("/nocloud/vendor-data", ""),
    ],
)
def test_paths(path: str, expected: str | None) -> None:
    found = metadata.find(metadata.tree(guest()), path)
    assert (found.decode() if found is not None else None) == expected


def test_user_data_is_passed_as_given() -> None:
    tree = metadata.tree(guest(user_data=b"\x00binary\xff"))
    assert metadata.find(tree, "/latest/user-data") == b"\x00binary\xff"
    assert metadata.find(tree, "/nocloud/user-data") == b"\x00binary\xff"


def test_nocloud_without_user_data_carries_name_and_keys() -> None:
    text = metadata.find(metadata.tree(guest()), "/nocloud/user-data")
    assert text is not None
    first, rest = text.split(b"\n", 1)
    assert first == b"#cloud-config"
    assert json.loads(rest) == {"hostname": "web-1", "ssh_authorized_keys": [KEY]}
    assert b"public-keys" not in (metadata.find(metadata.tree(guest(keys=False)), "/latest/meta-data") or b"public-keys")


async def converse(sent: bytes, *, eof: bool = True) -> bytes:
    """What a client at 127.0.0.1 gets back for these bytes."""
    server = metadata.MetadataServer(lambda source: guest() if source == "127.0.0.1" else None)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, limit=8192)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(sent)
        if eof:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n", 200, id="get"),
        pytest.param(b"GET /latest/meta-data/instance-id HTTP/1.0\r\n\r\n", 200, id="http-1.0"),
        pytest.param(b"GET /latest/meta-data/instance-id?x=1 HTTP/1.0\r\n\r\n", 200, id="query"),
        pytest.param(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, id="unknown"),
        pytest.param(b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n\r\n", 405, id="method"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400, id="version"),
        pytest.param(b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="absolute"),
        pytest.param(b"nonsense\r\n\r\n", 400, id="nonsense"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, id="space-before-colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: y\r\n\r\n", 403, id="proxied"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400, id="body"),
        pytest.param("GET /ä HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400, id="not-ascii"),
    ],
)
async def test_statuses(head: bytes, status: int) -> None:
    assert (await converse(head)).split()[1] == str(status).encode()


async def test_a_connection_is_kept_for_the_next_request() -> None:
    one = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"HEAD /latest/meta-data/mac HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await converse(one + one + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b"i-00000001") == 2
    assert answer.endswith(b"Content-Length: 17\r\nConnection: close\r\n\r\n")


async def test_a_head_without_end_is_not_collected_for_ever() -> None:
    assert await converse(b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000) == b""
