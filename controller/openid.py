"""From an OpenID provider's word to who somebody is: ID tokens (OpenID Connect Core 1.0, section 3.1.3.7), judged.

    claims = await identities.claims(provider, id_token, nonce)     # raises NotTrusted, Unanswered

A token counts when a key of the provider signed it (asymmetrically: who verifies could make it otherwise), for the client that
the provider's record names, for this login (nonce), lately. Keys are fetched where the provider's own description says, are
kept for an hour, and are asked for again at once when a token names one that is not among them: keys change without notice.
A provider that is slow or gone keeps those waiting who log in by it, for some seconds, and nobody else.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Protocol

import httpx2
from cairn.proto.seams import Clock
from cairn.proto.v1.identity_provider_pb2 import IdentityProvider, IdentityProviderSpec
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

# What the standard names, and the library takes as safe.
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
# Clocks may be this far apart, and a token is this old at most.
LEEWAY: Final = timedelta(seconds=60)
AGE_MAX: Final = timedelta(minutes=10)
TOKEN_CHARACTERS_MAX: Final = 16 << 10
KEYS_KEEP_S: Final = 3600.0
# Between two fetches of one provider's keys, whoever asks with whatever name of a key.
FETCH_EVERY_S: Final = 10.0
FETCH_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 256 << 10
# Who waits for providers, of all who log in; and providers whose keys are known.
WAITING_MAX: Final = 64
PROVIDERS_MAX: Final = 64
GROUPS_MAX: Final = 1000
SUBJECT_CHARACTERS_MAX: Final = 255
USER_CLAIM: Final = "preferred_username"
GROUPS_CLAIM: Final = "groups"
_URL: Final = re.compile(r"https://[!-~]+")


class NotTrusted(Exception):
    """A token that proves nothing; the sentence is for whoever sent it."""


class Unanswered(Exception):
    """The provider cannot be asked now."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a provider says of somebody. name: what it calls him, may change; subject: never does."""

    subject: str
    name: str
    groups: tuple[str, ...]


class Identities(Protocol):
    """What judges ID tokens."""

    async def claims(self, provider: IdentityProvider, id_token: str, nonce: str) -> Claims:
        """Return whom a token is about. Raises NotTrusted, Unanswered."""
        ...


@dataclass(slots=True)
class _Keys:
    """Those of one provider; when they were fetched, and when that was tried last (the loop's time)."""

    keys: KeySet | None = None
    fetched_s: float = float("-inf")
    tried_s: float = float("-inf")
    failed: str = "it was not asked yet"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class HttpIdentities:
    """Judges by what providers publish."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # By what a provider's keys hang on.
        self._known: dict[tuple[str, str, str], _Keys] = {}
        self._waiting = 0

    async def claims(self, provider: IdentityProvider, id_token: str, nonce: str) -> Claims:
        """See Identities."""
        kid = _checked(id_token)
        keys = await self._keys(provider, kid)
        try:
            token = jwt.decode(id_token, keys, algorithms=list(ALGORITHMS))
        except (JoseError, ValueError, TypeError) as error:
            raise NotTrusted("no key of the identity provider has signed it") from error
        return judged(provider.spec, token.claims, nonce, self._clock.now())

    async def _keys(self, provider: IdentityProvider, kid: str) -> KeySet:
        """Return a provider's keys: those known, unless they are old, or lack the one that is meant. Raises Unanswered."""
        spec = provider.spec
        if len(self._known) >= PROVIDERS_MAX:
            self._known.clear()
        known = self._known.setdefault((provider.id, spec.issuer, spec.ca_pem), _Keys())
        if self._waiting >= WAITING_MAX:
            raise Unanswered("too many wait for it")
        self._waiting += 1
        try:
            async with known.lock:
                await self._freshen(spec, known, kid)
        finally:
            self._waiting -= 1
        if known.keys is None:
            raise Unanswered(known.failed)
        return known.keys

    async def _freshen(self, spec: IdentityProviderSpec, known: _Keys, kid: str) -> None:
        """Fetch keys if those that are known are old, or the one that is meant is not among them. Raises Unanswered."""
        now_s = asyncio.get_running_loop().time()
        if now_s - known.fetched_s >= KEYS_KEEP_S:
            # One may have been taken back.
            known.keys = None
        if (known.keys is not None and _has(known.keys, kid)) or now_s - known.tried_s < FETCH_EVERY_S:
            return
        known.tried_s = now_s
        try:
            async with asyncio.timeout(2 * FETCH_S):
                known.keys = await fetched(spec)
            known.fetched_s = asyncio.get_running_loop().time()
        except (Unanswered, TimeoutError) as error:
            known.failed = str(error) or f"it does not answer within {2 * FETCH_S:.0f} s"
            raise Unanswered(known.failed) from error


