"""From a signed request to who sent it: access keys, for interfaces whose clients sign what they send and send no token.

    text = canonical("GET", "/iaas/", {"action": "DescribeInstances", "zone": "z1", ...})
    caller = verified(view, seals, now, key="tok-1234abcd", text=text, signature="...", source="10.0.0.1")

The form is QingCloud's, version 1 (docs.qingcloud.com, "Signature"): method, path and the sorted parameters but `signature`,
each on a line; HMAC-SHA256 (RFC 2104, FIPS 180-4) in base64. Percent-encoding is RFC 3986's: A-Z a-z 0-9 - _ . ~ stay.
A signature says nothing of when it was made: whoever takes requests refuses what is too old, by the time that is part of what
is signed; clients send a signed request again, so that one seen before is no sign of an attack. HMAC-SHA1 is not taken.

An access key is an API token that signs (decision 0037): narrowed, ended, disabled and taken back like any other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final
from urllib.parse import quote

from cairn.controller.api.bearer import may_come_from, stands
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.errors import TryAgain
from cairn.proto.sealing import SealError, Seals
from cairn.proto.v1.api_token_pb2 import ApiTokenSpec

# What is signed with where there is no such key: whoever guesses waits as long.
_NOBODYS: Final = "A" * 43


def canonical(method: str, path: str, parameters: Mapping[str, str]) -> str:
    """Return what is signed. parameters: decoded; "signature" is left out, empty values stay."""
    pairs = sorted((name.encode(), value) for name, value in parameters.items() if name != "signature")
    return "\n".join([method, path, "&".join(f"{_encoded(name)}={_encoded(value.encode())}" for name, value in pairs)])


def _encoded(text: bytes) -> str:
    return quote(text, safe="-_.~")


def signature_of(secret: str, text: str) -> str:
    """Return the signature of a text: base64, 44 characters."""
    return base64.b64encode(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()).decode()


def secret_id(token: str) -> str:
    """Return the id of the sealed record of what a token signs with."""
    return f"{kinds.API_TOKEN.name}/{token}"


def secret_of(view: View, seals: Seals, token: str) -> str:
    """Return what a token signs with. Raises TryAgain: this controller cannot open it, or it is not there any more."""
    sealed = view.get(kinds.SECRET, secret_id(token))
    if sealed is None:
        raise TryAgain(f"what API token {token} signs with is not there")
    try:
        return seals.open(sealed).decode()
    except SealError as error:
        raise TryAgain(f"API token {token}: {error}; ask another controller") from error


def verified(view: View, seals: Seals, now: datetime, *, key: str, text: str, signature: str, source: str) -> Caller | None:
    """Return who has signed a text; None: nobody, and it is not said what is wrong. Raises TryAgain.

    key: the id of an access key, as it was sent; source: the address it came from, empty: there is none.
    """
    token = view.get(kinds.API_TOKEN, key)
    user = view.get(kinds.USER, token.spec.user) if token is not None else None
    signs = token is not None and token.spec.type == ApiTokenSpec.TYPE_SIGNING
    wanted = signature_of(secret_of(view, seals, key) if signs else _NOBODYS, text)
    right = hmac.compare_digest(wanted.encode(), signature.encode())
    if token is None or user is None or not signs or not right or not may_come_from(token, source):
        return None
    caller = Caller("user", user.name, token.id)
    return caller if stands(view, caller, now) else None
