"""Identity providers: who vouches for people, so that they can log in. See logins.py for what is made of their word."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.bindings import refuse_letting_in
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.linking import refuse_exceeding
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import addressed, begin, updated
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.store.base import Record, Txn, View
from cairn.controller.words import several
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid
from cairn.proto.v1 import identity_provider_pb2, identity_provider_pb2_grpc
from cairn.proto.v1.identity_provider_pb2 import IdentityProvider, IdentityProviderSpec

SESSION_DEFAULT_S: Final = 8 * 3600
SESSION_MIN_S: Final = 60
SESSION_MAX_S: Final = 24 * 3600
PROVIDERS_MAX: Final = 16
GROUPS_MAX: Final = 256
SCOPES_MAX: Final = 16
# Of what is a provider's to choose: names of claims, scopes and groups, and its own address.
WORD_CHARACTERS_MAX: Final = 255
CA_CHARACTERS_MAX: Final = 64 << 10
RULES: Final = UpdateRules(
    mutable=(
        "labels",
        "spec.client_id",
        "spec.ca_pem",
        "spec.scopes",
        "spec.user_claim",
        "spec.groups_claim",
        "spec.groups",
        "spec.create_users",
        "spec.session_s",
        "spec.disabled",
        "spec.description",
    ),
    immutable=("name", "spec.issuer"),
)


class IdentityProviderService(identity_provider_pb2_grpc.IdentityProviderServiceServicer):
    """IdentityProviderService of proto/v1/identity_provider.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateIdentityProvider(
        self, request: identity_provider_pb2.CreateIdentityProviderRequest, context: Any
    ) -> IdentityProvider:
        """Trust a provider, from now on."""

        def decide(view: View, caller: Caller) -> Decided[IdentityProvider]:
            given = request.identity_provider
            decided, provider = begin(view, caller, self._core, nouns.IDENTITY_PROVIDER, given)
            provider.spec.CopyFrom(given.spec)
            provider.spec.session_s = given.spec.session_s or SESSION_DEFAULT_S
            _check(provider.spec)
            refuse_letting_in(view, caller, provider.spec.groups.values())
            if len(list(view.ids(kinds.IDENTITY_PROVIDER))) >= PROVIDERS_MAX:
                say = f"there are {PROVIDERS_MAX} identity providers, the most there can be: delete some"
                raise BadState("identity_provider", provider.name, say)
            decided.txn.create(kinds.IDENTITY_PROVIDER, provider.id, provider)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def GetIdentityProvider(
        self, request: identity_provider_pb2.GetIdentityProviderRequest, context: Any
    ) -> IdentityProvider:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.IDENTITY_PROVIDER, request)

    async def ListIdentityProviders(
        self, request: identity_provider_pb2.ListIdentityProvidersRequest, context: Any
    ) -> identity_provider_pb2.ListIdentityProvidersResponse:
        """Return a page."""
        answer = identity_provider_pb2.ListIdentityProvidersResponse
        return await self._core.listings.list(caller_of(context), nouns.IDENTITY_PROVIDER, request, answer)

    async def UpdateIdentityProvider(
        self, request: identity_provider_pb2.UpdateIdentityProviderRequest, context: Any
    ) -> IdentityProvider:
        """Change what is taken from its word; disabled, whoever logged in by it is out at once."""

        def amend(view: View, caller: Caller, _txn: Txn, new: IdentityProvider, old: Record[IdentityProvider]) -> None:
            new.spec.session_s = new.spec.session_s or SESSION_DEFAULT_S
            _check(new.spec)
            before = old.message.spec
            refuse_letting_in(view, caller, set(new.spec.groups.values()) - set(before.groups.values()))
            if before.disabled and not new.spec.disabled:
                refuse_letting_in(view, caller, new.spec.groups.values())
            # Whoever says which server speaks for it can be anybody who logs in by it.
            if (before.ca_pem, before.client_id) != (new.spec.ca_pem, new.spec.client_id):
                for id in view.by(kinds.USER, "provider", new.id):
                    refuse_exceeding(view, caller, view.get(kinds.USER, id))

        def decide(view: View, caller: Caller) -> Decided[IdentityProvider]:
            decided, _, _ = updated(view, caller, self._core, nouns.IDENTITY_PROVIDER, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteIdentityProvider(
        self, request: identity_provider_pb2.DeleteIdentityProviderRequest, context: Any
    ) -> IdentityProvider:
        """Trust it no longer, once no user logs in by it."""

        def decide(view: View, caller: Caller) -> Decided[IdentityProvider]:
            record = addressed(view, caller, nouns.IDENTITY_PROVIDER, request, verb=Verb.DELETE)
            resolution.check_etag("etag", record, request.etag, required=False, title="identity provider")
            return removal(view, record)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchIdentityProviders(
        self, request: identity_provider_pb2.WatchIdentityProvidersRequest, context: Any
    ) -> AsyncIterator[identity_provider_pb2.WatchIdentityProvidersResponse]:
        """Follow them."""
        answer = identity_provider_pb2.WatchIdentityProvidersResponse
        async for response in self._core.watches.watch(caller_of(context), nouns.IDENTITY_PROVIDER, request, answer):
            yield response


def removal(view: View, record: Record[IdentityProvider]) -> Decided[IdentityProvider]:
    """Return the decision to remove a provider. Raises BadState."""
    provider = record.message
    if by := view.count_by(kinds.USER, "provider", provider.id):
        say = (
            f"{several(by, 'user')} may log in by {provider.name!r}: delete them, or unlink them (cairn user unlink); "
            "disabled, nobody can log in by it"
        )
        raise BadState("identity_provider", provider.name, say)
    # Whoever links a user to it checks its revision.
    txn = Txn("api").check(kinds.IDENTITY_PROVIDER, provider.id, record.mod_revision)
    txn.delete(kinds.IDENTITY_PROVIDER, provider.id)
    resolution.release(txn, view, nouns.IDENTITY_PROVIDER, "", provider.name, provider.id)
    said = [("Deleted", f"identity provider {provider.name} is not trusted any more")]
    erased = nouns.IDENTITY_PROVIDER.project(view, record)
    return Decided(txn, nouns.IDENTITY_PROVIDER, provider.id, provider.name, "", erased=erased, events=said)


def _check(spec: IdentityProviderSpec) -> None:
    """Raises Invalid."""
    field = "identity_provider.spec"
    _word(f"{field}.issuer", spec.issuer)
    if not spec.issuer.startswith("https://") or any(each in spec.issuer for each in "?#@"):
        raise Invalid(f"{field}.issuer", f"{spec.issuer!r} is no address like https://id.example/realms/corp")
    _word(f"{field}.client_id", spec.client_id)
    _authorities(f"{field}.ca_pem", spec.ca_pem)
    _words(f"{field}.scopes", spec.scopes, SCOPES_MAX)
    if any(" " in each for each in spec.scopes):
        raise Invalid(f"{field}.scopes", "a scope is one word: give several one by one")
    for name in ("user_claim", "groups_claim"):
        if getattr(spec, name):
            _word(f"{field}.{name}", getattr(spec, name))
    _words(f"{field}.groups", list(spec.groups), GROUPS_MAX)
    for theirs, ours in sorted(spec.groups.items()):
        validation.name(f"{field}.groups[{theirs!r}]", ours)
    if not SESSION_MIN_S <= spec.session_s <= SESSION_MAX_S:
        raise Invalid(f"{field}.session_s", f"{spec.session_s} is not between {SESSION_MIN_S} and {SESSION_MAX_S} (24 hours)")
    validation.description(f"{field}.description", spec.description)


def _words(field: str, given: Sequence[str], most: int) -> None:
    validation.at_most(field, given, most, "of them")
    for each in given:
        _word(field, each)


def _word(field: str, text: str) -> None:
    if not 0 < len(text) <= WORD_CHARACTERS_MAX or not text.isprintable():
        raise Invalid(field, f"1 to {WORD_CHARACTERS_MAX} printable characters are wanted, {text[:40]!r} has {len(text)}")


def _authorities(field: str, pem: str) -> None:
    if len(pem) > CA_CHARACTERS_MAX:
        raise Invalid(field, f"{len(pem)} characters long, at most {CA_CHARACTERS_MAX} are allowed")
    if not pem:
        return
    try:
        ssl.create_default_context(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise Invalid(field, "it has no certificate in PEM") from error
