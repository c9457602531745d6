"""Certificates that end: every process has real files, renews them with the product's own code, and connects with them.

    certificates = Certificates(world)
    certificates.issue(life_s=6 * 3600, left_s=2 * 3600)       # to every process: of this life, with so much of it left

A connection is made only while the certificates of both its ends are valid, by the true time; one that stands goes on,
as over TLS. Keys come from the operating system, so nothing that is drawn or told depends on them.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from cairn.agent import identity
from cairn.agent.identity import Files
from cairn.controller.app import Controller, others
from cairn.controller.renewal import Renewal
from cairn.proto import pki
from cairn.proto.pki import Authority, Identity
from cairn.proto.seams import Clock

from tests.sim.checkers.base import Violation
from tests.sim.transport import SimTransport
from tests.sim.world import Process, SimIds, World


class _Earlier(Clock):
    """The time when something was signed."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now


class Certificates:
    """See the module. Of a world whose processes have none otherwise."""

    def __init__(self, world: World) -> None:
        self._world = world
        folder = tempfile.TemporaryDirectory(prefix="cairn-sim-")
        world.closing.append(folder.cleanup)
        self._folder = Path(folder.name)
        world.folders.append(folder.name)
        # One controller keeps the key that signs; the others ask it.
        self._signer = world.controllers[0]
        self._life_s = 0.0

    def issue(self, life_s: float, left_s: float) -> None:
        """Give every process a certificate of that life, with so much of it left; from now on only valid ones connect."""
        world = self._world
        signed = _Earlier(world.now() - timedelta(seconds=life_s - left_s))
        old = Authority(world.authority.cert, world.authority.key, signed, SimIds(f"{world.seed}/certificates"))
        for name in (*world.controllers, *world.machines):
            pki.install_pair(*self._files(name), old.issue(self._whose(name), lifetime=timedelta(seconds=life_s)))
            pki.write_public(self._folder / name / "ca.crt", world.authority.cert_pem)
        world.network.refuses, world.certify = self._refuses, self._certify
        self._life_s = life_s
        world.beside.append(self._renewing)
        for process in world.processes.values():
            world.start_beside(process, self._renewing)

    def _certify(self, name: str) -> None:
        """As `cairn cluster certify --node` makes one."""
        certificate, key = self._files(name)
        if certificate.exists() and pki.parse_cert(certificate.read_bytes()).not_valid_after_utc <= self._world.now():
            life = timedelta(seconds=self._life_s)
            pki.install_pair(certificate, key, self._world.authority.issue(self._whose(name), lifetime=life))

    def _whose(self, name: str) -> Identity:
        world = self._world
        return Identity("controller", name) if name in world.controllers else Identity("node", world.machines[name].id)

    def _files(self, name: str) -> tuple[Path, Path]:
        return self._folder / name / "node.crt", self._folder / name / "node.key"

    def _refuses(self, host: str) -> str:
        """Return why nobody talks to a host; empty: they do. There was time enough to renew it: the story has failed then."""
        certificate, _ = self._files(host)
        if not certificate.exists():
            return ""
        ends = pki.parse_cert(certificate.read_bytes()).not_valid_after_utc
        if ends > self._world.now():
            return ""
        why = f"the certificate of {host} has expired at {ends}"
        self._world.loop.fail(Violation("certificates", why))
        return why

    async def _renewing(self, process: Process) -> None:
        certificate, key = self._files(process.name)
        if not certificate.exists():
            return
        world, what = self._world, process.what
        ids = SimIds(f"{world.seed}/{process.label}/renewal")
        transport = SimTransport(world.network, process.name, self._whose(process.name), ids)
        if isinstance(what, Controller):
            config = replace(what.config, cert=str(certificate), key=str(key))
            authority = world.authority if process.name == self._signer else None
            await Renewal(config, transport, authority, process.clock, ids, lambda: others(what)).run()
        else:
            await identity.Renewal(Files(self._folder / process.name), transport, process.clock, world.endpoints).run()
