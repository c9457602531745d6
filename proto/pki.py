"""Certificates: the cluster's authorities, identities, signing, renewal, private files, join tokens.

Two authorities, so that no agent's or user's certificate opens etcd. Who a peer is stands in a URI of its certificate
(`cairn://node/node-1234abcd`); the authority alone writes it: of a signing request only the public key is taken. Server
names are constants of the role ("controller.cairn", "<node id>.node.cairn"), so a check of the name works on any address.

Keys are EC P-256 (RFC 5480), profiles follow RFC 5280. A key and its certificate are two files and cannot be replaced in one
step, so `install_pair` parks the new key beside the old one and `load_pair` finishes what a crash left half done; a single
combined file was rejected because etcd and most tools want two.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, Self

from cairn.proto.files import replace_file, sync_folder
from cairn.proto.sealing import new_key
from cairn.proto.seams import Clock, Ids
from cairn.proto.subjects import ROOT
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CONTROLLER_SERVER_NAME: Final = "controller.cairn"
SECRETS_KEY: Final = "secrets.key"
# What a server on this machine is called here.
LOOPBACK: Final = ("localhost", "127.0.0.1")
ETCD_SERVER_NAME: Final = "etcd.cairn"
LEAF_LIFETIME: Final = timedelta(days=90)
CA_LIFETIME: Final = timedelta(days=3652)
# Certificates are valid from a little before they are made: clocks differ.
BACKDATE_MAX: Final = timedelta(minutes=5)
IDENTITY_KINDS: Final = frozenset({"controller", "node", "user", "etcd"})


class PkiError(Exception):
    """A certificate, key, request or token cannot be used; permanent. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate is for: kind is controller, node, user or etcd; id is a node's id, else a name."""

    kind: str
    id: str

    @property
    def uri(self) -> str:
        """Return its form in a certificate, for example "cairn://node/node-1234abcd"."""
        return f"cairn://{self.kind}/{self.id}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Return the identity a URI names; PkiError when it names none."""
        scheme, _, rest = uri.partition("://")
        kind, _, id = rest.partition("/")
        if scheme != "cairn" or kind not in IDENTITY_KINDS or not id or "/" in id:
            raise PkiError(f"not an identity: {uri!r}")
        return cls(kind, id)

    def server_names(self) -> list[str]:
        """Return the DNS names this identity may serve under."""
        names = {"controller": CONTROLLER_SERVER_NAME, "node": node_server_name(self.id), "etcd": ETCD_SERVER_NAME}
        return [names[self.kind]] if self.kind in names else []


