"""Judging ID tokens whose keys are fetched: what is forged, what providers get wrong, how often they are asked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cairn.controller import openid
from cairn.controller.openid import Claims, NotTrusted, Unanswered
from cairn.proto.seams import SystemClock
from cairn.proto.v1.identity_provider_pb2 import IdentityProvider, IdentityProviderSpec
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from tests.conformance.openid_kit import CLIENT, KeyServer, key_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KeyServer]:
    with key_server(tmp_path, SystemClock()) as server:
        yield server


async def judged(server: KeyServer, token: str, nonce: str = "n", **spec: Any) -> Claims:
    given: dict[str, Any] = {"issuer": server.issuer, "client_id": CLIENT, "ca_pem": server.ca_pem}
    provider = IdentityProvider(id="idp-00000001", name="corp", spec=IdentityProviderSpec(**(given | spec)))
    return await server.identities.claims(provider, token, nonce)


async def why(server: KeyServer, token: str, **spec: Any) -> str:
    with pytest.raises(NotTrusted) as refused:
        await judged(server, token, **spec)
    return str(refused.value)


async def unanswered(server: KeyServer, token: str, **spec: Any) -> str:
    with pytest.raises(Unanswered) as refused:
        await judged(server, token, **spec)
    return str(refused.value)


async def test_what_a_good_token_says(server: KeyServer) -> None:
    token = server.signed(groups=["/a", 7, "/b"], mail="ada@corp.example", roles="one")
    assert await judged(server, token) == Claims("s-1", "", ("/a", "/b"))
    assert await judged(server, token, user_claim="mail", groups_claim="roles") == Claims("s-1", "ada@corp.example", ("one",))
    several = server.signed(aud=[CLIENT, "other"], azp=CLIENT, nonce=None)
    assert (await judged(server, several, nonce="")).subject == "s-1"


async def test_what_nobody_signed(server: KeyServer) -> None:
    good = server.signed()
    header, body, signature = good.split(".")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
    assert "'none'" in await why(server, f"{none}.{body}.")
    # By the public key as if it were a shared secret.
    named = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": str(server.key.kid)}).encode()).decode().rstrip("=")
    shared = hmac.new(server.key.as_pem(private=False), f"{named}.{body}".encode(), hashlib.sha256).digest()
    assert "'HS256'" in await why(server, f"{named}.{body}.{base64.urlsafe_b64encode(shared).decode().rstrip('=')}")
    unsigned = "no key of the identity provider has signed it"
    other = RSAKey.generate_key(2048, {"kid": str(server.key.kid)})
    assert await why(server, jwt.encode({"alg": "RS256", "kid": str(other.kid)}, {"iss": server.issuer}, other)) == unsigned
    assert await why(server, f"{header}.{body}.{signature[:-6]}AAAAAA") == unsigned
    forged = base64.urlsafe_b64encode(json.dumps({"sub": "root"}).encode()).decode().rstrip("=")
    assert await why(server, f"{header}.{forged}.{signature}") == unsigned
    elliptic = ECKey.generate_key("P-256", {"kid": "mine"})
    own = jwt.encode({"alg": "ES256", "kid": "mine", "jwk": elliptic.as_dict(private=False)}, {"sub": "root"}, elliptic)
    assert await why(server, own) == unsigned, "a key in the token's own header is nobody's"
    for text in ("", "a.b", "a.b.c", "\u2603.x.y", f"{header}.{body}.{signature}.x", "." * 100):
        assert await why(server, text) in ("it is no ID token", unsigned)


@pytest.mark.parametrize(
    ("claims", "say"),
    [
        ({"iss": "https://other.example"}, "it is from 'https://other.example'"),
        ({"iss": None}, "it is from 'None'"),
        ({"aud": None}, "it is for 'None'"),
        ({"aud": {"cairn": 1}}, "it is for"),
        ({"aud": [CLIENT, "other"], "azp": "other"}, "it is for"),
        ({"nonce": None}, "it is not of this login"),
        ({"nonce": 7}, "it is not of this login"),
        ({"exp": None}, "it does not say when (exp)"),
        ({"exp": "soon"}, "it does not say when (exp)"),
        ({"iat": True}, "it does not say when (iat)"),
        ({"iat": 1e300}, "it does not say when (iat)"),
        ({"exp": 1}, "its time is over"),
        ({"iat": 1}, "its time is over"),
        ({"sub": None}, "it says nothing of whom it is about"),
        ({"sub": ""}, "it says nothing of whom it is about"),
        ({"sub": 7}, "it says nothing of whom it is about"),
        ({"sub": "x" * 256}, "it says nothing of whom it is about"),
        ({"groups": {"/ops": 1}}, "what it says of groups is no list"),
        ({"groups": ["g"] * 1001}, "what it says of groups is no list, or of more than 1000"),
    ],
)
async def test_what_a_signed_token_does_not_say(server: KeyServer, claims: dict[str, Any], say: str) -> None:
    assert (await why(server, server.signed(**claims))).startswith(say)


@pytest.mark.parametrize(
    ("said", "say"),
    [
        ({"issuer": "https://evil.example"}, "it calls itself 'https://evil.example'"),
        ({"issuer": None}, "it calls itself 'None'"),
        ({"jwks_uri": None}, "it does not say where its keys are"),
        ({"jwks_uri": "http://127.0.0.1/keys"}, "it does not say where its keys are"),
        ({"jwks_uri": "file:///etc/passwd"}, "it does not say where its keys are"),
        ({"more": "x" * (openid.ANSWER_BYTES_MAX + 1)}, "answers more than 256 KiB"),
    ],
)
async def test_what_a_provider_says_of_itself(server: KeyServer, said: dict[str, Any], say: str) -> None:
    server.said = said
    assert say in await unanswered(server, server.signed())


async def test_answers_that_are_no_keys(server: KeyServer) -> None:
    token = server.signed()
    assert "answers 404" in await unanswered(server, token, issuer=f"{server.issuer}/other")
    assert "CERTIFICATE_VERIFY_FAILED" in await unanswered(server, token, ca_pem="")


async def test_a_provider_is_asked_once_an_hour_and_for_a_new_key_at_once(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [server.signed(sub=f"s-{number}") for number in range(20)]
    await asyncio.gather(*(judged(server, token) for token in tokens))
    assert server.asked == ["/.well-known/openid-configuration", "/keys"]
    server.rotate()
    for number in range(5):
        await why(server, jwt.encode({"alg": "RS256", "kid": f"guess-{number}"}, {"sub": "x"}, server.key))
    assert len(server.asked) == 2, "no token makes it ask more often than every ten seconds"
    monkeypatch.setattr(openid, "FETCH_EVERY_S", 0.0)
    assert (await judged(server, server.signed())).subject == "s-1"
    assert len(server.asked) == 4
    await judged(server, server.signed())
    assert len(server.asked) == 4


async def test_keys_of_a_provider_that_is_gone_are_good_for_an_hour(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openid, "FETCH_EVERY_S", 0.0)
    await judged(server, server.signed())
    server.gone = True
    assert (await judged(server, server.signed())).subject == "s-1"
    unknown = jwt.encode({"alg": "RS256", "kid": "unknown"}, {"sub": "x"}, server.key)
    assert "answers 503" in await unanswered(server, unknown)
    assert (await judged(server, server.signed())).subject == "s-1", "what is asked for in vain takes nothing from others"
    monkeypatch.setattr(openid, "KEYS_KEEP_S", 0.0)
    assert "answers 503" in await unanswered(server, server.signed())


async def test_so_many_wait_and_no_more(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openid, "WAITING_MAX", 2)
    tokens = [server.signed(sub=f"s-{number}") for number in range(5)]
    answers = await asyncio.gather(*(judged(server, token) for token in tokens), return_exceptions=True)
    assert len([each for each in answers if isinstance(each, Claims)]) == 2
    assert {str(each) for each in answers if isinstance(each, Unanswered)} == {"too many wait for it"}
