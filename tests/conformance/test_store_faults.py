"""What only a real etcd can show: members killed and frozen, unknown outcomes, certificates."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.store import etcd_connection, etcd_watch
from cairn.controller.store.base import Indeterminate, Store, Unavailable
from cairn.controller.store.etcd import EtcdStore
from cairn.proto import pki
from cairn.proto.rpc import FileCredentials, StaticCredentials
from cairn.proto.seams import SystemClock, SystemIds

from tests.conformance.store_kit import Bench, etcd_bench, eventually, make_cluster, needs_etcd, raw, watching
from tests.lab.etcd import Cluster, Member

pytestmark = [needs_etcd, pytest.mark.etcd]

WRITERS = 8
WRITES = 150


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from make_cluster(tmp_path_factory)


@pytest.fixture
async def bench(cluster: Cluster) -> AsyncIterator[Bench]:
    bench = etcd_bench(cluster)
    yield bench
    for member in cluster.members:
        member.kill(signal.SIGCONT)
        if not member.pid:
            member.start()
    store = bench.client()
    await eventually("the cluster to be whole", lambda: _whole(store))
    await bench.close()


async def _whole(store: Any) -> bool:
    return all(member.healthy for member in await store.members())


async def leader(cluster: Cluster, store: Any) -> Member:
    """The member that leads, once one does."""

    async def probe() -> list[str]:
        return [member.endpoint for member in await store.members() if member.leader]

    (endpoint, *_) = await eventually("a leader", probe)
    return next(member for member in cluster.members if member.endpoint == endpoint)


@dataclass
class Ledger:
    """What the writers were told: key -> revision; how often nothing was certain."""

    written: dict[str, int] = field(default_factory=dict)
    doubts: int = 0
    happened: int = 0
    refusals: int = 0


async def write(store: Store, prefix: str, writer: int, ledger: Ledger) -> None:
    """Create keys one after the other, each exactly once, whatever happens to the members."""
    for number in range(WRITES):
        key, value = f"{prefix}{writer}/{number:04}", b"%d/%d" % (writer, number)
        while key not in ledger.written:
            try:
                ledger.written[key] = await store.commit(raw({key: value}, checks={key: 0}))
            except Unavailable:
                ledger.refusals += 1
            except Indeterminate:
                ledger.doubts += 1
                found, _ = await eventually("a read to succeed", lambda: _read(store, key))  # noqa: B023
                if found:
                    assert found[0].value == value
                    ledger.happened += 1
                    ledger.written[key] = found[0].mod_revision


async def _read(store: Store, key: str) -> Any:
    try:
        return await store.read(key)
    except Unavailable:
        return None


async def test_leader_killed_and_restarted_under_load(cluster: Cluster, bench: Bench) -> None:
    """Every acknowledged commit is seen once and in order, every doubt is settled by reading, leases are kept."""
    store, prefix = bench.client(), bench.prefix
    leases = [await store.lease(6) for _ in range(6)]
    held = 0
    for number, lease in enumerate(leases):
        held = await store.commit(raw({f"/held{prefix}{number}": b"1"}, lease=lease.id))
    ledger = Ledger()
    async with watching(bench.client(), prefix, held) as watcher:
        clients = [bench.client() for _ in range(WRITERS)]
        writers = [asyncio.create_task(write(client, prefix, n, ledger)) for n, client in enumerate(clients)]
        total = WRITERS * WRITES

        async def reached(share: float) -> bool:
            return len(ledger.written) >= share * total

        await eventually("a quarter of the writes", lambda: reached(0.25))
        killed = await leader(cluster, store)
        killed.kill()
        await eventually("half of the writes", lambda: reached(0.5))
        killed.start()
        await asyncio.gather(*writers)
        batches = await watcher.until(max(ledger.written.values()))
    seen = [(batch.revision, change.key) for batch in batches for change in batch.changes]
    assert len(ledger.written) == total
    assert sorted(seen) == seen
    assert {key: revision for revision, key in seen} == ledger.written
    assert len(seen) == total
    assert {item.key: item.mod_revision for item in (await store.read(prefix))[0]} == ledger.written
    assert not any(lease.lost for lease in leases)
    assert [item.lease for item in (await store.read("/held" + prefix))[0]] == [lease.id for lease in leases]
    print(f"doubts {ledger.doubts}, of which happened {ledger.happened}; refusals {ledger.refusals}")


async def test_a_watch_leaves_a_member_that_went_silent(
    cluster: Cluster, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process keeps its connections: only its silence tells. Each member is frozen once, so the watch's is too."""
    monkeypatch.setattr(etcd_watch, "SILENCE_S", 0.3)
    monkeypatch.setattr(etcd_watch, "ANSWER_S", 0.3)
    revision = await bench.client().revision()
    revisions = []
    async with watching(bench.client(), bench.prefix, revision) as watcher:
        for frozen in cluster.members:
            frozen.kill(signal.SIGSTOP)
            others = [member.endpoint for member in cluster.members if member is not frozen]
            writer = EtcdStore(others, cluster.credentials())
            key = bench.prefix + frozen.name
            await eventually("the others to agree on a write", lambda: _put(writer, key))  # noqa: B023
            (item,) = (await writer.read(key))[0]
            revisions.append(item.mod_revision)
            await watcher.until(item.mod_revision)
            frozen.kill(signal.SIGCONT)
            await writer.close()
        batches = watcher.batches
    assert [batch.revision for batch in batches] == revisions