def node_server_name(node: str) -> str:
    """Return the name a node's agent serves under."""
    return f"{node}.node.cairn"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, PEM."""

    cert_pem: bytes
    key_pem: bytes


@dataclass(frozen=True)
class Authority:
    """A certificate authority: issues and signs. Holds its private key in memory."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    clock: Clock
    ids: Ids

    @classmethod
    def create(cls, name: str, clock: Clock, ids: Ids, *, key: ec.EllipticCurvePrivateKey | None = None) -> Self:
        """Make a new self-signed authority; `name` becomes its common name."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = clock.now()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        cert = (
            _builder(subject, subject, key.public_key(), now - BACKDATE_MAX, now + CA_LIFETIME, ids)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(cert, key, clock, ids)

    @classmethod
    def load(cls, cert_path: Path, key_path: Path, clock: Clock, ids: Ids) -> Self:
        """Read an authority from its files; PkiError when they do not belong together."""
        pair = load_pair(cert_path, key_path)
        return cls(parse_cert(pair.cert_pem), _parse_key(pair.key_pem, str(key_path)), clock, ids)

    @property
    def cert_pem(self) -> bytes:
        """Return the certificate others trust."""
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """Return the private key: a secret."""
        return _key_pem(self.key)

    def issue(self, identity: Identity, *, hosts: Sequence[str] = (), lifetime: timedelta = LEAF_LIFETIME) -> Pair:
        """Make a key and a certificate for it. `hosts`: addresses and DNS names it serves on besides its constant name."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Pair(self.certify(key.public_key(), identity, hosts=hosts, lifetime=lifetime), _key_pem(key))

    def sign(
        self, csr_pem: bytes, identity: Identity, *, hosts: Sequence[str] = (), lifetime: timedelta = LEAF_LIFETIME
    ) -> bytes:
        """Certify the public key of a signing request for `identity`, whatever it asks for; PkiError for a bad request."""
        return self.certify(csr_public_key(csr_pem), identity, hosts=hosts, lifetime=lifetime)

    def certify(
        self, key: ec.EllipticCurvePublicKey, identity: Identity, *, hosts: Sequence[str], lifetime: timedelta
    ) -> bytes:
        """Return a PEM certificate that says `key` is `identity`'s."""
        now = self.clock.now()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.id)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        names += [_general_name(host) for host in dict.fromkeys([*identity.server_names(), *hosts])]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.server_names():
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        before = now - min(BACKDATE_MAX, lifetime / 10)
        after = min(now + lifetime, self.cert.not_valid_after_utc)
        return (
            _builder(subject, self.cert.subject, key, before, after, self.ids)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def make_csr(name: str, key_pem: bytes | None = None) -> Pair:
    """Return a signing request (as cert_pem) and its key, a new one unless given. The name is informative only."""
    key = _parse_key(key_pem, "key") if key_pem else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return Pair(csr.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def csr_public_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request that proves it holds the private one; PkiError otherwise."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        signed = csr.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise PkiError("the signing request is not PEM PKCS#10") from error
    if not signed:
        raise PkiError("the signing request is not signed by its own key")
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PkiError("the signing request's key is not EC P-256")
    return key


def csr_key_sha256(csr_pem: bytes) -> bytes:
    """Return the SHA-256 of a request's public key (SubjectPublicKeyInfo): tells whether two requests have one key."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_public_bytes(csr_public_key(csr_pem)))
    return digest.finalize()


def parse_cert(cert_pem: bytes, name: str = "certificate") -> x509.Certificate:
    """Return the first certificate of a PEM; PkiError when there is none."""
    try:
        return x509.load_pem_x509_certificate(cert_pem)
    except ValueError as error:
        raise PkiError(f"{name} is not a PEM certificate") from error


def identity_of(cert_pem: bytes) -> Identity:
    """Return whose certificate it is; PkiError when it names no identity of ours."""
    cert = parse_cert(cert_pem)
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise PkiError("the certificate names no identity") from error
    return identity_in(names.get_values_for_type(x509.UniformResourceIdentifier))


def hosts_in(names: Sequence[str], identity: Identity) -> list[str]:
    """Return the addresses and DNS names among a certificate's alternative names, without its constant one."""
    return [name for name in names if "://" not in name and name not in identity.server_names()]


def hosts_of(cert_pem: bytes, identity: Identity) -> list[str]:
    """Return the addresses and DNS names a certificate is for besides its constant name. Raises PkiError."""
    found = parse_cert(cert_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = found.get_values_for_type(x509.DNSName)
    return hosts_in([*dns, *map(str, found.get_values_for_type(x509.IPAddress))], identity)


def identity_in(names: Sequence[str]) -> Identity:
    """Return the one identity among alternative names; PkiError when there is none, or more than one."""
    uris = [name for name in names if name.startswith("cairn://")]
    if len(uris) != 1:
        raise PkiError(f"the certificate names {len(uris)} identities instead of one")
    return Identity.parse(uris[0])


def needs_renewal(cert_pem: bytes, now: datetime) -> bool:
    """Tell whether less than a third of the certificate's life is left."""
    cert = parse_cert(cert_pem)
    return cert.not_valid_after_utc - now < (cert.not_valid_after_utc - cert.not_valid_before_utc) / 3


# --- files ---------------------------------------------------------------------------------------------------------------


def write_private(path: Path, content: bytes) -> None:
    """Write a file only its owner can read, atomically and durably."""
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Write a file everyone may read, atomically and durably."""
    _write(path, content, 0o644)


def install_pair(cert_path: Path, key_path: Path, pair: Pair) -> None:
    """Replace a certificate and its key so that a crash at any point leaves a pair `load_pair` can use."""
    parked = _parked(key_path)
    write_private(parked, pair.key_pem)
    write_public(cert_path, pair.cert_pem)
    parked.replace(key_path)
    sync_folder(key_path.parent)


def read_token(path: Path) -> str:
    """Return the API token that a file holds, alone on a line. PkiError, which does not say what else it holds; OSError."""
    text = path.read_bytes().strip()
    if not text or not text.isascii() or len(text.split()) != 1:
        raise PkiError(f"{path} does not hold one token, alone on a line")
    return text.decode()


def load_pair(cert_path: Path, key_path: Path) -> Pair:
    """Read a certificate and its key; PkiError when they do not belong together, OSError when unreadable."""
    cert_pem = cert_path.read_bytes()
    public = _public_bytes(parse_cert(cert_pem, str(cert_path)).public_key())
    for path in (key_path, _parked(key_path)):
        if not path.exists():
            continue
        key_pem = path.read_bytes()
        if _public_bytes(_parse_key(key_pem, str(path)).public_key()) == public:
            return Pair(cert_pem, key_pem)
    if not key_path.exists():
        raise FileNotFoundError(f"{key_path}: the private key of {cert_path} is missing")
    raise PkiError(f"{key_path} is not the private key of {cert_path}")


def _parked(key_path: Path) -> Path:
    return key_path.with_name(key_path.name + ".next")


def _write(path: Path, content: bytes, mode: int) -> None:
    replace_file(path, content, mode, path.with_name(f".{path.name}.{os.getpid()}.new"))


# --- join tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenContent:
    """What a join token carries: the proof (id and secret), where to enrol, and the CA to trust there."""

    id: str
    secret: str
    endpoints: tuple[str, ...]
    ca_pem: bytes

    def __repr__(self) -> str:
        return f"TokenContent(id={self.id!r}, secret=<hidden>, endpoints={self.endpoints!r})"

    def encode(self) -> str:
        """Return the token: base64url (RFC 4648) of JSON, one line."""
        fields = {"id": self.id, "secret": self.secret, "endpoints": list(self.endpoints), "ca": self.ca_pem.decode()}
        return base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, token: str) -> Self:
        """Return the content of a token; PkiError when it is not one of ours or was cut."""
        text = "".join(token.split())
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            fields = json.loads(raw)
            id, secret, endpoints, ca = (fields[name] for name in ("id", "secret", "endpoints", "ca"))
        except (binascii.Error, ValueError, KeyError, TypeError) as error:
            raise PkiError("this is not a join token (was it cut?); make a new one: cairn node token create") from error
        strings = [id, secret, ca, *(endpoints if isinstance(endpoints, list) else [None])]
        if not all(isinstance(value, str) and value for value in strings):
            raise PkiError("this join token lacks parts; make a new one: cairn node token create")
        parse_cert(ca.encode(), "the join token's CA")
        return cls(id, secret, tuple(endpoints), ca.encode())


# --- a new cluster -------------------------------------------------------------------------------------------------------


def init_cluster(
    directory: Path,
    name: str,
    *,
    controllers: Mapping[str, Sequence[str]],
    etcd_members: Mapping[str, Sequence[str]],
    clock: Clock,
    ids: Ids,
    lifetime: timedelta = LEAF_LIFETIME,
) -> list[Path]:
    """Make what is missing of a cluster's authorities and first certificates; return the files made now.

    controllers and etcd_members: name to its addresses and DNS names. Nothing that exists is changed: repeating the call makes
    nothing, an interrupted one is completed, more controllers can be added. PkiError when the folder is another
    cluster's, or holds a certificate for other addresses.

    Files: ca, etcd-ca, admin, controller-<name>, controller-<name>-etcd, etcd-<name>, each .crt and .key; secrets.key, with
    which controllers seal what users trust them with.
    """
    made: list[Path] = []
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = _authority(directory, "ca", f"cairn {name}", clock, ids, made)
    etcd_ca = _authority(directory, "etcd-ca", f"cairn {name} etcd", clock, ids, made)

    def leaf(file: str, issuer: Authority, identity: Identity, hosts: Sequence[str] = ()) -> None:
        _leaf(directory, file, issuer, identity, hosts, lifetime, made)

    sealing_path = directory / SECRETS_KEY
    if not sealing_path.exists():
        write_private(sealing_path, new_key())
        made.append(sealing_path)
    leaf("admin", ca, Identity("user", ROOT))
    for controller, hosts in controllers.items():
        leaf(f"controller-{controller}", ca, Identity("controller", controller), [*hosts, *LOOPBACK])
        leaf(f"controller-{controller}-etcd", etcd_ca, Identity("controller", controller))
    for member, hosts in etcd_members.items():
        leaf(f"etcd-{member}", etcd_ca, Identity("etcd", member), [*hosts, *LOOPBACK])
    return made


def certify(directory: Path, identity: Identity, name: str, lifetime: timedelta, clock: Clock, ids: Ids) -> list[Path]:
    """Make <kind>-<name>.crt and .key with the CA in a folder; return both. PkiError when they are there, or the id is none."""
    cert_path, key_path = (directory / f"{identity.kind}-{name}.{end}" for end in ("crt", "key"))
    if cert_path.exists():
        raise PkiError(f"{cert_path} exists: remove it and its key to have them made again")
    authority = Authority.load(directory / "ca.crt", directory / "ca.key", clock, ids)
    install_pair(cert_path, key_path, authority.issue(identity, lifetime=lifetime))
    return [cert_path, key_path]


def _authority(directory: Path, file: str, subject: str, clock: Clock, ids: Ids, made: list[Path]) -> Authority:
    cert_path, key_path = directory / f"{file}.crt", directory / f"{file}.key"
    if cert_path.exists():
        authority = Authority.load(cert_path, key_path, clock, ids)
        found = _common_name(authority.cert)
        if found != subject:
            raise PkiError(f"{directory} holds the authority {found!r}, not {subject!r}: give another folder")
        return authority
    key = _parse_key(key_path.read_bytes(), str(key_path)) if key_path.exists() else None
    authority = Authority.create(subject, clock, ids, key=key)
    write_private(key_path, authority.key_pem)
    write_public(cert_path, authority.cert_pem)
    made += [cert_path, key_path]
    return authority


def _leaf(
    directory: Path, file: str, ca: Authority, identity: Identity, hosts: Sequence[str], lifetime: timedelta, made: list[Path]
) -> None:
    cert_path, key_path = directory / f"{file}.crt", directory / f"{file}.key"
    if cert_path.exists():
        found = parse_cert(load_pair(cert_path, key_path).cert_pem)
        names = set(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        if missing := [host for host in hosts if _general_name(host) not in names]:
            raise PkiError(
                f"{cert_path} exists and is not for {', '.join(missing)}: remove it and its key to have it made again"
            )
        return
    install_pair(cert_path, key_path, ca.issue(identity, hosts=hosts, lifetime=lifetime))
    made += [cert_path, key_path]


def _common_name(cert: x509.Certificate) -> str:
    return str(cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _general_name(host: str) -> x509.GeneralName:
    try:
        address: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        return x509.DNSName(host)
    return x509.IPAddress(address)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, before: datetime, after: datetime, ids: Ids
) -> x509.CertificateBuilder:
    # RFC 5280 section 4.1.2.2: positive, at most 20 octets.
    serial = (int.from_bytes(ids.secret(20), "big") >> 1) | 1
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(before)
        .not_valid_after(after)
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=key_cert_sign, crl_sign=crl_sign, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _parse_key(key_pem: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise PkiError(f"{name} is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{name} is not an EC key")
    return key


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PkiError("not an EC public key")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
