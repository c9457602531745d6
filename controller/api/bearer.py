"""From the token that a caller sends along to who he is.

    authorization: Bearer cairn_tok-1234abcd_<43 characters of base64url>

The middle names the record, so that it is looked up and never searched for; the rest is 256 random bits, of which the store has
the SHA-256. A slow hash (bcrypt, Argon2) would make every call dear and nothing safer: those are for what people choose and
can be guessed. What is wrong with a token is never said, all that is wrong costs the same (one look at the store), and the
comparison takes no longer for a good beginning. Whoever shows bad ones too often from one address is answered without a look;
what was good there lately still is, so that nobody shuts out his neighbours behind one address.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final
from urllib.parse import unquote

from cairn.controller.api import nouns, resolution
from cairn.controller.api.decision import Views
from cairn.controller.model.authority import token_of
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.errors import Unauthenticated
from cairn.proto.seams import Clock, Ids, moment
from cairn.proto.v1.api_token_pb2 import ApiToken

HEADER: Final = "authorization"
SECRET_BYTES: Final = 32
SHA256_BYTES: Final = 32
_TEXT: Final = re.compile(r"cairn_(tok-[0-9a-z]{8})_([A-Za-z0-9_-]{43})")
# What all bad ones are answered.
SAY: Final = "the token is not accepted: it is unknown, has ended, was taken back, or may not come from this address"
# Bad ones from one address before they are not looked at any more, how fast that is forgiven, and how many addresses are known.
BAD_MAX: Final = 20
FORGIVEN_PER_S: Final = 0.5
ADDRESSES_MAX: Final = 4096
GOOD_MAX: Final = 4096
# Who has one address of IPv6 has as many as he likes of its network.
_IPV6_PREFIX: Final = 64
_NOBODYS: Final = bytes(SHA256_BYTES)


def new_secret(ids: Ids) -> str:
    """Return a secret that nobody guesses."""
    return base64.urlsafe_b64encode(ids.secret(SECRET_BYTES)).decode().rstrip("=")


def text_of(id: str, secret: str) -> str:
    """Return what a caller sends along."""
    return f"cairn_{id}_{secret}"


def digest_of(secret: str) -> bytes:
    """Return what the store has of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def sent(metadata: Iterable[Any] | None) -> str | None:
    """Return the token of a call; None: there is none. Raises Unauthenticated when it is sent otherwise than once."""
    found = [value for key, value in metadata or () if key == HEADER]
    if not found:
        return None
    scheme, _, text = str(found[0]).partition(" ")
    if len(found) > 1 or scheme.lower() != "bearer":
        raise Unauthenticated(SAY)
    return text


def source_of(peer: str) -> str:
    """Return the address of gRPC's name for a caller ("ipv4:10.0.0.1:5000", "ipv6:[::1]:5000"); empty: it has none."""
    family, _, rest = unquote(peer).partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    try:
        address = ip_address(rest.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def stands(view: View, caller: Caller, now: datetime) -> bool:
    """Tell whether the token that a caller asks by is good for anything now. Who has none asks by a certificate."""
    if not caller.token:
        return True
    token = token_of(view, caller.id, caller.token)
    return token is not None and now < moment(token.spec.expire_time)


class Bearers:
    """Recognises callers by their tokens."""

    def __init__(self, views: Views, freshen: Callable[[], Awaitable[View]], clock: Clock) -> None:
        self._views, self._freshen, self._clock = views, freshen, clock
        self._tries = Tries(clock)

    async def recognise(self, text: str, peer: str) -> Caller:
        """Return whom a token stands for. Raises Unauthenticated, TryAgain."""
        source, digest = source_of(peer), hashlib.sha256(text.encode()).digest()
        if not self._tries.may(source, digest):
            raise Unauthenticated(SAY)
        # One that was made through another controller a moment ago is good, too.
        caller = self._known(self._views.view, text, source) or self._known(await self._freshen(), text, source)
        self._tries.note(source, digest, good=caller is not None)
        if caller is None:
            raise Unauthenticated(SAY)
        return caller

    def _known(self, view: View, text: str, source: str) -> Caller | None:
        match = _TEXT.fullmatch(text)
        id, secret = (match[1], match[2]) if match is not None else ("", "")
        token = view.get(kinds.API_TOKEN, id)
        resolution.refuse_unknown(view, nouns.API_TOKEN, [id])
        right = _is_among(token.secret_sha256 if token is not None else _NOBODYS, digest_of(secret))
        user = view.get(kinds.USER, token.spec.user) if token is not None else None
        if token is not None and right:
            resolution.refuse_unknown(view, nouns.USER, [token.spec.user])
        if token is None or user is None or not right or not may_come_from(token, source):
            return None
        caller = Caller("user", user.name, token.id)
        return caller if stands(view, caller, self._clock.now()) else None


def _is_among(known: bytes, digest: bytes) -> bool:
    """Compare with each of them, in the same time whatever they are."""
    parts = [known[start : start + SHA256_BYTES] for start in range(0, len(known), SHA256_BYTES)]
    return sum(hmac.compare_digest(part, digest) for part in parts) > 0


def may_come_from(token: ApiToken, source: str) -> bool:
    """Tell whether a token is good from an address; empty: there is none."""
    if not token.spec.sources:
        return True
    return bool(source) and any(ip_address(source) in ip_network(each) for each in token.spec.sources)


class Tries:
    """How often bad tokens came from where: so many at once, and slowly more. Bounded: the oldest is forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Network -> (how many bad ones count, as of when); (network, digest of a good one).
        self._bad: OrderedDict[str, tuple[float, datetime]] = OrderedDict()
        self._good: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def may(self, source: str, digest: bytes) -> bool:
        """Tell whether one is looked at."""
        where = _network(source)
        return self._count(where) < BAD_MAX or (where, digest) in self._good

    def note(self, source: str, digest: bytes, *, good: bool) -> None:
        """Remember what came of one that was looked at."""
        where = _network(source)
        if good:
            self._good[where, digest] = None
            self._good.move_to_end((where, digest))
            if len(self._good) > GOOD_MAX:
                self._good.popitem(last=False)
            return
        self._good.pop((where, digest), None)
        self._bad[where] = (self._count(where) + 1, self._clock.now())
        self._bad.move_to_end(where)
        if len(self._bad) > ADDRESSES_MAX:
            self._bad.popitem(last=False)

    def _count(self, where: str) -> float:
        count, at = self._bad.get(where, (0.0, self._clock.now()))
        return max(0.0, count - FORGIVEN_PER_S * max(0.0, (self._clock.now() - at).total_seconds()))


def _network(source: str) -> str:
    """Return what is counted together."""
    if ":" not in source:
        return source
    return str(ip_network((source, _IPV6_PREFIX), strict=False))
