"""Whose the files are that guests' processes open, and that what they write by themselves is bounded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cairn.agent.app import guests_owner
from cairn.agent.config import Config, ConfigError
from cairn.agent.guestfiles import KEPT_BYTES, LOG_BYTES_MAX, GuestFolders, trim_log
from cairn.storage.base import StorageError
from cairn.storage.owner import Owner
from cairn.storage.pool import Pool

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
NOBODY = Owner.named("nobody")
IMAGE, VOLUME = "0" * 64, "vol-00000001.qcow2"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_a_user_all_stays_private(tmp_path: Path) -> None:
    owner, file = Owner.named(""), tmp_path / "file"
    file.write_bytes(b"1")
    owner.lend(file)
    assert (mode(file), file.stat().st_uid) == (0o600, os.geteuid())
    Pool(tmp_path / "pool", owner)
    assert mode(tmp_path / "pool") == 0o700


def test_a_user_nobody_has_is_an_error_at_the_start() -> None:
    with pytest.raises(StorageError, match="knows no such user") as error:
        Owner.named("no-such-user")
    assert not error.value.retryable
    with pytest.raises(ConfigError, match="guest_user: guests are to run as no-such-user"):
        guests_owner(Config(name="n1", listen="127.0.0.1:1", guest_user="no-such-user"))


@needs_root
def test_a_pool_from_before_is_handed_over(tmp_path: Path) -> None:
    """Guests own their disks; images are lent, and cannot be written; folders can be passed and not listed."""
    pool = Pool(tmp_path)
    (pool.images / IMAGE).write_bytes(b"image")
    (pool.volumes / VOLUME).write_bytes(b"disk")
    (pool.volumes / ".vol-00000002.qcow2.new").write_bytes(b"unfinished")
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    (pool.volumes / "vol-00000003.qcow2").symlink_to(target)
    Pool(tmp_path, NOBODY)
    disk, image = pool.volumes / VOLUME, pool.images / IMAGE
    assert (disk.stat().st_uid, mode(disk)) == (NOBODY.uid, 0o600)
    assert (image.stat().st_uid, image.stat().st_gid, mode(image)) == (0, NOBODY.gid, 0o640)
    assert {mode(folder) for folder in (tmp_path, pool.images, pool.volumes)} == {0o711}
    assert (pool.volumes / ".vol-00000002.qcow2.new").stat().st_uid == 0, "nobody's yet"
    assert target.stat().st_uid == 0, "no link is followed"


def test_a_log_is_cut_and_its_end_kept(tmp_path: Path) -> None:
    log = tmp_path / "i-00000001.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * LOG_BYTES_MAX)
        assert not trim_log(log), "as large as it may be"
        writer.write(b"the end")
        assert trim_log(log)
        old = Path(f"{log}.old")
        assert old.read_bytes()[-8:] == b"athe end"
        assert (old.stat().st_size, mode(old)) == (KEPT_BYTES, 0o600)
        writer.write(b"new")
        assert log.read_bytes() == b"new"


async def test_logs_are_trimmed_and_removed_with_their_guest(tmp_path: Path) -> None:
    files = GuestFolders(tmp_path / "seeds", tmp_path / "console")
    Path(files.console_log("i-00000001")).write_bytes(b"a" * (LOG_BYTES_MAX + 1))
    Path(files.console_log("i-00000002")).write_bytes(b"a")
    await files.trim()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "console").iterdir()}
    assert sizes == {"i-00000001.log": 0, "i-00000001.log.old": KEPT_BYTES, "i-00000002.log": 1}
    assert await files.list() == {"i-00000001", "i-00000002"}
    await files.remove("i-00000001")
    assert [path.name for path in (tmp_path / "console").iterdir()] == ["i-00000002.log"]
