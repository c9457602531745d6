"""A controller's own certificate is replaced when less than a third of its life is left.

It is signed here when this controller holds the CA's key, else by a peer that does: each is asked in turn, as not every one
holds it. What failed is tried again soon, then later and later. The transport notices new files by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc.aio
from cairn.controller.config import Config
from cairn.proto import log, pki
from cairn.proto.pki import Authority, Identity, Pair, PkiError
from cairn.proto.rpc import ask_in_turn, split_endpoint
from cairn.proto.seams import Clock, Ids, Transport
from cairn.proto.v1.cluster_pb2 import RenewCertificateRequest
from cairn.proto.v1.cluster_pb2_grpc import IdentityServiceStub

_log = log.logger("renewal")
CHECK_S: Final = 3600.0
# After a failure; doubled with each one that follows, up to CHECK_S.
RETRY_S: Final = 60.0
CALL_S: Final = 20.0


class Renewal:
    """Looks at the certificate now and then. peers: mTLS endpoints of the other controllers; on_renewed: told of a new one."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        authority: Authority | None,
        clock: Clock,
        ids: Ids,
        peers: Callable[[], list[str]],
        on_renewed: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._transport, self._authority = config, transport, authority
        self._clock, self._ids, self._peers, self._on_renewed = clock, ids, peers, on_renewed

    async def run(self) -> None:
        """Renew when it is time, until cancelled."""
        failures = 0
        while True:
            try:
                await self.renew_if_due()
                failures = 0
            except (OSError, PkiError, grpc.aio.AioRpcError) as error:
                _log.warning("renewal_failed", certificate=self._config.cert, error=str(error), retryable=True)
                failures += 1
            pause_s = min(RETRY_S * 2.0 ** min(failures - 1, 10), CHECK_S) if failures else CHECK_S
            await asyncio.sleep(pause_s * (0.5 + self._ids.jitter() / 2))

    async def renew_if_due(self) -> bool:
        """Renew when it is time; tell whether it was. Raises OSError, PkiError, AioRpcError."""
        if not self._due():
            return False
        pki.install_pair(Path(self._config.cert), Path(self._config.key), await self._renewed())
        _log.info("certificate_renewed", certificate=self._config.cert)
        self._on_renewed()
        return True

    def _known_hosts(self) -> list[str]:
        """Return the names it was made for: clients reach it by them, too."""
        return pki.hosts_of(Path(self._config.cert).read_bytes(), Identity("controller", self._config.name))

    def _due(self) -> bool:
        return pki.needs_renewal(Path(self._config.cert).read_bytes(), self._clock.now())

    async def _renewed(self) -> Pair:
        if self._authority is not None:
            addresses = [each for each in (self._config.advertised, *self._config.listen) if not each.startswith("unix:")]
            hosts = sorted({*self._known_hosts(), *(split_endpoint(address)[0] for address in addresses)})
            return self._authority.issue(Identity("controller", self._config.name), hosts=hosts)
        peers = self._peers()
        if not peers:
            raise PkiError("this controller does not sign, and no other one is known")
        asked = pki.make_csr(self._config.name)
        request = RenewCertificateRequest(csr_pem=asked.cert_pem)
        answer = await ask_in_turn(
            self._transport, peers, lambda channel: IdentityServiceStub(channel).RenewCertificate(request, timeout=CALL_S)
        )
        return Pair(answer.certificate_pem, asked.key_pem)
