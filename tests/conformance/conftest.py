"""What the API's suites share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from cairn.storage.rbd_pool import Place

from tests.conformance.storage_kit import CephPlace
from tests.lab.ceph import Ceph, missing
from tests.lab.etcd import Cluster
from tests.lab.radosgw import RadosGateway
from tests.lab.radosgw import missing as no_radosgw

POOL = "vms"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One etcd member for all suites; each test begins with an empty store (api_stores.made_store)."""
    with Cluster(tmp_path_factory.mktemp("api-etcd"), count=1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """One cluster for all suites, with one pool; each test has a namespace of it."""
    if lacks := missing():
        pytest.skip(f"no Ceph here: {lacks}")
    with Ceph(tmp_path_factory.mktemp("ceph") / "cluster") as cluster:
        cluster.make_pool(POOL)
        yield cluster


@pytest.fixture(scope="session")
def radosgw(ceph: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
    """An S3 server on that cluster; each test has a bucket of its own."""
    if lacks := no_radosgw():
        pytest.skip(f"no S3 server here: {lacks}")
    with RadosGateway(ceph, tmp_path_factory.mktemp("radosgw") / "gateway") as gateway:
        yield gateway


@pytest.fixture
def ceph_place(ceph: Ceph, tmp_path: Path) -> CephPlace:
    """A namespace of one's own, entered by a key that may enter that pool alone; whoever opens it closes it."""
    namespace = f"t{next(_numbers)}"
    ceph.make_namespace(POOL, namespace)
    return CephPlace(Place(str(ceph.enrol("cairn", POOL)), "cairn", POOL, namespace), tmp_path / "ceph", [])