async def _put(store: Store, key: str) -> bool:
    if (await store.read(key))[0]:
        return True
    try:
        await store.commit(raw({key: b"1"}, checks={key: 0}))
    except (Unavailable, Indeterminate):
        return False
    return True


async def test_what_is_known_of_a_failed_commit(cluster: Cluster, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection: nothing was written. Sent, and no answer: in doubt, and it may happen yet."""
    monkeypatch.setattr(etcd_connection, "TOTAL_S", 1.0)
    store, key = bench.client(), bench.prefix + "a"
    revision = await store.commit(raw({key: b"1"}))
    for member in cluster.members:
        member.kill(signal.SIGSTOP)
    with pytest.raises(Indeterminate):
        await store.commit(raw({key: b"2"}, checks={key: revision}))
    with pytest.raises(Unavailable):
        await store.revision()
    for member in cluster.members:
        member.kill()
    await eventually("the connections to be gone", lambda: _refused(store, raw({bench.prefix + "never": b"1"})))
    for member in cluster.members:
        member.start()
    await eventually("the store to be back", lambda: _read(store, bench.prefix))
    assert [item.key for item in (await store.read(bench.prefix))[0]] == [key]


async def _refused(store: Store, txn: Any) -> bool:
    """Whether a commit is known to have written nothing, because nobody can be connected to."""
    try:
        await store.commit(txn)
    except Unavailable:
        return True
    except Indeterminate:
        return False
    raise AssertionError("committed without a member")


async def test_a_majority_lost_is_said_so_and_the_lease_counts_on(
    cluster: Cluster, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_connection, "TOTAL_S", 1.0)
    store = bench.client()
    lease = await store.lease(2)
    await store.commit(raw({bench.prefix + "a": b"1"}, lease=lease.id))
    for member in cluster.members[:2]:
        member.kill()
    with pytest.raises(Unavailable):
        await store.revision()
    async with asyncio.timeout(20):
        await lease.wait_lost()
    healthy = [member.healthy for member in await store.members()]
    assert healthy[:2] == [False, False]
    await lease.close(revoke=False)


# --- certificates --------------------------------------------------------------------------------------------------------


@pytest.fixture
def strangers(tmp_path: Path) -> pki.Authority:
    return pki.Authority.create("strangers", SystemClock(), SystemIds())


async def refused(cluster: Cluster, credentials: Any, **keywords: Any) -> bool:
    store = EtcdStore(cluster.endpoints, credentials, **keywords)
    try:
        with pytest.raises(Unavailable):
            await store.revision()
        with pytest.raises(Unavailable):
            await store.commit(raw({"/stranger": b"1"}))
    finally:
        await store.close()
    return True


async def test_strangers_are_refused(
    cluster: Cluster, bench: Bench, strangers: pki.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_connection, "TOTAL_S", 0.7)
    ours = cluster.authority.cert_pem
    me = pki.Identity("controller", "test")
    assert await refused(cluster, StaticCredentials(ours))
    assert await refused(cluster, StaticCredentials(ours, strangers.issue(me)))
    assert await refused(cluster, StaticCredentials(strangers.cert_pem, cluster.authority.issue(me)))
    assert await refused(cluster, cluster.credentials(), server_name="elsewhere.cairn")
    assert (await bench.client().read("/stranger"))[0] == []


async def test_changed_certificates_are_taken_up(
    cluster: Cluster, bench: Bench, strangers: pki.Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose certificate is no good recovers when its files are replaced; one that works goes on over a renewal."""
    monkeypatch.setattr(etcd_connection, "TOTAL_S", 1.0)
    ca, cert, key = (tmp_path / name for name in ("ca.crt", "me.crt", "me.key"))
    shutil.copy(cluster.folder / "client" / "etcd-ca.crt", ca)
    me = pki.Identity("controller", "test")
    pki.install_pair(cert, key, strangers.issue(me))
    store = EtcdStore(cluster.endpoints, FileCredentials(ca, cert, key))
    with pytest.raises(Unavailable):
        await store.commit(raw({bench.prefix + "a": b"1"}))
    pki.install_pair(cert, key, cluster.authority.issue(me))
    start = await store.commit(raw({bench.prefix + "a": b"1"}))
    async with watching(store, bench.prefix, start) as watcher:
        for number in range(3):
            pki.install_pair(cert, key, cluster.authority.issue(me))
            store.reload()
            await watcher.until(await store.commit(raw({bench.prefix + "a": b"%d" % number})))
        assert [batch.revision for batch in watcher.batches] == [start + 1, start + 2, start + 3]
    await store.close()
