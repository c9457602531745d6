"""Joining and renewing certificates over real TLS, against controllers played by the test."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cairn.agent.identity import Files, JoinError, Membership, Renewal, join, load
from cairn.proto import pki
from cairn.proto.errors import TryAgain, Unauthenticated
from cairn.proto.pki import Authority, Identity, PkiError, TokenContent
from cairn.proto.rpc import FileCredentials, GrpcTransport, StaticCredentials, peer_identity
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.cluster_pb2 import JoinNodeResponse, RenewCertificateResponse
from cairn.proto.v1.cluster_pb2_grpc import (
    EnrolmentServiceServicer,
    IdentityServiceServicer,
    add_EnrolmentServiceServicer_to_server,
    add_IdentityServiceServicer_to_server,
)

from tests.unit.test_agent_sync import serving


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority.create("cairn test", SystemClock(), SystemIds())


@dataclass
class Enrolment(EnrolmentServiceServicer, IdentityServiceServicer):
    ca: Authority
    lifetime: timedelta = timedelta(days=90)
    used: dict[str, bytes] = field(default_factory=dict)
    lose_answers: int = 0
    renewals: int = 0

    async def JoinNode(self, request: Any, context: Any) -> JoinNodeResponse:
        key = pki.csr_key_sha256(request.csr_pem)
        if self.used.setdefault(request.token, key) != key:
            raise Unauthenticated("the token was used")
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionError("the answer is lost")
        cert = self.ca.sign(request.csr_pem, Identity("node", "node-00000007"), lifetime=self.lifetime)
        return JoinNodeResponse(
            node="node-00000007", certificate_pem=cert, ca_pem=self.ca.cert_pem, controllers=["127.0.0.1:7443"]
        )

    async def RenewCertificate(self, request: Any, context: Any) -> RenewCertificateResponse:
        self.renewals += 1
        cert = self.ca.sign(request.csr_pem, peer_identity(context), lifetime=self.lifetime)
        return RenewCertificateResponse(certificate_pem=cert, ca_pem=self.ca.cert_pem)


async def test_joining(ca: Authority, tmp_path: Path) -> None:
    enrolment = Enrolment(ca)
    files = Files(tmp_path / "pki")

    def connect(ca_pem: bytes) -> GrpcTransport:
        return GrpcTransport(StaticCredentials(ca_pem))

    async with serving(ca, enrolment, add_EnrolmentServiceServicer_to_server, mutual=False) as address:
        token = TokenContent("jt-00000001", "secret", (address,), ca.cert_pem).encode()
        enrolment.lose_answers = 1
        with pytest.raises(JoinError):
            await join(files, "n7", token, connect)
        assert load(files) is None
        assert files.key.stat().st_mode & 0o777 == 0o600
        joined = await join(files, "n7", token + "\n", connect)
        assert joined == Membership("node-00000007", ("127.0.0.1:7443",)) == load(files)
        assert await join(files, "n7", "anything", connect) == joined, "joined already"
        with pytest.raises(JoinError, match="used"):
            await join(Files(tmp_path / "thief"), "n7", token, connect)
        with pytest.raises(PkiError):
            await join(Files(tmp_path / "other"), "n7", token[:-40], connect)
        # A controller of somebody else, who knows the token's address, is not believed.
        stranger = Authority.create("cairn other", SystemClock(), SystemIds())
        wrong = TokenContent("jt-00000001", "secret", (address,), stranger.cert_pem).encode()
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await join(Files(tmp_path / "fooled"), "n7", wrong, connect)
        assert load(Files(tmp_path / "fooled")) is None


async def test_renewal_before_a_third_is_left(ca: Authority, tmp_path: Path) -> None:
    enrolment = Enrolment(ca)
    files = Files(tmp_path)
    identity = Identity("node", "node-00000007")
    pki.write_public(files.ca, ca.cert_pem)
    pki.install_pair(files.cert, files.key, ca.issue(identity, lifetime=timedelta(hours=3)))
    own = GrpcTransport(FileCredentials(files.ca, files.cert, files.key))

    class Later(SystemClock):
        hours = 1.0

        def now(self) -> Any:
            return super().now() + timedelta(hours=self.hours)

    clock = Later()
    async with serving(ca, enrolment, add_IdentityServiceServicer_to_server) as address:
        renewal = Renewal(files, own, clock, [address])
        old = files.cert.read_bytes()
        assert not await renewal.renew_if_due()
        clock.hours = 2.1
        assert await renewal.renew_if_due()
        new = pki.load_pair(files.cert, files.key)
        assert new.cert_pem != old
        assert pki.identity_of(new.cert_pem) == identity
        assert not await renewal.renew_if_due()
        clock.hours = 24 * 75
        assert await renewal.renew_if_due(), "with the renewed certificate"
        assert enrolment.renewals == 2


class Unable(Enrolment):
    """A controller without the key that signs."""

    async def JoinNode(self, request: Any, context: Any) -> JoinNodeResponse:
        raise TryAgain("this controller does not sign certificates; ask another one")

    async def RenewCertificate(self, request: Any, context: Any) -> RenewCertificateResponse:
        raise TryAgain("this controller does not sign certificates; ask another one")


async def test_a_controller_that_does_not_sign_keeps_nobody_from_one_that_does(ca: Authority, tmp_path: Path) -> None:
    class Later(SystemClock):
        def now(self) -> Any:
            return super().now() + timedelta(days=61)

    files, enrolment = Files(tmp_path / "pki"), Enrolment(ca)
    join_by, renew_by = add_EnrolmentServiceServicer_to_server, add_IdentityServiceServicer_to_server
    async with serving(ca, Unable(ca), join_by, mutual=False) as first, serving(ca, enrolment, join_by, mutual=False) as second:
        token = TokenContent("jt-00000001", "secret", (first, second), ca.cert_pem).encode()
        async with asyncio.timeout(20):
            await join(files, "n7", token, lambda ca_pem: GrpcTransport(StaticCredentials(ca_pem)))
    own = GrpcTransport(FileCredentials(files.ca, files.cert, files.key))
    async with serving(ca, Unable(ca), renew_by) as first, serving(ca, enrolment, renew_by) as second:
        with pytest.raises(grpc.aio.AioRpcError, match="does not sign"):
            await Renewal(files, own, Later(), [first, first]).renew_if_due()
        assert await Renewal(files, own, Later(), [first, second]).renew_if_due()
