"""Logging in: from an identity provider's word to an API token, for who has neither a certificate nor a token yet.

    client -> provider: who am I?          code with PKCE, or a device code; in between a person, and no secret of ours
    client -> Login(ID token)              judged by openid.py; good once, lately, for this nonce
    controller: User, ApiToken             whom the token's subject is linked to (linking.py), made at the first login if the
                                           provider's record says so; its token ends within a day and carries the groups
                                           that the provider names him in, as the provider's record calls them here

Who is not let in is told why, once a provider has vouched for him, and that his token is not to be trusted before. What comes
too often from one address is not looked at (bearer.py: Tries): a signature costs more than a hash.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final

from cairn.controller.api import linking, nouns, resolution
from cairn.controller.api.bearer import Tries, digest_of, new_secret, source_of, text_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.model.authority import login_groups
from cairn.controller.model.permits import Caller
from cairn.controller.openid import Claims, NotTrusted, Unanswered
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, NotFound, TryAgain, Unauthenticated
from cairn.proto.seams import moment, timestamp
from cairn.proto.subjects import ROOT
from cairn.proto.v1 import login_pb2, login_pb2_grpc
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec
from cairn.proto.v1.identity_provider_pb2 import IdentityProvider
from cairn.proto.v1.login_pb2 import LoginRequest, LoginResponse, LoginWay, ShowLoginsResponse
from cairn.proto.v1.user_pb2 import User, UserLogin, UserSpec

# Of one user at a time; the oldest goes.
LOGINS_MAX: Final = 16
SCOPES_DEFAULT: Final = ("profile",)
USED: Final = "this ID token has been used already: log in again"


class LoginService(login_pb2_grpc.LoginServiceServicer):
    """LoginService of proto/v1/login.proto. Served where tokens are taken, without client certificates."""

    def __init__(self, core: Core) -> None:
        self._core, self._tries = core, Tries(core.clock)

    async def ShowLogins(self, request: login_pb2.ShowLoginsRequest, context: Any) -> ShowLoginsResponse:
        """Say which providers one can log in by, and how they are asked."""
        view, answer = self._core.cache.view, ShowLoginsResponse()
        for id in sorted(view.ids(kinds.IDENTITY_PROVIDER)):
            provider = view.get(kinds.IDENTITY_PROVIDER, id)
            if provider is not None and not provider.spec.disabled:
                answer.ways.append(_way(provider))
        return answer

    async def Login(self, request: LoginRequest, context: Any) -> LoginResponse:
        """Make a token for whom a provider vouches. Raises Refused."""
        source, digest = source_of(context.peer()), sha256(request.id_token.encode()).digest()
        if not self._tries.may(source, digest):
            raise Unauthenticated("the ID token is not accepted: too many came from here that were not good; wait a minute")
        view = await self._core.mutations.freshen()
        provider = _provider(view, request.provider)
        try:
            claims = await self._core.identities.claims(provider, request.id_token, request.nonce)
        except NotTrusted as error:
            self._tries.note(source, digest, good=False)
            raise Unauthenticated(f"the ID token is not accepted: {error}") from error
        except Unanswered as error:
            raise TryAgain(f"identity provider {provider.name!r} cannot be asked: {error}") from error
        # Each is one request, whoever sends it and how often.
        asked = LoginRequest(provider=provider.id, nonce=request.nonce, id_token=request.id_token)
        asked.request_id = str(uuid.UUID(bytes=digest[:16]))
        return await self._log_in(asked, claims, source)

    async def _log_in(self, asked: LoginRequest, claims: Claims, source: str) -> LoginResponse:
        secret, made = new_secret(self._core.ids), set[str]()
        # The same for each use of an ID token: whom it makes of its bearer is not known before, and is known after.
        caller = Caller("login", f"{asked.provider}/{claims.subject}", address=source)

        def decide(view: View, _caller: Caller) -> Decided[ApiToken]:
            decided = self._decided(view, asked.provider, claims, secret)
            made.add(decided.id)
            return decided

        try:
            token: ApiToken = await self._core.mutations.run(asked, caller, decide)
        except NotFound as error:
            if error.kind == kinds.IDENTITY_PROVIDER.name:
                raise
            raise Unauthenticated(USED) from error
        if token.id not in made:
            raise Unauthenticated(USED)
        groups = login_groups(self._core.cache.view, token)
        return LoginResponse(token=text_of(token.id, secret), api_token=token, user=token.status.user_name, groups=groups)

    def _decided(self, view: View, provider_id: str, claims: Claims, secret: str) -> Decided[ApiToken]:
        """Raises BadState, NotFound, TryAgain."""
        provider = view.get(kinds.IDENTITY_PROVIDER, provider_id)
        resolution.refuse_unknown(view, nouns.IDENTITY_PROVIDER, [provider_id])
        if provider is None or provider.spec.disabled:
            raise NotFound("identity_provider", provider_id, "that identity provider is not trusted any more")
        txn, now = Txn("api"), self._core.clock.now()
        txn.check(kinds.IDENTITY_PROVIDER, provider.id, view.revision_of(kinds.IDENTITY_PROVIDER, provider.id))
        user = self._user(txn, view, provider, claims)
        id = self._core.ids.new(kinds.API_TOKEN.id_prefix)
        name = f"{user.name[:50]}-{id.rpartition('-')[2]}"
        token = ApiToken(id=id, name=name, create_time=timestamp(now), update_time=timestamp(now))
        spec, login = token.spec, token.spec.login
        spec.user, spec.type, spec.description = user.id, ApiTokenSpec.TYPE_BEARER, f"logged in by {provider.name}"
        spec.expire_time.CopyFrom(timestamp(now + timedelta(seconds=provider.spec.session_s)))
        login.provider, login.subject = provider.id, claims.subject
        login.groups.extend(sorted({provider.spec.groups[each] for each in claims.groups if each in provider.spec.groups}))
        token.secret_sha256 = digest_of(secret)
        _make_room(txn, view, user)
        resolution.claim(txn, view, Caller.system("logins"), nouns.API_TOKEN, "", name, id)
        txn.create(kinds.API_TOKEN, id, token)
        said = [("LoggedIn", f"{user.name} logged in by {provider.name}")]
        return Decided(txn, nouns.API_TOKEN, id, name, "", events=said, who=user.name)

    def _user(self, txn: Txn, view: View, provider: IdentityProvider, claims: Claims) -> User:
        """Return whom a provider means; of one who comes for the first time, make a user. Raises BadState, TryAgain."""
        found = _linked(view, provider.id, claims)
        if found is not None:
            if found.spec.disabled:
                raise BadState("user", found.name, f"user {found.name!r} is disabled")
            txn.check(kinds.USER, found.id, view.revision_of(kinds.USER, found.id))
            return found
        if not provider.spec.create_users:
            say = f"no user here logs in as {claims.subject!r} of {provider.name!r}: ask an administrator to link one to it"
            raise BadState("user", claims.subject, say)
        name = linking.name_of(claims.name or claims.subject)
        if name == ROOT or view.get(kinds.NAME, resolution.claim_id(nouns.USER, "", name)) is not None:
            say = (
                f"{name!r} is another user's name: an administrator can link it to subject {claims.subject!r} of "
                f"{provider.name!r}, if it is yours"
            )
            raise BadState("user", name, say)
        now = timestamp(self._core.clock.now())
        user = User(id=self._core.ids.new(kinds.USER.id_prefix), name=name, create_time=now, update_time=now)
        user.spec.type = UserSpec.TYPE_PERSON
        user.spec.login.provider, user.spec.login.subject = provider.id, claims.subject
        resolution.claim(txn, view, Caller.system("logins"), nouns.USER, "", name, user.id)
        linking.link(txn, view, user)
        txn.create(kinds.USER, user.id, user)
        return user


def _way(provider: IdentityProvider) -> LoginWay:
    spec = provider.spec
    scopes = ["openid", *(spec.scopes or SCOPES_DEFAULT)]
    return LoginWay(name=provider.name, issuer=spec.issuer, client_id=spec.client_id, ca_pem=spec.ca_pem, scopes=scopes)


def _provider(view: View, name: str) -> IdentityProvider:
    """Raises NotFound, TryAgain."""
    claim = view.get(kinds.NAME, resolution.claim_id(nouns.IDENTITY_PROVIDER, "", name))
    provider = view.get(kinds.IDENTITY_PROVIDER, claim.id) if claim is not None else None
    if provider is None:
        resolution.refuse_unreadable_name(view, nouns.IDENTITY_PROVIDER, "", name)
    if provider is None or provider.spec.disabled:
        raise NotFound("identity_provider", name, f"there is no identity provider {name[:80]!r} to log in by")
    return provider


def _linked(view: View, provider: str, claims: Claims) -> User | None:
    """Raises TryAgain."""
    for id in view.by(kinds.USER, "login", f"{provider}/{claims.subject}"):
        return view.get(kinds.USER, id)
    linking.refuse_unreadable(view, UserLogin(provider=provider, subject=claims.subject))
    return None


def _make_room(txn: Txn, view: View, user: User) -> None:
    """Have the oldest logins of a user go when there are too many."""
    tokens = [view.get(kinds.API_TOKEN, id) for id in view.by(kinds.API_TOKEN, "user", user.id)]
    logins = sorted(
        (token for token in tokens if token is not None and token.spec.HasField("login")),
        key=lambda token: (moment(token.create_time), token.id),
    )
    for token in logins[: max(0, len(logins) + 1 - LOGINS_MAX)]:
        txn.check(kinds.API_TOKEN, token.id, view.revision_of(kinds.API_TOKEN, token.id)).delete(kinds.API_TOKEN, token.id)
        resolution.release(txn, view, nouns.API_TOKEN, "", token.name, token.id)
