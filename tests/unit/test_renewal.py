"""Certificates are renewed by whoever signs, and soon again when that failed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from cairn.controller.config import Config
from cairn.controller.renewal import CHECK_S, RETRY_S, Renewal
from cairn.proto import pki
from cairn.proto.pki import Authority, Identity
from cairn.proto.seams import SystemClock, SystemIds

from tests.unit.agent_kit import NoTransport, PlainIds, run


class Later(SystemClock):
    """When a certificate of 90 days is due."""

    def now(self) -> Any:
        return super().now() + timedelta(days=61)


def config_in(folder: Path) -> Config:
    """A controller with a certificate of 90 days, which does not sign."""
    ca = Authority.create("t", SystemClock(), SystemIds())
    cert, key = folder / "c2.crt", folder / "c2.key"
    pki.install_pair(cert, key, ca.issue(Identity("controller", "c2"), lifetime=timedelta(days=90)))
    return Config(
        name="c2", listen=("c2:7443",), enrol_listen="c2:7444", etcd_endpoints=("etcd:2379",), etcd_ca="", etcd_cert="",
        etcd_key="", ca="", cert=str(cert), key=str(key),
    )  # fmt: skip


def test_a_failed_renewal_is_tried_again_soon_and_then_later_and_later(tmp_path: Path) -> None:
    tried_s: list[float] = []
    enough = asyncio.Event()

    def nobody() -> list[str]:
        tried_s.append(asyncio.get_running_loop().time())
        if len(tried_s) == 10:
            enough.set()
        return []

    async def scenario() -> None:
        renewal = Renewal(config_in(tmp_path), NoTransport(), None, Later(), PlainIds(), nobody)
        task = asyncio.create_task(renewal.run())
        await enough.wait()
        task.cancel()

    run(scenario)
    pauses_s = [later - sooner for sooner, later in pairwise(tried_s)]
    assert pauses_s[0] <= RETRY_S
    assert pauses_s == sorted(pauses_s)
    assert RETRY_S < pauses_s[-1] <= CHECK_S