def _checked(id_token: str) -> str:
    """Return the name of the key that a token says it is signed with. Raises NotTrusted."""
    if len(id_token) > TOKEN_CHARACTERS_MAX:
        raise NotTrusted(f"it is longer than {TOKEN_CHARACTERS_MAX} characters")
    try:
        header = jws.extract_compact(id_token.encode()).headers()
    except (JoseError, ValueError, TypeError) as error:
        raise NotTrusted("it is no ID token") from error
    if header.get("alg") not in ALGORITHMS:
        raise NotTrusted(f"it is signed by {str(header.get('alg'))[:20]!r}; one of {', '.join(ALGORITHMS)} is wanted")
    kid = header.get("kid", "")
    return kid if isinstance(kid, str) else ""


def _has(keys: KeySet, kid: str) -> bool:
    return not kid or any(key.kid == kid for key in keys.keys)


async def fetched(spec: IdentityProviderSpec) -> KeySet:
    """Return the keys a provider publishes now. Raises Unanswered."""
    described = await _get(spec, f"{spec.issuer.rstrip('/')}/.well-known/openid-configuration")
    if described.get("issuer") != spec.issuer:
        raise Unanswered(f"it calls itself {str(described.get('issuer'))[:200]!r}, not {spec.issuer!r}")
    where = described.get("jwks_uri")
    if not isinstance(where, str) or not _URL.fullmatch(where):
        raise Unanswered("it does not say where its keys are (jwks_uri)")
    published = await _get(spec, where)
    usable = [key for key in published.get("keys", []) if isinstance(key, dict) and key.get("use", "sig") == "sig"]
    try:
        return KeySet.import_key_set({"keys": [key for key in usable if key.get("kty") in ("RSA", "EC", "OKP")]})
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise Unanswered(f"its keys cannot be read: {error}") from error


async def _get(spec: IdentityProviderSpec, url: str) -> Mapping[str, Any]:
    """Return a document of a provider's. Raises Unanswered."""
    body = b""
    try:
        trusted = ssl.create_default_context(cadata=spec.ca_pem or None)
        # Without proxies that the environment of this process happens to name.
        async with (
            httpx2.AsyncClient(verify=trusted, timeout=FETCH_S, trust_env=False) as client,
            client.stream("GET", url, headers={"accept": "application/json"}) as answer,
        ):
            if answer.status_code != httpx2.codes.OK:
                raise Unanswered(f"{url} answers {answer.status_code}")
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise Unanswered(f"{url} answers more than {ANSWER_BYTES_MAX >> 10} KiB")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise Unanswered(f"{url}: {str(error) or type(error).__name__}") from error
    try:
        document = json.loads(body)
    except ValueError as error:
        raise Unanswered(f"{url} answers what is no JSON") from error
    if not isinstance(document, dict):
        raise Unanswered(f"{url} answers no object")
    return document


