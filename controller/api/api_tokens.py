"""API tokens: what a program shows instead of a certificate. Shown once; the store has a hash. See bearer.py.

Those that sign (access keys) are shown once, too, and kept sealed: a signature is verified by making it again. See signed.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from ipaddress import ip_network
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.bearer import SHA256_BYTES, digest_of, new_secret, text_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.mutation import Act
from cairn.controller.api.objects import addressed, looked_up, updated
from cairn.controller.api.signed import secret_id, secret_of
from cairn.controller.model.authority import authority, is_lesser, lacking, narrowed, token_of, user_called
from cairn.controller.model.permits import Caller, Verb, authority_of, permits, witnesses
from cairn.controller.model.quotas import fence
from cairn.controller.model.roles import unknown_patterns
from cairn.controller.store.base import Conflict, Indeterminate, Record, Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, Denied, Invalid, NotFound, TryAgain
from cairn.proto.sealing import SealError
from cairn.proto.seams import moment, timestamp
from cairn.proto.v1 import api_token_pb2, api_token_pb2_grpc
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec
from cairn.proto.v1.user_pb2 import User

TTL_DEFAULT: Final = timedelta(days=90)
TTL_MAX: Final = timedelta(days=366)
# Of one user.
TOKENS_MAX: Final = 64
# Of each thing that one is narrowed to.
NARROWED_MAX: Final = 32
# Secrets of a token whose making was asked for again; the first ones are forgotten.
SECRETS_MAX: Final = 4
TRIES: Final = 5
RULES: Final = UpdateRules(
    mutable=("labels", "spec.disabled", "spec.description"),
    immutable=(
        "name",
        "spec.user",
        "spec.expire_time",
        "spec.permissions",
        "spec.roles",
        "spec.projects",
        "spec.sources",
        "spec.type",
        "spec.login",
    ),
)


class ApiTokenService(api_token_pb2_grpc.ApiTokenServiceServicer):
    """ApiTokenService of proto/v1/api_token.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateApiToken(
        self, request: api_token_pb2.CreateApiTokenRequest, context: Any
    ) -> api_token_pb2.CreateApiTokenResponse:
        """Make a token, and show it. Asked for again, it gets another secret besides: nobody knows which answer arrived."""
        caller, secret = caller_of(context), new_secret(self._core.ids)

        ids = set[str]()

        def decide(view: View, caller: Caller) -> Decided[ApiToken]:
            decided = self._made(view, caller, request, secret)
            ids.add(decided.id)
            return decided

        made = await self._core.mutations.run(request, caller, decide)
        if request.validate_only:
            return api_token_pb2.CreateApiTokenResponse(api_token=made)
        view = self._core.cache.view
        record, user = view.get(kinds.API_TOKEN, made.id), view.get(kinds.USER, made.spec.user)
        if record is not None and user is not None:
            # Asked for again by another token of the same user, it is shown only if that could make it.
            _refuse_more(view, caller, user, record)
        if made.spec.type == ApiTokenSpec.TYPE_SIGNING:
            kept = secret_of(view, self._core.seals, made.id)
            if made.id not in ids:
                # Its making is on record already, that it is shown once more is not.
                act = Act("CreateApiToken", f"{kinds.API_TOKEN.name}/{made.id}", made.name, request_id=request.request_id)
                await self._core.mutations.note(caller, act)
            return api_token_pb2.CreateApiTokenResponse(api_token=made, secret=kept)
        await self._have(caller, made.id, digest_of(secret), request.request_id)
        return api_token_pb2.CreateApiTokenResponse(api_token=made, token=text_of(made.id, secret))

    async def GetApiToken(self, request: api_token_pb2.GetApiTokenRequest, context: Any) -> ApiToken:
        """Return one, without what is secret."""
        return await self._core.listings.get(caller_of(context), nouns.API_TOKEN, request)

    async def ListApiTokens(
        self, request: api_token_pb2.ListApiTokensRequest, context: Any
    ) -> api_token_pb2.ListApiTokensResponse:
        """Return a page."""
        answer = api_token_pb2.ListApiTokensResponse
        return await self._core.listings.list(caller_of(context), nouns.API_TOKEN, request, answer)

    async def UpdateApiToken(self, request: api_token_pb2.UpdateApiTokenRequest, context: Any) -> ApiToken:
        """Disable one, or have it count again."""

        def amend(view: View, caller: Caller, _txn: Txn, new: ApiToken, old: Record[ApiToken]) -> None:
            validation.description("api_token.spec.description", new.spec.description)
            user = view.get(kinds.USER, new.spec.user)
            if old.message.spec.disabled and not new.spec.disabled and user is not None:
                _refuse_more(view, caller, user, new)

        def decide(view: View, caller: Caller) -> Decided[ApiToken]:
            decided, _, _ = updated(view, caller, self._core, nouns.API_TOKEN, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteApiToken(self, request: api_token_pb2.DeleteApiTokenRequest, context: Any) -> ApiToken:
        """Take one back, at once."""

        def decide(view: View, caller: Caller) -> Decided[ApiToken]:
            record = addressed(view, caller, nouns.API_TOKEN, request, verb=Verb.DELETE)
            resolution.check_etag("etag", record, request.etag, required=False, title="API token")
            token: ApiToken = record.message
            txn = Txn("api").check(kinds.API_TOKEN, token.id, record.mod_revision).delete(kinds.API_TOKEN, token.id)
            if token.spec.type == ApiTokenSpec.TYPE_SIGNING:
                txn.delete(kinds.SECRET, secret_id(token.id))
            resolution.release(txn, view, nouns.API_TOKEN, "", token.name, token.id)
            erased = nouns.API_TOKEN.project(view, record)
            said = [("Deleted", f"API token {token.name} of {erased.status.user_name} was taken back")]
            return Decided(txn, nouns.API_TOKEN, token.id, token.name, "", erased=erased, events=said)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchApiTokens(
        self, request: api_token_pb2.WatchApiTokensRequest, context: Any
    ) -> AsyncIterator[api_token_pb2.WatchApiTokensResponse]:
        """Follow them."""
        answer = api_token_pb2.WatchApiTokensResponse
        async for response in self._core.watches.watch(caller_of(context), nouns.API_TOKEN, request, answer):
            yield response

    def _made(self, view: View, caller: Caller, request: api_token_pb2.CreateApiTokenRequest, secret: str) -> Decided[ApiToken]:
        """Raises Refused."""
        given, id, now = request.api_token, self._core.ids.new(kinds.API_TOKEN.id_prefix), self._core.clock.now()
        user, txn = _user(view, caller, given.spec.user), Txn("api")
        name = validation.name("api_token.name", given.name or f"{user.name[:50]}-{id.rpartition('-')[2]}")
        validation.labels("api_token.labels", given.labels)
        if not 0 <= request.ttl_s <= TTL_MAX.total_seconds():
            raise Invalid("ttl_s", f"{request.ttl_s} is not between 0 and {TTL_MAX.total_seconds():.0f} ({TTL_MAX.days} days)")
        token = ApiToken(id=id, name=name, labels=given.labels, create_time=timestamp(now), update_time=timestamp(now))
        token.spec.CopyFrom(_checked(view, caller, txn, given.spec))
        token.spec.user = user.id
        token.spec.expire_time.CopyFrom(timestamp(now + (timedelta(seconds=request.ttl_s) or TTL_DEFAULT)))
        resolution.admit(view, caller, Verb.CREATE, nouns.API_TOKEN, token)
        _refuse_more(view, caller, user, token)
        if view.count_by(kinds.API_TOKEN, "user", user.id) >= TOKENS_MAX:
            raise BadState(
                "user", user.name, f"user {user.name!r} has {TOKENS_MAX} API tokens, the most there can be: delete some"
            )
        fence(view, txn, user.id)
        resolution.claim(txn, view, caller, nouns.API_TOKEN, "", name, id)
        txn.check(kinds.USER, user.id, view.revision_of(kinds.USER, user.id))
        self._keep(txn, token, secret)
        said = [("Created", f"API token {name} of {user.name} was made")]
        return Decided(txn, nouns.API_TOKEN, id, name, "", events=said)

    def _keep(self, txn: Txn, token: ApiToken, secret: str) -> None:
        """Write a new token, with what its secret is known by. Raises BadState."""
        if token.spec.type == ApiTokenSpec.TYPE_SIGNING:
            try:
                sealed = self._core.seals.seal(secret_id(token.id), secret.encode(), self._core.clock.now())
            except SealError as error:
                raise BadState("api_token", token.name, f"its secret cannot be kept: {error}") from error
            txn.create(kinds.SECRET, secret_id(token.id), sealed)
        else:
            token.secret_sha256 = digest_of(secret)
        txn.create(kinds.API_TOKEN, token.id, token)

    async def _have(self, caller: Caller, id: str, digest: bytes, request_id: str) -> None:
        """See to it that a token is good with a secret. Raises Denied, NotFound, TryAgain."""
        for _ in range(TRIES):
            view = self._core.cache.view
            record = view.record(kinds.API_TOKEN, id)
            if record is None:
                resolution.refuse_unreadable(view, nouns.API_TOKEN, id)
                raise NotFound("api_token", id, f"API token {id} was made by this request and has been deleted since")
            token = ApiToken()
            token.CopyFrom(record.message)
            if digest in token.secret_sha256:
                return
            if not permits(view, caller, Verb.CREATE, token):
                raise Denied(f"{caller.kind} {caller.id!r} may not create API token {token.name!r}")
            token.secret_sha256 = token.secret_sha256[-(SECRETS_MAX - 1) * SHA256_BYTES :] + digest
            txn = Txn("api").check(kinds.API_TOKEN, id, record.mod_revision)
            for kind, each in witnesses(view, caller, Verb.CREATE, token):
                txn.check(kind, each, view.revision_of(kind, each))
            act = Act("CreateApiToken", f"{kinds.API_TOKEN.name}/{id}", token.name, request_id=request_id)
            try:
                revision = await self._core.mutations.write(view, caller, txn.put(kinds.API_TOKEN, id, token), act)
            except (Conflict, Indeterminate):
                await self._core.mutations.freshen()
            else:
                await self._core.cache.wait_for(revision)
        raise TryAgain("the token could not be stored for sure; try again")


def _user(view: View, caller: Caller, text: str) -> User:
    """Return whom a token is to stand for: whoever asks, unless another one is named. Raises Denied, Invalid, NotFound."""
    own = user_called(view, caller.id) if caller.kind == "user" else None
    if own is not None and text in ("", own.id, own.name):
        return own
    if not text:
        raise Invalid("api_token.spec.user", f"whose? {caller.kind} {caller.id!r} has no record that a token could stand for")
    user: User = looked_up(view, caller, nouns.USER, "", text, "api_token.spec.user")
    return user


def _checked(view: View, caller: Caller, txn: Txn, given: ApiTokenSpec) -> ApiTokenSpec:
    """Return what a token is narrowed to, with ids for names. Raises Invalid, NotFound."""
    validation.description("api_token.spec.description", given.description)
    for field in ("permissions", "roles", "projects", "sources"):
        validation.at_most(f"api_token.spec.{field}", getattr(given, field), NARROWED_MAX, field)
    if unknown := unknown_patterns(given.permissions):
        say = f"{unknown[0]!r} stands for no permission; they are noun.verb, either may be * (docs/permissions.md lists all)"
        raise Invalid("api_token.spec.permissions", say)
    spec = ApiTokenSpec(description=given.description, disabled=given.disabled, type=given.type or ApiTokenSpec.TYPE_BEARER)
    spec.permissions.extend(sorted(set(given.permissions)))
    for text in given.roles:
        role = resolution.live(view, caller, nouns.ROLE, "", text, field="api_token.spec.roles").message
        txn.check(kinds.ROLE, role.id, view.revision_of(kinds.ROLE, role.id))
        spec.roles.append(role.id)
    spec.projects.extend(dict.fromkeys(resolution.project_id(view, caller, text) for text in given.projects))
    spec.sources.extend(_networks(given.sources))
    return spec


def _networks(given: Sequence[str]) -> list[str]:
    """Return networks in their usual spelling. Raises Invalid."""
    try:
        return sorted({str(ip_network(each)) for each in given})
    except ValueError as error:
        raise Invalid(
            "api_token.spec.sources", f"{error}: an address or a network is wanted, for example 10.1.0.0/16"
        ) from error


def _refuse_more(view: View, caller: Caller, user: User, token: ApiToken) -> None:
    """Nobody gives what he has not, neither by a token that is narrowed or ends nor as one who may more. Raises Denied."""
    if caller.kind != "user":
        return
    by = token_of(view, caller.id, caller.token) if caller.token else None
    if caller.token and (by is None or is_lesser(by) or by.spec.sources):
        raise Denied(
            f"API token {caller.token} is narrowed, and so makes no other: ask by a certificate, or by one that is not"
        )
    if by is not None and moment(token.spec.expire_time) > moment(by.spec.expire_time):
        raise Denied(
            f"API token {caller.token} ends at {by.spec.expire_time.ToJsonString()}, and so makes none that ends later"
        )
    if user.name == caller.id:
        return
    if missing := lacking(authority_of(view, caller), narrowed(authority(view, user.name), token)):
        raise Denied(f"user {caller.id!r} may not {missing} where {user.name!r} may, and so cannot make a token that does it")
