"""Secrets at rest: sealed under their id, opened by any key of the file, never written where they can be read."""

from __future__ import annotations

import base64
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cairn.controller.unsealing import opened
from cairn.proto import pki
from cairn.proto.sealing import KEY_BYTES, SealError, Seals, new_key
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm
from cairn.proto.v1.secret_pb2 import Secret, VmData

NOW = datetime(2030, 1, 1, tzinfo=UTC)
OLD, NEW = bytes(KEY_BYTES), bytes([1]) * KEY_BYTES


def test_what_was_sealed_comes_back_and_is_not_readable() -> None:
    seals = Seals([OLD])
    secret = seals.seal("vm/i-1", b"password: s3cr3t", NOW)
    assert b"s3cr3t" not in secret.SerializeToString()
    assert seals.open(secret) == b"password: s3cr3t"
    assert seals.seal("vm/i-1", b"password: s3cr3t", NOW) == secret
    assert seals.open(seals.seal("vm/i-1", b"", NOW)) == b""


def test_a_new_key_before_the_old_one_opens_both_and_seals_anew(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    path.write_bytes(b"\n".join(base64.b64encode(key) for key in (NEW, OLD)))
    both, old, new = Seals.load(path), Seals([OLD]), Seals([NEW])
    before = old.seal("vm/i-1", b"x", NOW)
    assert both.open(before) == b"x"
    assert new.open(both.seal("vm/i-1", b"x", NOW)) == b"x"
    with pytest.raises(SealError, match="does not hold"):
        new.open(before)


@pytest.mark.parametrize("change", ["id", "sealed", "key_id"])
def test_a_record_that_was_changed_does_not_open(change: str) -> None:
    seals = Seals([OLD, NEW])
    secret = seals.seal("vm/i-1", b"x", NOW)
    other = Secret()
    other.CopyFrom(secret)
    another = Seals([NEW]).seal("vm/i-1", b"x", NOW).key_id
    values = {"id": "vm/i-2", "sealed": secret.sealed[:-1] + bytes([secret.sealed[-1] ^ 1]), "key_id": another}
    setattr(other, change, values[change])
    with pytest.raises(SealError):
        seals.open(other)


def test_without_a_key_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(SealError, match=r"no secrets\.key"):
        Seals().seal("vm/i-1", b"x", NOW)
    for content in (b"", b"AAAA\n", b"not base64!\n"):
        path = tmp_path / "secrets.key"
        path.write_bytes(content)
        with pytest.raises(SealError):
            Seals.load(path)


def test_a_new_cluster_has_a_key_that_only_its_owner_reads_and_keeps_it(tmp_path: Path) -> None:
    def init() -> list[Path]:
        return pki.init_cluster(
            tmp_path / "pki", "c", controllers={"c1": ["127.0.0.1"]}, etcd_members={}, clock=SystemClock(), ids=SystemIds()
        )

    made = init()
    path = tmp_path / "pki" / pki.SECRETS_KEY
    assert path in made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    assert Seals.load(path)
    assert init() == []
    assert path.read_bytes() == content != new_key()


def test_a_node_gets_the_content_and_not_the_record() -> None:
    seals = Seals([OLD])
    data = VmData(ssh_keys=["ssh-ed25519 A"], user_data=b"#!/bin/sh\n")
    sealed = Desired(vm=DesiredVm(id="i-1", cpus=2, sealed=seals.seal("vm/i-1", data.SerializeToString(), NOW)))
    vm = opened(sealed, seals).vm
    assert (list(vm.ssh_keys), vm.user_data, vm.cpus, vm.HasField("sealed")) == (["ssh-ed25519 A"], b"#!/bin/sh\n", 2, False)
    assert sealed.vm.HasField("sealed")
    with pytest.raises(SealError):
        opened(sealed, Seals([NEW]))
    plain = Desired(vm=DesiredVm(id="i-1", user_data=b"of an older release"))
    assert opened(plain, Seals()) is plain
