"""Whose the files are that guests' processes open, and that what they write by themselves is bounded."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cairn.agent import guestfiles
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


async def test_what_a_killed_agent_left_of_a_guest_is_seen_and_removed(tmp_path: Path) -> None:
    """The folder a seed is made in holds a guest's user data; the end of its last log what it printed."""
    files = GuestFolders(tmp_path / "seeds", tmp_path / "console")
    making = tmp_path / "seeds" / ".i-00000001.iso.new" / "files"
    making.mkdir(parents=True)
    (making / "user-data").write_text("a secret")
    (tmp_path / "console" / "i-00000002.log.old").write_bytes(b"printed")
    (tmp_path / "console" / "by hand").write_bytes(b"nobody's")
    assert await files.list() == {"i-00000001", "i-00000002"}
    for id in ("i-00000001", "i-00000002"):
        await files.remove(id)
    assert [path.name for path in tmp_path.rglob("*") if not path.is_dir()] == ["by hand"]
    assert await files.list() == set()


async def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = GuestFolders(tmp_path / "seeds", tmp_path / "console")

    def broken(_path: Path) -> Iterator[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", broken)
    with pytest.raises(StorageError, match="listing the files of guests"):
        await files.list()


async def test_one_log_that_cannot_be_cut_leaves_the_others_no_less_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = GuestFolders(tmp_path / "seeds", tmp_path / "console")
    logs = [Path(files.console_log(f"i-0000000{n}")) for n in range(1, 4)]
    for log in logs:
        log.write_bytes(b"a" * (LOG_BYTES_MAX + 1))
    seen: list[Path] = []

    def cut(path: Path) -> bool:
        seen.append(path)
        if len(seen) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return trim_log(path)

    monkeypatch.setattr(guestfiles, "trim_log", cut)
    with pytest.raises(StorageError, match="trimming console logs"):
        await files.trim()
    assert sorted(log.stat().st_size for log in logs) == [0, 0, LOG_BYTES_MAX + 1]


def test_a_log_is_cut_where_there_is_no_room_to_keep_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what fills the disk; once it is cut there is room."""
    log = tmp_path / "i-00000001.log"
    log.write_bytes(b"a" * LOG_BYTES_MAX + b"the end")
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if log.stat().st_size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert trim_log(log)
    assert log.stat().st_size == 0
    assert Path(f"{log}.old").read_bytes().endswith(b"the end")
