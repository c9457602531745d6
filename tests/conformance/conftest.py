"""What the API's suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.etcd import Cluster


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One etcd member for all suites; each test begins with an empty store (api_stores.made_store)."""
    with Cluster(tmp_path_factory.mktemp("api-etcd"), count=1) as cluster:
        yield cluster
