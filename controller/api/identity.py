"""Certificates for those who have one: renewal over mTLS."""

from __future__ import annotations

from typing import Any

from cairn.controller.api import nouns, resolution
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.model.permits import Verb, permits
from cairn.proto import kinds, log
from cairn.proto.errors import Denied, Invalid, TryAgain
from cairn.proto.pki import Authority, PkiError, hosts_in
from cairn.proto.rpc import alternative_names, peer_identity
from cairn.proto.v1 import cluster_pb2, cluster_pb2_grpc

_log = log.logger("api")


def signer(core: Core) -> Authority:
    """Return the CA that signs. Raises TryAgain on controllers that hold none."""
    if core.authority is None:
        raise TryAgain("this controller does not sign certificates; ask another one")
    return core.authority


class IdentityService(cluster_pb2_grpc.IdentityServiceServicer):
    """IdentityService of proto/v1/cluster.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def RenewCertificate(
        self, request: cluster_pb2.RenewCertificateRequest, context: Any
    ) -> cluster_pb2.RenewCertificateResponse:
        """Certify a new key for whoever calls, and for nobody else."""
        identity, caller = peer_identity(context), caller_of(context)
        # On a view as fresh as the store: a node removed through another controller a moment ago is removed.
        view = await self._core.mutations.freshen() if identity.kind == "node" else self._core.cache.view
        node = view.get(kinds.NODE, identity.id)
        if identity.kind == "node" and node is None:
            resolution.refuse_unreadable(view, nouns.NODE, identity.id)
            raise Denied(f"node {identity.id!r} is not part of this cluster any more")
        # Who has no record of his own is the cluster's.
        if not permits(view, caller, Verb.RENEW, node or view.get(kinds.CLUSTER, "self") or cluster_pb2.Cluster()):
            raise Denied(f"{caller.kind} {caller.id!r} gets no certificate")
        try:
            # Whoever serves keeps the addresses and names it is certified for.
            hosts = hosts_in(alternative_names(context), identity)
            certificate = signer(self._core).sign(request.csr_pem, identity, hosts=hosts)
        except PkiError as error:
            raise Invalid("csr_pem", str(error)) from error
        _log.info("certificate renewed", identity=identity.uri)
        return cluster_pb2.RenewCertificateResponse(certificate_pem=certificate, ca_pem=self._core.ca_pem)
