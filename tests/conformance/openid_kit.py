"""Identity providers for tests, with the same knobs: the fake one, and one whose keys are fetched over TLS and verified.

The second one is a key server: what it signs is made here, so that it can be wrong in every way. A whole provider is
tests/openid, and who logs in there is tests/e2e/test_login.py.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from cairn.controller.openid import FakeIdentities, FakeIssuer, HttpIdentities, Identities
from cairn.proto.pki import Authority, Identity
from cairn.proto.seams import Clock, SystemIds
from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "cairn"


class Vouching(Protocol):
    """An identity provider, and what judges its tokens."""

    identities: Identities
    issuer: str
    ca_pem: str

    def issued(self, subject: str, nonce: str, *, audience: str = CLIENT, name: str = "", groups: tuple[str, ...] = ()) -> str:
        """Return an ID token that is good for five minutes."""
        ...

    def rotate(self) -> None:
        """Have another key count from now on, and this one no longer."""
        ...

    def go(self, *, gone: bool) -> None:
        """Be away, or come back."""
        ...


class FakeProvider:
    """The one that is here."""

    issuer, ca_pem = "https://id.example/corp", ""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.fake = clock, FakeIssuer()
        self.identities: Identities = FakeIdentities(clock, self.fake)

    def issued(self, subject: str, nonce: str, *, audience: str = CLIENT, name: str = "", groups: tuple[str, ...] = ()) -> str:
        now = self._clock.now()
        return self.fake.issued(self.issuer, subject, nonce, now, audience=audience, name=name, groups=groups)

    def rotate(self) -> None:
        self.fake.key += 1

    def go(self, *, gone: bool) -> None:
        self.fake.gone = gone


class KeyServer:
    """What publishes keys, and signs with them. said: changes what it publishes; asked: paths, in order."""

    def __init__(self, clock: Clock, server: ThreadingHTTPServer, ca_pem: str) -> None:
        self._clock, self._server = clock, server
        self.issuer, self.ca_pem = f"https://127.0.0.1:{server.server_address[1]}", ca_pem
        self.identities: Identities = HttpIdentities(clock)
        self.gone = False
        self.asked: list[str] = []
        self.said: dict[str, Any] = {}
        self._number = 0
        self.rotate()

    def rotate(self) -> None:
        self._number += 1
        self.key = RSAKey.generate_key(2048, {"kid": f"k{self._number}", "use": "sig"})

    def go(self, *, gone: bool) -> None:
        self.gone = gone

    def issued(self, subject: str, nonce: str, *, audience: str = CLIENT, name: str = "", groups: tuple[str, ...] = ()) -> str:
        return self.signed(sub=subject, nonce=nonce, aud=audience, preferred_username=name, groups=list(groups))

    def signed(self, **claims: Any) -> str:
        """Return a token with these claims; None: without that one."""
        now = int(self._clock.now().timestamp())
        whole = {"iss": self.issuer, "aud": CLIENT, "sub": "s-1", "nonce": "n", "iat": now, "exp": now + 300} | claims
        said = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": str(self.key.kid)}, said, self.key)

    def answer(self, path: str) -> tuple[int, bytes]:
        """Return (status, body)."""
        self.asked.append(path)
        if self.gone:
            return 503, b"away"
        if path == "/.well-known/openid-configuration":
            return 200, json.dumps({"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"} | self.said).encode()
        if path == "/keys":
            return 200, json.dumps({"keys": [self.key.as_dict(private=False)]}).encode()
        return 404, b""


@contextmanager
def key_server(folder: Path, clock: Clock) -> Iterator[KeyServer]:
    """Serve keys on loopback, with a CA of its own."""
    authority = Authority.create("identity provider", clock, SystemIds())
    pair = authority.issue(Identity("controller", "idp"), hosts=["127.0.0.1"])
    (folder / "idp.crt").write_bytes(pair.cert_pem)
    (folder / "idp.key").write_bytes(pair.key_pem)
    servers: list[KeyServer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = servers[0].answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "idp.crt", folder / "idp.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    servers.append(KeyServer(clock, server, authority.cert_pem.decode()))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield servers[0]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
