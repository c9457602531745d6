"""Join tokens: with one a new server becomes a node, once. Made, looked at, taken back; enrolment.py uses them up.

Only hashes of secrets are stored, and nobody is shown those. One that was taken back is good for nothing from then on, on every
controller: who joins has his token looked up in the newest picture, and its record's revision checked when he is let in.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import timedelta
from typing import Final

from cairn.controller.api import nouns, validation
from cairn.controller.api.core import Core
from cairn.controller.api.enrolment import SHA256_BYTES, readable_token
from cairn.controller.api.listing import page_size_of
from cairn.controller.api.mutation import Act, request_key
from cairn.controller.model.nodes import node_name
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.store.base import Conflict, Indeterminate, Txn, View
from cairn.proto import kinds, log
from cairn.proto.errors import AlreadyExists, BadState, Denied, Invalid, NotFound, TryAgain
from cairn.proto.pki import TokenContent
from cairn.proto.seams import timestamp
from cairn.proto.v1 import node_pb2
from cairn.proto.v1.node_pb2 import JoinToken

TTL_S_DEFAULT: Final = 3600
TTL_S_MAX: Final = 604_800
SECRET_BYTES: Final = 32
# Secrets of one token: the newest of so many repeated calls.
SECRETS_MAX: Final = 8
TRIES: Final = 5

_log = log.logger("api")


class JoinTokens:
    """What NodeService does with them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def create(self, caller: Caller, request: node_pb2.CreateJoinTokenRequest) -> node_pb2.CreateJoinTokenResponse:
        """Make a one-time token. Only the hash of its secret is stored, so a repeated call adds a secret to the same token.

        Each answer is good, whichever of them came last: the first call may be carried out after the second was answered.
        """
        if request.request_id:
            validation.request_id(request.request_id)
        if request.ttl_s > TTL_S_MAX:
            raise Invalid("ttl_s", f"{request.ttl_s} is more than {TTL_S_MAX} (a week)")
        if request.node_name:
            validation.name("node_name", request.node_name)
        endpoints = self._core.enrolment_endpoints()
        if not endpoints:
            raise TryAgain("no controller with an enrolment address is known yet; try again")
        secret = base64.urlsafe_b64encode(self._core.ids.secret(SECRET_BYTES)).decode().rstrip("=")
        # The token's id follows from the request's, so that a repeat finds it; without one it is a new token.
        digest = hashlib.sha256(request_key(caller, request.request_id or self._core.ids.uuid()).encode()).hexdigest()
        token = JoinToken(id=f"{kinds.JOIN_TOKEN.id_prefix}-{digest[:8]}", node_name=request.node_name)
        token.secret_sha256 = hashlib.sha256(secret.encode()).digest()
        now = self._core.clock.now()
        token.create_time.CopyFrom(timestamp(now))
        token.expire_time.CopyFrom(timestamp(now + timedelta(seconds=request.ttl_s or TTL_S_DEFAULT)))
        await self._store(caller, token, request.request_id)
        _log.info("join token made", token_id=token.id, node_name=token.node_name, actor=caller.id)
        content = TokenContent(token.id, secret, tuple(endpoints), self._core.ca_pem)
        return node_pb2.CreateJoinTokenResponse(token=content.encode(), expire_time=token.expire_time)

    async def list(self, caller: Caller, request: node_pb2.ListJoinTokensRequest) -> node_pb2.ListJoinTokensResponse:
        """Return a page, sorted by id. Raises Invalid."""
        size = page_size_of(request)
        view = await self._core.listings.view(request.read_revision)
        answer = node_pb2.ListJoinTokensResponse(revision=view.revision)
        for id in sorted(id for id in view.ids(kinds.JOIN_TOKEN) if id > request.page_token):
            token = view.get(kinds.JOIN_TOKEN, id)
            if token is None or not permits(view, caller, Verb.SEE, token):
                continue
            if len(answer.join_tokens) == size:
                answer.next_page_token = answer.join_tokens[-1].id
                break
            answer.join_tokens.append(_shown(view, token))
        return answer

    async def delete(self, caller: Caller, request: node_pb2.DeleteJoinTokenRequest) -> JoinToken:
        """Take one back. Raises NotFound, BadState, Denied, TryAgain."""
        if request.request_id:
            validation.request_id(request.request_id)
        asked: JoinToken | None = None
        for _ in range(TRIES):
            view = await self._core.mutations.freshen()
            token = readable_token(view, request.id)
            if token is None and asked is not None:
                # Its answer was lost: it is done.
                return _shown(view, asked)
            if token is None or not permits(view, caller, Verb.SEE, token):
                raise NotFound("join_token", request.id, f"there is no join token {request.id!r}")
            if not permits(view, caller, Verb.DELETE, token):
                raise Denied(f"{caller.kind} {caller.id!r} may not take join tokens back")
            if token.used_by:
                by = node_name(view, token.used_by)
                say = f"{by} has joined with it, and nobody else can; `cairn node remove {by}` has that leave"
                raise BadState("join_token", token.id, say)
            revision = view.revision_of(kinds.JOIN_TOKEN, token.id)
            txn = Txn("api").check(kinds.JOIN_TOKEN, token.id, revision).delete(kinds.JOIN_TOKEN, token.id)
            act = Act("DeleteJoinToken", f"{kinds.JOIN_TOKEN.name}/{token.id}", token.node_name, request_id=request.request_id)
            try:
                await self._core.cache.wait_for(await self._core.mutations.write(view, caller, txn, act))
            except Conflict:
                # Somebody joins with it, asks for it again, or takes it back.
                continue
            except Indeterminate:
                asked = token
                continue
            return _shown(view, token)
        raise TryAgain("whether the token was taken back is not known; list them, and try again")

    async def _store(self, caller: Caller, token: JoinToken, request_id: str) -> None:
        """Write a token; one of the same id is renewed unless it was used. Raises Denied, Invalid, BadState, TryAgain."""
        view = await self._core.mutations.freshen()
        if not permits(view, caller, Verb.CREATE, token):
            raise Denied(f"{caller.kind} {caller.id!r} may not make join tokens")
        held = view.get(kinds.JOIN_TOKEN, token.id)
        if held is not None and held.node_name != token.node_name:
            raise Invalid("request_id", "was used for a token of another node; take a new one")
        if held is not None and held.used_by:
            raise BadState("join_token", token.id, f"this token was used by {held.used_by}: make a new one")
        if token.node_name and view.get(kinds.NAME, f"{nouns.CLUSTER_WIDE}/node/{token.node_name}") is not None:
            raise AlreadyExists("node", token.node_name)
        if held is not None:
            known = held.secret_sha256[-(SECRETS_MAX - 1) * SHA256_BYTES :]
            token.secret_sha256 = known + token.secret_sha256
        txn = Txn("api").check(kinds.JOIN_TOKEN, token.id, view.revision_of(kinds.JOIN_TOKEN, token.id))
        act = Act("CreateJoinToken", f"{kinds.JOIN_TOKEN.name}/{token.id}", token.node_name, request_id=request_id)
        try:
            await self._core.mutations.write(view, caller, txn.put(kinds.JOIN_TOKEN, token.id, token), act)
        except (Conflict, Indeterminate) as error:
            raise TryAgain("the token could not be stored for sure; try again") from error


def _shown(view: View, token: JoinToken) -> JoinToken:
    """Return a token without what its secret is known by."""
    shown = JoinToken()
    shown.CopyFrom(token)
    shown.ClearField("secret_sha256")
    shown.ClearField("used_key_sha256")
    used_by = view.get(kinds.NODE, token.used_by) if token.used_by else None
    shown.used_by_name = used_by.name if used_by is not None else ""
    return shown
