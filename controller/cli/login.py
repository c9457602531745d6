"""cairn login, logout: from a person at an OpenID provider to an API token in a file.

The provider is asked from here, by the code flow with PKCE (RFC 7636) and a redirection to this machine's loopback (RFC 8252),
or by a device code (RFC 8628) where there is no browser; what it answers, an ID token, goes to the controllers, who judge it.
No password and no secret of Cairn's passes through this program.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import webbrowser
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cairn.controller.cli.client import Session
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.settings import add_context, login_context

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import AsyncOAuth2Client
    from cairn.proto.v1.login_pb2 import LoginWay

# How long a person may take at the browser.
PERSON_S: Final = 300.0
ANSWER_S: Final = 20.0
CALLBACK: Final = "/callback"
DEVICE: Final = "urn:ietf:params:oauth:grant-type:device_code"
RANDOM_BYTES: Final = 48
REQUEST_LINE_MAX: Final = 16 << 10
PAGE: Final = (
    "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\nconnection: close\r\n\r\n"
    "<!doctype html><title>Cairn</title><p>You may close this page and go back to the terminal.\n"
)


async def login(
    session: Session, endpoints: tuple[str, ...], ca: Path | None, provider: str, *, device: bool, browser: bool, port: int
) -> None:
    """Log in, and keep the token where the context says. Raises Failure."""
    from cairn.proto import pki
    from cairn.proto.v1.login_pb2 import LoginRequest, ShowLoginsRequest

    context = login_context(session.settings.context, os.environ, endpoints, ca, session.settings.token_file)
    assert context.token is not None, "a context to log in to names where the token goes"
    session.ask_as_nobody(context)
    way = _chosen(list((await session.call("login", ShowLoginsRequest())).ways), provider)
    nonce = "" if device else _random(session)
    try:
        id_token = await _vouched(session, way, nonce, device=device, browser=browser, port=port)
    except TimeoutError as error:
        raise Failure(f"nothing came back from {way.issuer} in time", next="log in again") from error
    answer = await session.call("login", LoginRequest(provider=way.name, id_token=id_token, nonce=nonce))
    try:
        context.token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        pki.write_private(context.token, f"{answer.token}\n".encode())
    except OSError as error:
        raise Failure(f"cannot write {context.token}: {error.strerror}") from error
    kept = add_context(context) if endpoints else ""
    if not session.output.human:
        session.output.one(answer.api_token, lambda _token: ())
    ends = f"{answer.api_token.spec.expire_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
    groups = f", in {', '.join(answer.groups)}" if answer.groups else ""
    session.output.say(f"logged in as {answer.user}{groups} until {ends}; the token is in {context.token}{kept}")


async def logout(session: Session) -> None:
    """Take the token back that commands ask by, and remove its file. Raises Failure."""
    from cairn.proto.v1.api_token_pb2 import DeleteApiTokenRequest
    from cairn.proto.v1.auth_pb2 import WhoAmIRequest

    path = session.context.token
    if path is None:
        raise Failure("this context asks by a certificate: nobody is logged in", usage=True)
    try:
        me = await session.call("auth", WhoAmIRequest())
        if not me.token.spec.HasField("login"):
            say = f"API token {me.token.name} was not made by logging in, and others may use it"
            raise Failure(say, next=f"to take it back: cairn token delete {me.token.name}")
        await session.call("api_token", DeleteApiTokenRequest(id=me.token.id))
    except Failure as failure:
        if failure.status != "UNAUTHENTICATED":
            raise
        # It had ended, or was taken back already.
    path.unlink(missing_ok=True)
    session.output.say(f"logged out; {path} is removed")


def _random(session: Session) -> str:
    return base64.urlsafe_b64encode(session.ids.secret(RANDOM_BYTES)).decode()


def _chosen(ways: list[LoginWay], name: str) -> LoginWay:
    """Raises Failure."""
    found = [way for way in ways if not name or way.name == name]
    if len(found) == 1:
        return found[0]
    known = ", ".join(way.name for way in ways) or "none"
    if not ways:
        raise Failure("there is no identity provider to log in by", next="an administrator adds one: cairn idp create")
    say = f"there is no identity provider {name!r} (known: {known})" if name else f"say which: --provider, of {known}"
    raise Failure(say, usage=True)


async def _vouched(session: Session, way: LoginWay, nonce: str, *, device: bool, browser: bool, port: int) -> str:
    """Return the ID token that the provider gives after a person has agreed. Raises Failure, TimeoutError."""
    from authlib.common.errors import AuthlibBaseError
    from authlib.integrations.httpx_client import AsyncOAuth2Client
    from httpx2 import HTTPError

    try:
        client = AsyncOAuth2Client(
            way.client_id,
            scope=" ".join(way.scopes),
            code_challenge_method="S256",
            token_endpoint_auth_method="none",  # noqa: S106 - a public client has no secret
            verify=ssl.create_default_context(cadata=way.ca_pem or None),
            timeout=ANSWER_S,
        )
        async with client:
            described = await _json(client, f"{way.issuer.rstrip('/')}/.well-known/openid-configuration")
            if described.get("issuer") != way.issuer:
                raise Failure(f"{way.issuer} calls itself {described.get('issuer')!r}")
            if device:
                answer = await _by_device(session, client, described, " ".join(way.scopes))
            else:
                answer = await _by_code(session, client, described, nonce, browser=browser, port=port)
    except AuthlibBaseError as error:
        raise Failure(f"{way.issuer} refuses: {error.description or error.error}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise Failure(f"cannot talk to {way.issuer}: {str(error) or type(error).__name__}") from error
    id_token = answer.get("id_token")
    if not isinstance(id_token, str):
        raise Failure(f"{way.issuer} gives no ID token: is `openid` allowed for client {way.client_id!r}?")
    return id_token


async def _json(client: AsyncOAuth2Client, url: str, **data: str) -> Mapping[str, Any]:
    """Return a document of the provider's. Raises Failure, and what the client raises."""
    answer = await client.request("POST" if data else "GET", url, data=data or None, withhold_token=True)
    document = answer.json()
    if answer.is_error or not isinstance(document, dict):
        why = document.get("error_description", document.get("error", "")) if isinstance(document, dict) else ""
        raise Failure(f"{url} answers {answer.status_code} {why}".rstrip())
    return document


