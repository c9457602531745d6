"""The provider does what a client of ours will rely on, asked by a client that is not ours."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from authlib.common.security import generate_token
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from cairn.net import namespace
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidKeyIdError
from joserfc.jwk import KeySet

from tests.lab.hosts import run
from tests.openid.install import HERE, NotInstallable
from tests.openid.person import Person
from tests.openid.provider import Accounts, Provider, running

ACCOUNTS: Accounts = {
    "alice": {"groups": ["/ops"]},
    "bob": {"groups": [], "sub": "b-1", "preferred_username": "bob@example.org"},
}
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
SCOPE = "openid profile groups"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    try:
        with running(tmp_path_factory.mktemp("openid"), ACCOUNTS) as provider:
            yield provider
    except NotInstallable as error:
        pytest.skip(str(error))


@contextmanager
def listener() -> Iterator[str]:
    """A redirect URI on any port of loopback that answers, as a command that logs in has one."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"You may close this page.")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/callback"
        finally:
            server.shutdown()
            thread.join()


def client(provider: Provider, redirect_uri: str = "", client_id: str = "") -> Any:
    return OAuth2Client(
        client_id or provider.client_id,
        scope=SCOPE,
        redirect_uri=redirect_uri,
        code_challenge_method="S256",
        token_endpoint_auth_method="none",
        verify=provider.trust(),
        trust_env=False,
        timeout=20,
    )


def told(provider: Provider) -> dict[str, Any]:
    """What the provider says of itself."""
    answer: dict[str, Any] = asked(provider, provider.issuer + "/.well-known/openid-configuration").json()
    return answer


def asked(provider: Provider, url: str, **data: str) -> httpx2.Response:
    method = "POST" if data else "GET"
    return httpx2.request(method, url, data=data or None, verify=provider.trust(), trust_env=False, timeout=20)


def keys(provider: Provider) -> KeySet:
    return KeySet.import_key_set(asked(provider, told(provider)["jwks_uri"]).json())


def claims(provider: Provider, id_token: str, **wanted: str) -> dict[str, Any]:
    """Verify an ID token and return what it says."""
    token = jwt.decode(id_token, keys(provider), algorithms=["RS256"])
    names = {"iss": provider.issuer, "aud": provider.client_id} | wanted
    required: dict[str, Any] = {name: {"essential": True, "value": value} for name, value in names.items()}
    jwt.JWTClaimsRegistry(**required).validate(token.claims)
    return token.claims


def logged_in(provider: Provider, name: str, client_id: str = "", nonce: str = "n-1") -> tuple[Any, str, str]:
    """Log in with a code. Returns (client, address the browser was sent to, the code's verifier)."""
    verifier = generate_token(48)
    with listener() as redirect_uri:
        session = client(provider, redirect_uri, client_id)
        url, _ = session.create_authorization_url(
            told(provider)["authorization_endpoint"], code_verifier=verifier, nonce=nonce, state="s-1"
        )
        return session, Person(provider, name).visit(url), verifier


def token(provider: Provider, name: str, **keywords: str) -> dict[str, Any]:
    session, sent_to, verifier = logged_in(provider, name, **keywords)
    fetched: dict[str, Any] = session.fetch_token(
        told(provider)["token_endpoint"], authorization_response=sent_to, state="s-1", code_verifier=verifier
    )
    return fetched


def test_what_is_installed_is_pinned_by_digest_and_names_no_registry() -> None:
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]
    packages = [package for name, package in locked.items() if name]
    assert packages
    assert all("integrity" in package and "resolved" not in package for package in packages)


def test_a_code_becomes_an_id_token_that_names_the_groups(provider: Provider) -> None:
    said = claims(provider, token(provider, "alice", nonce="n-42")["id_token"], nonce="n-42")
    assert (said["sub"], said["preferred_username"], said["groups"]) == ("alice", "alice", ["/ops"])
    assert 3590 <= said["exp"] - said["iat"] <= 3610
    other = claims(provider, token(provider, "bob")["id_token"])
    assert (other["sub"], other["preferred_username"], other["groups"]) == ("b-1", "bob@example.org", [])


def test_a_token_for_another_client_says_so(provider: Provider) -> None:
    id_token = token(provider, "alice", client_id=provider.other_client_id)["id_token"]
    assert claims(provider, id_token, aud=provider.other_client_id)["aud"] == "other"


def test_a_code_is_good_once(provider: Provider) -> None:
    session, sent_to, verifier = logged_in(provider, "alice")
    endpoint = told(provider)["token_endpoint"]
    assert session.fetch_token(endpoint, authorization_response=sent_to, code_verifier=verifier)["id_token"]
    with pytest.raises(OAuthError, match="invalid_grant"):
        session.fetch_token(endpoint, authorization_response=sent_to, code_verifier=verifier)


def test_a_code_needs_its_verifier(provider: Provider) -> None:
    session, sent_to, _ = logged_in(provider, "alice")
    with pytest.raises(OAuthError, match="invalid_grant"):
        session.fetch_token(told(provider)["token_endpoint"], authorization_response=sent_to, code_verifier="x" * 48)


