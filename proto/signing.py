"""Signatures of bytes that are kept, by the key of whoever wrote them: who that was is known from his certificate."""

from __future__ import annotations

from cairn.proto.pki import Identity, Pair, PkiError, identity_of, parse_cert
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def signed(pair: Pair, content: bytes) -> bytes:
    """Return the signature of some bytes by a certificate's key (ECDSA, SHA-256, DER)."""
    return _key(pair).sign(content, ec.ECDSA(hashes.SHA256()))


def signer_of(cert_pem: bytes, ca_pem: bytes, content: bytes, signature: bytes) -> Identity:
    """Return who signed some bytes, by a certificate of this CA, ended or not. Raises PkiError."""
    cert = parse_cert(cert_pem)
    try:
        authorities = x509.load_pem_x509_certificates(ca_pem)
    except ValueError as error:
        raise PkiError("the CA is not a PEM certificate") from error
    if not any(_issued(cert, each) for each in authorities):
        raise PkiError("the certificate is not of this cluster's CA")
    key = cert.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PkiError("the certificate's key is not one of ours")
    try:
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise PkiError("the signature is not of these bytes") from error
    return identity_of(cert_pem)


def _issued(cert: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pair.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
