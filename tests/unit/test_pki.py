"""Certificates, signing requests, private files and join tokens."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cairn.proto import pki
from cairn.proto.pki import Authority, Identity, PkiError, TokenContent
from cairn.proto.seams import SystemIds
from cryptography import x509
from cryptography.hazmat.primitives import serialization


@dataclass
class SetClock:
    """A clock that shows what it was set to."""

    moment: datetime = datetime(2030, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def ca(clock: SetClock) -> Authority:
    return Authority.create("cairn test", clock, SystemIds())


def names_of(cert_pem: bytes) -> list[object]:
    cert = x509.load_pem_x509_certificate(cert_pem)
    return [name.value for name in cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def test_authority_may_sign_leaves_only(ca: Authority, clock: SetClock) -> None:
    constraints = ca.cert.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert ca.cert.not_valid_after_utc - clock.now() > timedelta(days=3650)


@pytest.mark.parametrize(
    ("identity", "uri", "server_names"),
    [
        (Identity("controller", "c1"), "cairn://controller/c1", ["controller.cairn"]),
        (Identity("node", "node-0000abcd"), "cairn://node/node-0000abcd", ["node-0000abcd.node.cairn"]),
        (Identity("etcd", "n1"), "cairn://etcd/n1", ["etcd.cairn"]),
        (Identity("user", "admin"), "cairn://user/admin", []),
    ],
)
def test_certificate_names_its_identity_and_nothing_more(
    ca: Authority, identity: Identity, uri: str, server_names: list[str]
) -> None:
    pair = ca.issue(identity, hosts=["192.0.2.7"])
    assert [str(name) for name in names_of(pair.cert_pem)] == [uri, *server_names, "192.0.2.7"]
    assert pki.identity_of(pair.cert_pem) == identity
    cert = pki.parse_cert(pair.cert_pem)
    cert.verify_directly_issued_by(ca.cert)
    uses = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (x509.oid.ExtendedKeyUsageOID.SERVER_AUTH in uses) == bool(server_names)


def test_csr_gives_its_key_only(ca: Authority) -> None:
    request = pki.make_csr("cairn://controller/evil")
    signed = ca.sign(request.cert_pem, Identity("node", "node-0000abcd"))
    assert [str(name) for name in names_of(signed)] == ["cairn://node/node-0000abcd", "node-0000abcd.node.cairn"]
    assert "evil" not in pki.parse_cert(signed).subject.rfc4514_string()
    key = serialization.load_pem_private_key(request.key_pem, None)
    assert pki.parse_cert(signed).public_key() == key.public_key()
    again = pki.make_csr("other name", request.key_pem)
    assert pki.csr_key_sha256(again.cert_pem) == pki.csr_key_sha256(request.cert_pem)
    assert pki.csr_key_sha256(pki.make_csr("n").cert_pem) != pki.csr_key_sha256(request.cert_pem)


def test_bad_csr_is_refused(ca: Authority) -> None:
    request = pki.make_csr("n1").cert_pem
    for bad in (b"", b"garbage", request[:100], request.replace(request[150:154], b"AAAA")):
        with pytest.raises(PkiError, match="signing request"):
            ca.sign(bad, Identity("node", "node-0000abcd"))


@pytest.mark.parametrize("uri", ["", "cairn://", "cairn://root/x", "cairn://node/", "cairn://node/a/b", "https://node/x"])
def test_identity_parse_refuses(uri: str) -> None:
    with pytest.raises(PkiError, match="not an identity"):
        Identity.parse(uri)


def test_two_identities_are_none() -> None:
    with pytest.raises(PkiError, match="2 identities"):
        pki.identity_in(["cairn://node/a", "cairn://user/b"])


def test_renewal_is_due_in_the_last_third(ca: Authority, clock: SetClock) -> None:
    pair = ca.issue(Identity("user", "u"), lifetime=timedelta(seconds=100))
    issued = clock.now()
    assert not pki.needs_renewal(pair.cert_pem, issued + timedelta(seconds=60))
    assert pki.needs_renewal(pair.cert_pem, issued + timedelta(seconds=65))
    assert pki.needs_renewal(pair.cert_pem, issued + timedelta(days=9))


def test_leaf_does_not_outlive_its_authority(ca: Authority, clock: SetClock) -> None:
    clock.moment = ca.cert.not_valid_after_utc - timedelta(days=1)
    pair = ca.issue(Identity("user", "u"))
    assert pki.parse_cert(pair.cert_pem).not_valid_after_utc == ca.cert.not_valid_after_utc


def test_private_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "secret.key"
    pki.write_private(path, b"one")
    path.chmod(0o644)
    pki.write_private(path, b"two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["secret.key"]


def test_pair_survives_a_crash_between_its_two_files(ca: Authority, tmp_path: Path) -> None:
    cert, key = tmp_path / "node.crt", tmp_path / "node.key"
    old, new = ca.issue(Identity("user", "u")), ca.issue(Identity("user", "u"))
    pki.install_pair(cert, key, old)
    pki.write_private(tmp_path / "node.key.next", new.key_pem)
    assert pki.load_pair(cert, key) == old
    pki.write_public(cert, new.cert_pem)
    assert pki.load_pair(cert, key) == new
    pki.install_pair(cert, key, new)
    assert pki.load_pair(cert, key) == new
    key.write_bytes(old.key_pem)
    with pytest.raises(PkiError, match=r"node\.key is not the private key of"):
        pki.load_pair(cert, key)
    key.unlink()
    with pytest.raises(FileNotFoundError, match="private key"):
        pki.load_pair(cert, key)


def test_token_round_trip_and_no_secret_in_its_text(ca: Authority) -> None:
    content = TokenContent("jt-1", "s3cret", ("10.0.0.1:7444", "10.0.0.2:7444"), ca.cert_pem)
    token = content.encode()
    assert TokenContent.decode(token + "\n") == content
    assert not set(token) & set("+/=\n ")
    assert "s3cret" not in repr(content)


@pytest.mark.parametrize("garbage", ["", "hello", "é", "e30", "W10", "bnVsbA", "eyJpZCI6MX0"])
def test_garbage_token_is_refused(garbage: str) -> None:
    with pytest.raises(PkiError, match="join token"):
        TokenContent.decode(garbage)


def test_cut_token_is_refused(ca: Authority) -> None:
    token = TokenContent("jt-1", "s", ("10.0.0.1:7444",), ca.cert_pem).encode()
    for length in (1, len(token) // 2, len(token) - 1):
        with pytest.raises(PkiError, match="join token"):
            TokenContent.decode(token[:length])


def init(directory: Path, clock: SetClock, *controllers: str, name: str = "lab", host: str = "192.0.2.1") -> list[str]:
    hosts = {controller: [host] for controller in controllers}
    made = pki.init_cluster(directory, name, controllers=hosts, etcd_members=hosts, clock=clock, ids=SystemIds())
    return sorted(path.name for path in made)


def test_init_cluster_makes_everything_once(tmp_path: Path, clock: SetClock) -> None:
    expected = ["admin", "ca", "controller-n1", "controller-n1-etcd", "etcd-ca", "etcd-n1"]
    pairs = [f"{name}.{end}" for name in expected for end in ("crt", "key")]
    assert init(tmp_path, clock, "n1") == sorted([*pairs, "secrets.key"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert init(tmp_path, clock, "n1") == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for path in tmp_path.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    etcd_ca = pki.parse_cert((tmp_path / "etcd-ca.crt").read_bytes())
    pki.parse_cert((tmp_path / "controller-n1-etcd.crt").read_bytes()).verify_directly_issued_by(etcd_ca)
    with pytest.raises(ValueError, match="subject does not match"):
        pki.parse_cert((tmp_path / "admin.crt").read_bytes()).verify_directly_issued_by(etcd_ca)
    assert "127.0.0.1" in map(str, names_of((tmp_path / "etcd-n1.crt").read_bytes()))


def test_init_cluster_adds_a_controller_and_completes_what_was_interrupted(tmp_path: Path, clock: SetClock) -> None:
    init(tmp_path, clock, "n1")
    (tmp_path / "etcd-ca.crt").unlink()
    (tmp_path / "etcd-n1.crt").unlink()
    key = (tmp_path / "etcd-ca.key").read_bytes()
    assert {"controller-n2.crt", "etcd-ca.crt", "etcd-n1.crt"} <= set(init(tmp_path, clock, "n1", "n2"))
    assert (tmp_path / "etcd-ca.key").read_bytes() == key
    Authority.load(tmp_path / "etcd-ca.crt", tmp_path / "etcd-ca.key", clock, SystemIds())


def test_init_cluster_refuses_another_cluster_and_other_addresses(tmp_path: Path, clock: SetClock) -> None:
    init(tmp_path, clock, "n1")
    with pytest.raises(PkiError, match="'cairn lab', not 'cairn prod'"):
        init(tmp_path, clock, "n1", name="prod")
    with pytest.raises(PkiError, match=r"controller-n1\.crt exists and is not for 192\.0\.2\.9"):
        init(tmp_path, clock, "n1", host="192.0.2.9")


def test_what_could_not_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk half a key stayed, another one for each process that tried."""
    path = tmp_path / "c1.key"
    pki.write_private(path, b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        pki.write_private(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["c1.key"]
    assert path.read_bytes() == b"old"
