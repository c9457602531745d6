"""A controller whose store is its own memory: a cloud for trying things out. All is gone when it ends.

    python -m cairn.controller.standalone --pki FOLDER --listen 127.0.0.1:7443 --enrol-listen 127.0.0.1:7444

It is the controller of app.py on the store its tests and the simulation use, and ends with the process that started it
(proto/lifeline.py). FOLDER is what `cairn cluster init --controller NAME=HOST` makes. Rejected: a `store = "memory"` in the
controller's configuration, one misread line away from a real cloud that forgets.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import click
from cairn.controller.app import serve
from cairn.controller.config import Config
from cairn.controller.store.memory import MemoryStore
from cairn.proto import lifeline, log
from cairn.proto.pki import Authority, PkiError
from cairn.proto.seams import SystemClock, SystemIds

# etcd forgets by itself; here the same is done every so often. A watch that lags by more reads everything again.
KEEP_REVISIONS: Final = 20_000
COMPACT_EVERY_S: Final = 60.0


async def forget(store: MemoryStore) -> None:
    """Keep the history short, for ever."""
    while True:
        await asyncio.sleep(COMPACT_EVERY_S)
        await store.compact(max(0, store.backend.revision - KEEP_REVISIONS))


async def run(config: Config, authority: Authority) -> None:
    """Serve until told to end. Raises OSError, PkiError."""
    store = MemoryStore()
    forgetting = asyncio.create_task(forget(store))
    try:
        await serve(
            config,
            authority,
            authority.cert_pem,
            authority.clock,
            authority.ids,
            open_store=lambda _config: store,
            told_to_stop=lambda: lifeline.follow(lambda _line: None),
        )
    finally:
        forgetting.cancel()
        await asyncio.wait([forgetting])


@click.command()
@click.option(
    "--pki", required=True, type=click.Path(path_type=Path, file_okay=False, exists=True), help="Certificates and keys."
)
@click.option("--name", default="c1", help="Name in its certificate.")
@click.option("--cluster", default="simulated", help="Name of the cluster.")
@click.option("--listen", required=True, metavar="HOST:PORT", help="For clients and agents.")
@click.option("--enrol-listen", required=True, metavar="HOST:PORT", help="For new nodes.")
def main(pki: Path, name: str, cluster: str, listen: str, enrol_listen: str) -> None:
    """Run a controller that keeps everything in memory."""
    os.umask(0o077)
    log.configure("warning")
    config = Config(
        name=name, cluster=cluster, listen=(listen,), enrol_listen=enrol_listen,
        etcd_endpoints=(), etcd_ca="", etcd_cert="", etcd_key="",
        ca=str(pki / "ca.crt"),
        cert=str(pki / f"controller-{name}.crt"), key=str(pki / f"controller-{name}.key"),
    )  # fmt: skip
    try:
        authority = Authority.load(pki / "ca.crt", pki / "ca.key", SystemClock(), SystemIds())
        asyncio.run(run(config, authority))
    except (PkiError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
