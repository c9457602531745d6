"""How a node becomes one: a key made here, a one-time token, a certificate; and how the certificate is renewed.

Files in pki_dir: node.key (0600, never leaves), ca.crt, node.json (id and controllers), and last node.crt: with it the node has
joined. Killed at any point before, `join` can be repeated with the same token: the key is the same, so the answer is.
Renewal makes a new key. Channels and servers read the files again by themselves (proto/rpc.py), guests notice nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from cairn.proto import pki
from cairn.proto.log import logger
from cairn.proto.pki import CONTROLLER_SERVER_NAME, PkiError, TokenContent
from cairn.proto.rpc import PASSING, ask_in_turn
from cairn.proto.seams import Clock, Transport
from cairn.proto.v1.cluster_pb2 import JoinNodeRequest, JoinNodeResponse, RenewCertificateRequest
from cairn.proto.v1.cluster_pb2_grpc import EnrolmentServiceStub, IdentityServiceStub

JOIN_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 15.0
RETRY_S: Final = 1.0
LOOK_EVERY_S_MAX: Final = 3600.0


class JoinError(Exception):
    """The node could not join; the text says why."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Who this node is, and where its controllers are (host:port)."""

    node: str
    controllers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Files:
    """Where everything is."""

    folder: Path

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / "node.key"

    @property
    def cert(self) -> Path:
        """The certificate."""
        return self.folder / "node.crt"

    @property
    def ca(self) -> Path:
        """The cluster's authority."""
        return self.folder / "ca.crt"

    @property
    def membership(self) -> Path:
        """Id and controllers."""
        return self.folder / "node.json"


def load(files: Files) -> Membership | None:
    """Return who this node is; None when it has not joined. PkiError when its files do not fit together."""
    if not files.cert.exists():
        return None
    identity = pki.identity_of(pki.load_pair(files.cert, files.key).cert_pem)
    if identity.kind != "node":
        raise PkiError(f"{files.cert} is the certificate of a {identity.kind}, not of a node")
    try:
        document = json.loads(files.membership.read_text())
        return Membership(identity.id, tuple(str(each) for each in document["controllers"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PkiError(f"{files.membership} cannot be used: {error!r}") from error


async def join(files: Files, name: str, token: str, connect: Callable[[bytes], Transport]) -> Membership:
    """Enrol this node under a name; joined already: its membership.

    connect(ca_pem) returns a Transport that trusts that CA and has no certificate. Raises JoinError, PkiError, OSError.
    """
    joined = load(files)
    if joined is not None:
        return joined
    content = TokenContent.decode(token)
    key_pem = files.key.read_bytes() if files.key.exists() else None
    request = pki.make_csr(name, key_pem)
    if key_pem is None:
        pki.write_private(files.key, request.key_pem)
    transport = connect(content.ca_pem)
    message = JoinNodeRequest(token="".join(token.split()), node_name=name, csr_pem=request.cert_pem)
    response = await _ask(transport, content.endpoints, message)
    identity = pki.identity_of(response.certificate_pem)
    if (identity.kind, identity.id) != ("node", response.node):
        raise JoinError(f"the controller answered with the certificate of {identity.uri}")
    pki.write_public(files.ca, response.ca_pem)
    document = {"node": response.node, "controllers": list(response.controllers)}
    pki.write_public(files.membership, (json.dumps(document, indent=1) + "\n").encode())
    pki.write_public(files.cert, response.certificate_pem)
    return Membership(response.node, tuple(response.controllers))


async def _ask(transport: Transport, endpoints: Sequence[str], message: JoinNodeRequest) -> JoinNodeResponse:
    """Call JoinNode until a controller answers; the same request may be repeated."""
    loop = asyncio.get_running_loop()
    deadline_s, turn = loop.time() + JOIN_TIMEOUT_S, 0
    while True:
        # Another one first each time: one that answers need not be one that signs.
        channel = transport.channel([*endpoints[turn:], *endpoints[:turn]], server_name=CONTROLLER_SERVER_NAME)
        try:
            return await EnrolmentServiceStub(channel).JoinNode(message, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() not in PASSING or loop.time() > deadline_s:
                raise JoinError(f"joining through {', '.join(endpoints)} failed: {_reason(error)}") from error
        finally:
            await channel.close(None)
        turn = (turn + 1) % len(endpoints)
        await asyncio.sleep(RETRY_S)


class Renewal:
    """Keeps this node's certificate fresh."""

    def __init__(self, files: Files, transport: Transport, clock: Clock, controllers: Sequence[str]) -> None:
        self._files, self._transport, self._clock, self._controllers = files, transport, clock, tuple(controllers)
        # Called after each renewal.
        self.on_renewed: Callable[[], None] | None = None

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            try:
                await self.renew_if_due()
            except (grpc.aio.AioRpcError, PkiError, OSError) as error:
                say = _reason(error) if isinstance(error, grpc.aio.AioRpcError) else str(error)
                logger("identity").warning("renewal_failed", error=say)
            await asyncio.sleep(self._pause_s())

    async def renew_if_due(self) -> bool:
        """Replace key and certificate when less than a third of its life is left; tell whether it was."""
        files = self._files
        old = pki.load_pair(files.cert, files.key)
        if not pki.needs_renewal(old.cert_pem, self._clock.now()):
            return False
        identity = pki.identity_of(old.cert_pem)
        request = pki.make_csr(identity.id)
        message = RenewCertificateRequest(csr_pem=request.cert_pem)
        response = await ask_in_turn(
            self._transport,
            self._controllers,
            lambda channel: IdentityServiceStub(channel).RenewCertificate(message, timeout=CALL_TIMEOUT_S),
        )
        if pki.identity_of(response.certificate_pem) != identity:
            raise PkiError(f"the controller renewed for {pki.identity_of(response.certificate_pem).uri}, not {identity.uri}")
        if response.ca_pem and response.ca_pem != files.ca.read_bytes():
            pki.write_public(files.ca, response.ca_pem)
        pki.install_pair(files.cert, files.key, pki.Pair(response.certificate_pem, request.key_pem))
        logger("identity").info("certificate_renewed", node=identity.id)
        if self.on_renewed is not None:
            self.on_renewed()
        return True

    def _pause_s(self) -> float:
        """Look often enough for certificates of any life: ten times in what is left."""
        try:
            left = pki.parse_cert(self._files.cert.read_bytes()).not_valid_after_utc - self._clock.now()
        except (PkiError, OSError):
            return LOOK_EVERY_S_MAX / 60
        return min(max(left.total_seconds() / 10, RETRY_S), LOOK_EVERY_S_MAX)


def _reason(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name