def _named(described: Mapping[str, Any], name: str, wanted: str) -> str:
    """Raises Failure."""
    url = described.get(name)
    if not isinstance(url, str):
        raise Failure(f"{described.get('issuer')} does not offer {wanted}")
    return url


async def _by_code(
    session: Session, client: AsyncOAuth2Client, described: Mapping[str, Any], nonce: str, *, browser: bool, port: int
) -> Mapping[str, Any]:
    verifier = _random(session)
    async with _loopback(port) as (redirect, came):
        client.redirect_uri = redirect
        at = _named(described, "authorization_endpoint", "logging in by a browser")
        url, state = client.create_authorization_url(at, code_verifier=verifier, nonce=nonce)
        session.output.say(f"log in at this address (without a browser: --device):\n{url}")
        if browser:
            await asyncio.to_thread(webbrowser.open, url)
        async with asyncio.timeout(PERSON_S):
            back = await came
        answer: Mapping[str, Any] = await client.fetch_token(
            _named(described, "token_endpoint", "tokens"), authorization_response=back, state=state, code_verifier=verifier
        )
        return answer


@asynccontextmanager
async def _loopback(port: int) -> AsyncIterator[tuple[str, asyncio.Future[str]]]:
    """Listen for the browser that the provider sends back; give the address, and what it will have come to."""
    came: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Who speaks no HTTP, or hangs up, is not the browser that is waited for.
        with suppress(ValueError, OSError, asyncio.IncompleteReadError):
            method, target, _ = (await reader.readline()).decode("ascii").split(" ", 2)
            if method == "GET" and target.partition("?")[0] == CALLBACK and not came.done():
                came.set_result(f"{redirect}?{target.partition('?')[2]}")
            writer.write(PAGE.encode())
            await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, "127.0.0.1", port, limit=REQUEST_LINE_MAX)
    except OSError as error:
        raise Failure(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}", next="give another --port, or --device"
        ) from error
    redirect = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{CALLBACK}"
    async with server:
        yield redirect, came


async def _by_device(
    session: Session, client: AsyncOAuth2Client, described: Mapping[str, Any], scope: str
) -> Mapping[str, Any]:
    from authlib.integrations.base_client import OAuthError

    at = _named(described, "device_authorization_endpoint", "logging in by a device code")
    began = await _json(client, at, client_id=str(client.client_id), scope=scope)
    code, shown = str(began.get("device_code", "")), str(began.get("user_code", ""))
    where = began.get("verification_uri_complete") or began.get("verification_uri", "")
    session.output.say(f"log in at this address, on any machine, with code {shown}:\n{where}")
    every_s, last_s = float(began.get("interval", 5)), min(PERSON_S, float(began.get("expires_in", PERSON_S)))
    async with asyncio.timeout(last_s):
        while True:
            await asyncio.sleep(every_s)
            try:
                answer: Mapping[str, Any] = await client.fetch_token(
                    _named(described, "token_endpoint", "tokens"), grant_type=DEVICE, device_code=code
                )
                return answer
            except OAuthError as error:
                if error.error == "slow_down":
                    every_s += 5
                elif error.error != "authorization_pending":
                    raise
