"""How a new server becomes a node: a one-time token and a signing request, for an identity and a certificate.

Invariant: one token makes one node, whatever is repeated or lost on the way. The token's record remembers the public key it
was used with, in the transaction that makes the node; the same key may ask again and gets the same node, any other is
refused.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.bearer import source_of
from cairn.controller.api.core import Core
from cairn.controller.api.identity import signer
from cairn.controller.api.mutation import Act
from cairn.controller.model.names import CLUSTER_WIDE, NODE_INDEX, index_name
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.outage import refusal
from cairn.controller.store.base import Conflict, Indeterminate, Txn, Unavailable, View
from cairn.proto import kinds, log
from cairn.proto.errors import Denied, Exhausted, Invalid, TryAgain
from cairn.proto.ids import NODE_INDEX_MAX
from cairn.proto.pki import Identity, PkiError, TokenContent, csr_key_sha256
from cairn.proto.seams import moment, timestamp
from cairn.proto.v1 import cluster_pb2, cluster_pb2_grpc
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.node_pb2 import JoinToken, Node

_log = log.logger("api")
ATTEMPTS_MAX: Final = 32
SHA256_BYTES: Final = 32


class EnrolmentService(cluster_pb2_grpc.EnrolmentServiceServicer):
    """EnrolmentService of proto/v1/cluster.proto. Served on a port of its own, without client certificates."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def JoinNode(self, request: cluster_pb2.JoinNodeRequest, context: Any) -> cluster_pb2.JoinNodeResponse:
        """Make a node of whoever holds a token."""
        authority = signer(self._core)
        validation.name("node_name", request.node_name)
        try:
            content = TokenContent.decode(request.token)
        except PkiError as error:
            raise Invalid("token", str(error)) from error
        try:
            key = csr_key_sha256(request.csr_pem)
        except PkiError as error:
            raise Invalid("csr_pem", str(error)) from error
        node = await self._enrol(content, request.node_name, key, source_of(context.peer()))
        certificate = authority.sign(request.csr_pem, Identity("node", node))
        _log.info("node joined", node=node, node_name=request.node_name, token_id=content.id)
        return cluster_pb2.JoinNodeResponse(
            node=node, certificate_pem=certificate, ca_pem=self._core.ca_pem, controllers=controllers(self._core.cache.view)
        )

    async def _enrol(self, content: TokenContent, name: str, key: bytes, address: str) -> str:
        """Use up the token and make the node, or find the node this key made of it; return its id."""
        for _ in range(ATTEMPTS_MAX):
            view = await self._core.mutations.freshen()
            token = self._checked(view, content, name)
            if token.used_by:
                if hmac.compare_digest(token.used_key_sha256, key):
                    return _still_there(view, token.used_by)
                raise Denied("this token has been used; make a new one with `cairn node token create`")
            txn, node = self._decide(view, token, name, key)
            caller, act = replace(_holder(token), address=address), Act("JoinNode", f"{kinds.NODE.name}/{node}", name)
            try:
                await self._core.cache.wait_for(await self._core.mutations.write(view, caller, txn, act))
            except (Conflict, Indeterminate):
                continue
            except Unavailable as error:
                raise refusal(error) from error
            return node
        raise TryAgain("too many servers join at once; try again")

    def _checked(self, view: View, content: TokenContent, name: str) -> JoinToken:
        """Return the token's record when its holder may use it. Raises TryAgain; Denied, which never says what was wrong."""
        token = readable_token(view, content.id)
        secret = hashlib.sha256(content.secret.encode()).digest()
        if token is None or not _is_among(token.secret_sha256, secret):
            raise Denied("this token is not valid here; make a new one with `cairn node token create`")
        if not permits(view, _holder(token), Verb.JOIN, token):
            raise Denied("this token may not be used to join")
        if not token.used_by and moment(token.expire_time) <= self._core.clock.now():
            raise Denied("this token has expired; make a new one with `cairn node token create`")
        if token.node_name and token.node_name != name:
            raise Denied(f"this token is for node {token.node_name!r}, not for {name!r}")
        return token

    def _decide(self, view: View, token: JoinToken, name: str, key: bytes) -> tuple[Txn, str]:
        """Return the transaction that makes the node, and its id. Raises AlreadyExists, Exhausted."""
        now = timestamp(self._core.clock.now())
        node = Node(id=self._core.ids.new(kinds.NODE.id_prefix), name=name, create_time=now, update_time=now)
        txn = Txn("api")
        resolution.claim(txn, view, _holder(token), nouns.NODE, "", name, node.id)
        taken = {found.spec.index for found in view.all(kinds.NODE)}
        index = next((index for index in range(1, NODE_INDEX_MAX + 1) if index not in taken), None)
        if index is None:
            raise Exhausted("nodes", f"all {NODE_INDEX_MAX} node numbers are in use")
        node.spec.index = index
        # Two servers joining at once choose the same number; the claim makes one of them choose again.
        claim = NameClaim(kind="node-index", project=nouns.CLUSTER_WIDE, name=f"{index:05d}", id=node.id)
        txn.create(kinds.NAME, index_claim(index), claim)
        txn.create(kinds.NODE, node.id, node)
        used = JoinToken()
        used.CopyFrom(token)
        used.used_by, used.used_key_sha256 = node.id, key
        txn.check(kinds.JOIN_TOKEN, token.id, view.revision_of(kinds.JOIN_TOKEN, token.id))
        txn.put(kinds.JOIN_TOKEN, token.id, used)
        return txn, node.id


def readable_token(view: View, id: str) -> JoinToken | None:
    """Return a token's record, if there is one. Raises TryAgain when there is and it cannot be read."""
    token = view.get(kinds.JOIN_TOKEN, id)
    if token is None and id in view.unreadable(kinds.JOIN_TOKEN):
        raise TryAgain("the record of this token cannot be read; `cairn cluster fsck` lists what is damaged")
    return token


def _is_among(hashes: bytes, one: bytes) -> bool:
    """Tell whether a hash is among those of a token, in a time that does not tell which."""
    starts = range(0, len(hashes), SHA256_BYTES)
    return sum(hmac.compare_digest(hashes[start : start + SHA256_BYTES], one) for start in starts) > 0


def _holder(token: JoinToken) -> Caller:
    """Return who calls with a token: nobody but its holder."""
    return Caller("join_token", token.id)


def index_claim(index: int) -> str:
    """Return the id of the claim that keeps a node's number unique."""
    return f"{CLUSTER_WIDE}/{NODE_INDEX}/{index_name(index)}"


def _still_there(view: View, node: str) -> str:
    """Return the node a token made. Raises Denied when it has left: it gets no new certificate. Raises TryAgain."""
    if view.get(kinds.NODE, node) is None:
        resolution.refuse_unreadable(view, nouns.NODE, node)
        raise Denied("the node this token made was removed; make a new token with `cairn node token create`")
    return node


def controllers(view: View) -> list[str]:
    """Return the mTLS endpoints of all live controllers."""
    return sorted({endpoint for session in view.all(kinds.CONTROLLER) for endpoint in session.endpoints})
