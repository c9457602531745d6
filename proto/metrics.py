"""Metrics in Prometheus' format over HTTPS, for holders of a certificate of this cluster; in threads of its own.

Not prometheus_client's own server: that one greets in the thread that accepts, without an end, so that one connection that says
nothing keeps all others out, and whoever closes the server waits for it, which here is a loop that has other things to do.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cairn.proto.log import logger
from cairn.proto.rpc import split_endpoint
from prometheus_client import CollectorRegistry, make_wsgi_app

# For a greeting, a request, each part of an answer.
TIMEOUT_S: Final = 10.0
# How long closing may take, at most.
_POLL_S: Final = 0.1


class _Handler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, which greets there; one that dawdles is dropped."""

    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection."""
        request, address = super().get_request()
        request.settimeout(TIMEOUT_S)
        return request, address

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Tell of a caller that said nothing, went away, or has no certificate."""
        logger("metrics").debug("dropped", caller=str(client_address), exc_info=True)


class _ServerOfIpv6(_Server):
    # socket.AF_INET6
    address_family = 10


class HttpsMetrics:
    """Serves a registry at host:port until closed, with the certificate that is in the files now. Raises OSError."""

    def __init__(self, address: str, registry: CollectorRegistry, *, cert: Path, key: Path, ca: Path) -> None:
        host, port = split_endpoint(address)
        kind = _ServerOfIpv6 if ":" in host else _Server
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(cert, key)
        self._server: WSGIServer = make_server(host, port, make_wsgi_app(registry), kind, handler_class=_Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True).start()

    def close(self) -> None:
        """Accept no more; what is being answered is answered."""
        self._server.shutdown()
        self._server.server_close()