def judged(spec: IdentityProviderSpec, said: Mapping[str, Any], nonce: str, now: datetime) -> Claims:
    """Return what a token says whose signature is good, if it is for us, for this login, and lately. Raises NotTrusted."""
    if said.get("iss") != spec.issuer:
        raise NotTrusted(f"it is from {str(said.get('iss'))[:200]!r}, not from {spec.issuer!r}")
    audience = said.get("aud")
    audience = [audience] if isinstance(audience, str) else audience
    if not isinstance(audience, list) or spec.client_id not in audience or said.get("azp", spec.client_id) != spec.client_id:
        raise NotTrusted(f"it is for {str(said.get('aud'))[:200]!r}, not for {spec.client_id!r}")
    # A device code has none (RFC 8628).
    if said.get("nonce", "") != nonce:
        raise NotTrusted("it is not of this login (its nonce is another)")
    made, ends = _moment(said, "iat"), _moment(said, "exp")
    if made > now + LEEWAY:
        raise NotTrusted(f"it was made at {made:%H:%M:%S} UTC, and here it is {now:%H:%M:%S}: is that clock right?")
    if now > min(ends + LEEWAY, made + AGE_MAX):
        raise NotTrusted(f"its time is over: it was made at {made:%H:%M:%S} UTC, and here it is {now:%H:%M:%S}; log in again")
    subject = said.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARACTERS_MAX:
        raise NotTrusted(f"it says nothing of whom it is about (sub: 1 to {SUBJECT_CHARACTERS_MAX} characters)")
    name, groups = said.get(spec.user_claim or USER_CLAIM), said.get(spec.groups_claim or GROUPS_CLAIM, [])
    groups = [groups] if isinstance(groups, str) else groups
    if not isinstance(groups, list) or len(groups) > GROUPS_MAX:
        raise NotTrusted(f"what it says of groups is no list, or of more than {GROUPS_MAX}")
    return Claims(subject, name if isinstance(name, str) else "", tuple(each for each in groups if isinstance(each, str)))


def _moment(said: Mapping[str, Any], claim: str) -> datetime:
    """Raises NotTrusted."""
    with suppress(ValueError, OverflowError, OSError):
        value = said.get(claim)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
    raise NotTrusted(f"it does not say when ({claim})")


class FakeIssuer:
    """An identity provider that is here: its tokens are what they say, with a seal of whichever key counts now.

    gone: it does not answer; slow_s: after how long it does; key: the one that counts. noticed: called with "gone", "slow" or
    "key" when that made a difference to somebody.
    """

    def __init__(self) -> None:
        self.gone, self.slow_s, self.key = False, 0.0, 1
        self.noticed: Callable[[str], object] = bool

    def issued(
        self,
        issuer: str,
        subject: str,
        nonce: str,
        now: datetime,
        *,
        audience: str,
        name: str = "",
        groups: tuple[str, ...] = (),
    ) -> str:
        """Return an ID token, good for five minutes."""
        at = int(now.timestamp())
        said = {
            "iss": issuer, "sub": subject, "aud": audience, "nonce": nonce, "iat": at, "exp": at + 300,
            USER_CLAIM: name, GROUPS_CLAIM: list(groups),
        }  # fmt: skip
        text = json.dumps(said, sort_keys=True)
        return f"{self.seal(text)}.{text}"

    def seal(self, text: str) -> str:
        """Return what shows that a text is its."""
        return sha256(f"{self.key} {text}".encode()).hexdigest()


class FakeIdentities:
    """Judges by one that is here."""

    def __init__(self, clock: Clock, issuer: FakeIssuer) -> None:
        self._clock, self._issuer = clock, issuer

    async def claims(self, provider: IdentityProvider, id_token: str, nonce: str) -> Claims:
        """See Identities."""
        if len(id_token) > TOKEN_CHARACTERS_MAX:
            raise NotTrusted(f"it is longer than {TOKEN_CHARACTERS_MAX} characters")
        if self._issuer.slow_s:
            self._issuer.noticed("slow")
            await asyncio.sleep(min(self._issuer.slow_s, 2 * FETCH_S))
        if self._issuer.gone or self._issuer.slow_s > 2 * FETCH_S:
            self._issuer.noticed("gone")
            raise Unanswered("it does not answer")
        seal, _, text = id_token.partition(".")
        if seal != self._issuer.seal(text):
            self._issuer.noticed("key")
            raise NotTrusted("no key of the identity provider has signed it")
        return judged(provider.spec, json.loads(text), nonce, self._clock.now())