@pytest.mark.parametrize("challenge", [{}, {"code_challenge": "c" * 43, "code_challenge_method": "plain"}])
def test_without_a_hashed_challenge_there_is_no_code(provider: Provider, challenge: dict[str, str]) -> None:
    with listener() as redirect_uri:
        session = OAuth2Client(provider.client_id, scope=SCOPE, redirect_uri=redirect_uri)
        url, _ = session.create_authorization_url(told(provider)["authorization_endpoint"], **challenge)
        said = parse_qs(urlsplit(Person(provider, "alice").visit(url)).query)
    assert said["error"] == ["invalid_request"]
    assert "code" not in said


def test_a_person_may_refuse(provider: Provider) -> None:
    with listener() as redirect_uri:
        session = client(provider, redirect_uri)
        url, _ = session.create_authorization_url(told(provider)["authorization_endpoint"], code_verifier=generate_token(48))
        said = parse_qs(urlsplit(Person(provider, "alice").deny(url)).query)
    assert said["error"] == ["access_denied"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/other", "http://localhost:9/callback", "https://example.org/callback"])
def test_only_the_registered_address_gets_a_code(provider: Provider, uri: str) -> None:
    url, _ = client(provider, uri).create_authorization_url(
        told(provider)["authorization_endpoint"], code_verifier=generate_token(48)
    )
    refused = asked(provider, url)
    assert refused.status_code == 400
    assert "redirect_uri" in refused.text


def device(provider: Provider) -> dict[str, Any]:
    answer = asked(provider, told(provider)["device_authorization_endpoint"], client_id=provider.client_id, scope=SCOPE)
    began: dict[str, Any] = answer.raise_for_status().json()
    return began


def polled(provider: Provider, began: dict[str, Any]) -> dict[str, Any]:
    endpoint = told(provider)["token_endpoint"]
    fetched: dict[str, Any] = client(provider).fetch_token(endpoint, grant_type=DEVICE, device_code=began["device_code"])
    return fetched


def test_a_device_waits_until_it_is_approved(provider: Provider) -> None:
    began = device(provider)
    assert began["interval"] == 1
    with pytest.raises(OAuthError, match="authorization_pending"):
        polled(provider, began)
    Person(provider, "alice").approve(began["verification_uri_complete"])
    assert claims(provider, polled(provider, began)["id_token"])["groups"] == ["/ops"]
    with pytest.raises(OAuthError, match="invalid_grant"):
        polled(provider, began)


def test_a_device_may_be_refused(provider: Provider) -> None:
    began = device(provider)
    Person(provider, "alice").refuse(began["verification_uri_complete"])
    with pytest.raises(OAuthError, match="access_denied"):
        polled(provider, began)


def test_keys_are_replaced_and_logins_go_on(provider: Provider) -> None:
    old = token(provider, "alice")["id_token"]
    before = {key.kid for key in keys(provider).keys}
    session, sent_to, verifier = logged_in(provider, "alice")
    provider.rotate()
    after = {key.kid for key in keys(provider).keys}
    assert len(after) == 1
    assert not before & after
    with pytest.raises(InvalidKeyIdError):
        claims(provider, old)
    new = session.fetch_token(told(provider)["token_endpoint"], authorization_response=sent_to, code_verifier=verifier)
    assert claims(provider, new["id_token"])["sub"] == "alice"


def test_groups_and_lifetimes_change_with_the_next_token(provider: Provider) -> None:
    provider.set_groups("bob", ["/ops", "/eu"])
    provider.set_lifetime(7)
    try:
        said = claims(provider, token(provider, "bob")["id_token"])
        assert said["groups"] == ["/ops", "/eu"]
        assert said["exp"] - said["iat"] == 7
        with pytest.raises(ExpiredTokenError):
            jwt.JWTClaimsRegistry(now=said["exp"] + 1).validate(said)
    finally:
        provider.set_groups("bob", [])
        provider.set_lifetime(3600)


def test_it_is_slow_where_it_was_told_to_be(provider: Provider) -> None:
    provider.slow(60, "/jwks")
    try:
        assert told(provider)["issuer"] == provider.issuer
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.get(provider.issuer + "/jwks", verify=provider.trust(), trust_env=False, timeout=0.3)
    finally:
        provider.slow(0)
    asked_before = provider.times_asked("/jwks")
    assert keys(provider).keys
    assert provider.times_asked("/jwks") == asked_before + 1


def test_stopped_it_refuses_and_started_again_it_is_the_same(tmp_path: Path) -> None:
    try:
        with running(tmp_path, ACCOUNTS) as provider:
            id_token, pid = token(provider, "alice")["id_token"], int((tmp_path / "pid").read_text())
            provider.stop()
            assert not Path(f"/proc/{pid}").exists()
            with pytest.raises(httpx2.ConnectError):
                told(provider)
            provider.start()
            assert claims(provider, id_token)["sub"] == "alice"
    except NotInstallable as error:
        pytest.skip(str(error))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace needs root")
def test_a_server_of_a_lab_finds_it_on_its_own_loopback(tmp_path: Path) -> None:
    name = f"openid-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        with running(tmp_path, ACCOUNTS, namespaces=[name]) as provider:
            with namespace.opened(namespace.FOLDER / name) as handle, namespace.entered(handle):
                inside = told(provider)
            assert inside == told(provider)
    except NotInstallable as error:
        pytest.skip(str(error))
    finally:
        run("ip", "netns", "del", name)
