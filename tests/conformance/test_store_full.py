"""A store that refuses, by name: full (a real etcd with a tiny quota, freed by the manual's own commands), not accepting us."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cairn.controller.store import etcd_connection
from cairn.controller.store.base import Corrupt, Forbidden, Full, Overloaded, TooBig, Unavailable
from cairn.controller.store.etcd import EtcdStore
from cairn.controller.store.etcd_refusals import alarms_of, kind_of, refused, too_large
from cairn.proto import pki
from cairn.proto.rpc import StaticCredentials
from cairn.proto.seams import SystemClock, SystemIds

from tests.conformance.store_kit import needs_etcd, raw
from tests.lab.etcd import Cluster

pytestmark = [needs_etcd, pytest.mark.etcd]
QUOTA_BYTES = 4 << 20
VALUE = b"\x01" * 100_000
MANUAL = Path(__file__).parents[2] / "docs" / "operations" / "troubleshooting.md"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("etcd"), quota_bytes=QUOTA_BYTES) as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(cluster.endpoints, cluster.credentials())
    yield store
    await store.close()


def the_manuals_way_out(cluster: Cluster) -> str:
    """Run the commands of the section, as they stand there."""
    section = MANUAL.read_text().partition("## The store is full")[2].partition("\n## ")[0]
    commands = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert commands is not None
    client = cluster.folder / "client"
    environment = {
        **os.environ,
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": ",".join(cluster.endpoints),
        "ETCDCTL_CACERT": str(client / "etcd-ca.crt"),
        "ETCDCTL_CERT": str(client / "client.crt"),
        "ETCDCTL_KEY": str(client / "client.key"),
    }
    script = "set -e\n" + commands[1]
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def filled(store: EtcdStore) -> Full:
    """Write until it is refused."""
    for _ in range(200):
        try:
            await store.commit(raw({"/fill": VALUE}))
        except Full as error:
            return error
    raise AssertionError("the quota was not reached")


async def test_a_full_store_is_told_by_name_at_once_and_the_manual_helps(cluster: Cluster, store: EtcdStore) -> None:
    """Writes and leases are refused within the time of a call, reads go on; the manual's commands make it writable again."""
    lease = await store.lease(60)
    kept = await store.commit(raw({"/kept": b"1"}, lease=lease.id))
    why = str(await filled(store))
    assert re.search(r"the store is full: NOSPACE on member 127\.0\.0\.1\d:\d+, [\d.]+ MiB", why)
    assert "`etcdctl alarm disarm`" in why
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for write in (store.commit(raw({"/x": b"1"})), store.lease(6)):
        with pytest.raises(Full):
            await write
    assert loop.time() - began_s < etcd_connection.TOTAL_S / 2
    assert (await store.read("/kept"))[0][0].mod_revision == kept
    assert await store.revision() > kept
    members = await store.members()
    full = [member for member in members if member.alarms]
    assert full
    assert all(member.alarms == ("NOSPACE",) and not member.healthy and member.say == "NOSPACE" for member in full)
    assert sum(member.leader for member in members) == 1
    assert all(0 < member.used_bytes <= member.size_bytes for member in members)
    assert not lease.lost

    await asyncio.to_thread(the_manuals_way_out, cluster)
    assert await store.commit(raw({"/after": b"1"})) > kept
    assert all(member.healthy for member in await store.members())


async def test_a_certificate_that_has_ended_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_connection, "TOTAL_S", 1.0)

    class LongAgo(SystemClock):
        def now(self) -> datetime:
            return super().now() - timedelta(days=300)

    once = pki.Authority(cluster.authority.cert, cluster.authority.key, LongAgo(), SystemIds())
    pair = once.issue(pki.Identity("controller", "test"))
    store = EtcdStore(cluster.endpoints, StaticCredentials(cluster.authority.cert_pem, pair))
    for call in (store.revision(), store.commit(raw({"/x": b"1"}))):
        with pytest.raises(Forbidden, match="certificate for etcd has ended at"):
            await call
    await store.close()


async def test_a_member_nobody_trusts_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's own reason is told, not only that nothing answers."""
    monkeypatch.setattr(etcd_connection, "TOTAL_S", 1.0)
    strangers = pki.Authority.create("strangers", SystemClock(), SystemIds())
    pair = cluster.authority.issue(pki.Identity("controller", "test"))
    store = EtcdStore(cluster.endpoints, StaticCredentials(strangers.cert_pem, pair))
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await store.commit(raw({"/x": b"1"}))
    await store.close()


async def test_what_etcd_calls_too_large_is_that(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should our own bounds ever be wider than etcd's."""
    monkeypatch.setattr("cairn.controller.store.base.TXN_BYTES_MAX", 1 << 30)
    monkeypatch.setattr("cairn.controller.store.base.STORE_OPERATIONS_MAX", 1 << 30)
    for size in (1_700_000, 3_000_000):
        with pytest.raises(TooBig, match="etcd refuses"):
            await store.commit(raw({"/large": bytes(size)}))


@pytest.mark.parametrize(
    ("code", "text", "kind", "nothing_happened"),
    [
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Full, True),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Overloaded, True),
        ("DATA_LOSS", "etcdserver: corrupt cluster", Corrupt, True),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Forbidden, True),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Forbidden, True),
        ("UNAVAILABLE", "etcdserver: rpc not supported for learner", Unavailable, True),
        ("UNAVAILABLE", "etcdserver: no leader", Unavailable, True),
        ("UNAVAILABLE", "etcdserver: request timed out", Unavailable, False),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Unavailable, False),
    ],
)
def test_each_refusal_has_its_name(code: str, text: str, kind: Any, nothing_happened: bool) -> None:
    empty = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], empty, empty, details=text)
    assert kind_of(error) is kind
    assert refused(error) is nothing_happened
    assert not too_large(error)


def test_alarms_are_told_of_the_member_that_raised_them() -> None:
    told = ["memberID:17 alarm:NOSPACE ", "memberID:18 alarm:CORRUPT ", "etcdserver: no leader"]
    assert alarms_of(17, told) == ("NOSPACE",)
    assert alarms_of(18, told) == ("CORRUPT",)
    assert alarms_of(19, told) == ()
