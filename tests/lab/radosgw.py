"""An S3 server for tests: Ceph's own, radosgw, on a cluster of theirs, over TLS by a CA that no system trusts.

with RadosGateway(ceph, folder) as gateway:
    bucket = gateway.make_bucket("backups")                 # a bucket, and whoever may use it
    S3Store(bucket, gateway.credentials)
    gateway.daemon.kill(); gateway.daemon.start()
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiobotocore.session import AioSession
from cairn.proto import pki
from cairn.proto.seams import SystemClock, SystemIds
from cairn.storage.backups.s3 import Bucket, Credentials

from tests.lab.ceph import Ceph
from tests.lab.ceph import missing as missing_ceph
from tests.lab.etcd import free_ports
from tests.lab.hosts import Child, Running, wait_until

_NEEDED = ("radosgw", "radosgw-admin")
ADDRESS = "127.0.0.22"
POOLS = ("buckets.index", "buckets.data", "buckets.non-ec", "meta", "log", "control")


def missing() -> str:
    """Say what this machine lacks; empty: nothing."""
    lacks = [name for name in _NEEDED if not shutil.which(name)]
    return missing_ceph() or (f"no {', '.join(lacks)}" if lacks else "")


class RadosGateway(Running):
    """See the module."""

    def __init__(self, ceph: Ceph, folder: Path) -> None:
        self.ceph, self.folder = ceph, folder
        self.port = free_ports([ADDRESS])[0]
        self.endpoint, self.ca = f"https://{ADDRESS}:{self.port}", folder / "ca.crt"
        self.credentials = Credentials("", "")
        frontend = f"beast ssl_endpoint={ADDRESS}:{self.port} ssl_certificate={folder}/s3.crt ssl_private_key={folder}/s3.key"
        options = [
            "--conf",
            str(ceph.conf),
            "-f",
            "-n",
            "client.rgw",
            "--keyring",
            f"{folder}/keyring",
            "--rgw_frontends",
            frontend,
        ]
        self.daemon = Child(["/usr/bin/radosgw", *options, f"--log_file={folder}/radosgw.log"], folder / "radosgw.out")

    def begin(self) -> None:
        """Start it, and make the user whose credentials it has."""
        self.folder.mkdir()
        authority = pki.Authority.create("s3", SystemClock(), SystemIds())
        pair = authority.issue(pki.Identity("etcd", "s3"), hosts=[ADDRESS])
        pki.write_public(self.ca, authority.cert_pem)
        pki.install_pair(self.folder / "s3.crt", self.folder / "s3.key", pair)
        said = self.ceph.ask("auth", "get-or-create", "client.rgw", "mon", "allow rw", "osd", "allow rwx")
        (self.folder / "keyring").write_text(f"[client.rgw]\nkey = {said[0]['key']}\n")
        # It would make them itself, of more copies than there are OSDs.
        for name in (".rgw.root", *(f"default.rgw.{each}" for each in POOLS)):
            self.ceph.make_pool(name)
        self.daemon.start()
        user = json.loads(self.ceph.run("radosgw-admin", "user", "create", "--uid=cairn", "--display-name=cairn"))
        keys = user["keys"][0]
        self.credentials = Credentials(keys["access_key"], keys["secret_key"])
        self.wait()

    def wait(self) -> None:
        """Return when it takes connections."""

        def answers() -> bool:
            with suppress(OSError), socket.create_connection((ADDRESS, self.port), timeout=1):
                return True
            return False

        wait_until("radosgw to answer", answers, 60)

    def stop(self) -> None:
        """End it."""
        self.daemon.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_bucket(self, name: str, prefix: str = "") -> Bucket:
        """Make a bucket, as its owner would before Cairn is told of it."""
        asyncio.run(self._make(name))
        return Bucket(self.endpoint, name, prefix, ca=self.ca)

    def limit(self, bucket: str, objects: int) -> None:
        """Let a bucket have no more than so many objects; -1: as many as there is room for."""
        options = ("--quota-scope=bucket", f"--bucket={bucket}")
        self.ceph.run("radosgw-admin", "quota", "set", *options, f"--max-objects={objects}")
        self.ceph.run("radosgw-admin", "quota", "enable" if objects >= 0 else "disable", *options)

    async def _make(self, name: str) -> None:
        known: dict[str, Any] = {
            "endpoint_url": self.endpoint,
            "region_name": "us-east-1",
            "aws_access_key_id": self.credentials.access_key,
            "aws_secret_access_key": self.credentials.secret_key,
            "verify": str(self.ca),
        }
        async with AioSession().create_client("s3", **known) as client:
            await client.create_bucket(Bucket=name)
