"""Importing images: what is no image, what is cut, what has the wrong checksum, and uploads that break."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.cli import transfer
from cairn.controller.cli.disk_image import inspect
from cairn.controller.cli.failures import Failure
from cairn.proto.errors import TryAgain
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_QCOW2, IMAGE_FORMAT_RAW

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud  # noqa: F401
from tests.unit.cli_run import run

CLUSTER = 1 << 16


def raw(path: Path, size: int = 3 << 20) -> Path:
    """A disk with a partition table."""
    content = bytearray(size)
    content[510:512] = b"\x55\xaa"
    content[1 << 20 : (1 << 20) + 5] = b"guest"
    path.write_bytes(content)
    return path


def qcow2(path: Path, *, backing: int = 0, version: int = 3, crypt: int = 0, features: int = 0) -> Path:
    """A qcow2 made by hand: header, one L1 entry, a refcount table, one L2 table, one data cluster at the end."""
    fields = (version, backing, 0, 16, 64 << 20, crypt, 1, CLUSTER, 2 * CLUSTER, 1, 0, 0, features, 0, 0, 4, 104)
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", *fields)
    l1 = struct.pack(">Q", 3 * CLUSTER | 1 << 63)
    l2 = struct.pack(">Q", 4 * CLUSTER | 1 << 63)
    parts = (header, l1, b"", l2, b"d" * CLUSTER)
    path.write_bytes(b"".join(part.ljust(CLUSTER, b"\0") for part in parts))
    return path


def test_qcow2_and_raw_are_told_apart(tmp_path: Path) -> None:
    found = inspect(qcow2(tmp_path / "q"), None)
    assert (found.format, found.size_bytes, found.virtual_size_bytes) == ("qcow2", 5 * CLUSTER, 64 << 20)
    found = inspect(raw(tmp_path / "r"), None)
    assert (found.format, found.virtual_size_bytes) == ("raw", 3 << 20)
    (tmp_path / "plain").write_bytes(b"x" * 1024)
    assert inspect(tmp_path / "plain", "raw").format == "raw"


@pytest.mark.parametrize("length", [4 * CLUSTER + 5, 4 * CLUSTER, 3 * CLUSTER + 8, CLUSTER, 100, 40])
def test_a_cut_qcow2_is_refused(tmp_path: Path, length: int) -> None:
    path = qcow2(tmp_path / "q")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Failure, match="truncated"):
        inspect(path, None)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img")
@pytest.mark.parametrize("options", [[], ["-c"], ["-o", "compat=0.10"], ["-o", "cluster_size=2M"]])
def test_real_qcow2_is_taken_whole_and_refused_when_cut(tmp_path: Path, options: list[str]) -> None:
    source, target = raw(tmp_path / "r"), tmp_path / "q"
    source.write_bytes(source.read_bytes() + bytes(range(1, 256)) * 512 * 16)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", *options, str(source), str(target)], check=True)
    assert inspect(target, None).virtual_size_bytes == source.stat().st_size
    target.write_bytes(target.read_bytes()[: target.stat().st_size * 2 // 3])
    with pytest.raises(Failure, match="truncated"):
        inspect(target, None)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"hello\n", "not an image"),
        (gzip.compress(b"x", mtime=0), r"compressed \(gzip\)"),
        (b"KDMV" + bytes(508), "VMware"),
        (b"<!DOCTYPE html><html>404", "web page"),
        (b"LUKS\xba\xbe\x00\x02" + bytes(1016), "encrypted"),
        (bytes(257) + b"ustar" + bytes(762), "archive"),
        (bytes(510) + b"\x55\xaa" + b"x", "not a whole number"),
    ],
)
def test_no_image_is_refused_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Failure, match=why):
        inspect(tmp_path / "x", None)


def test_no_hint_leads_astray(tmp_path: Path) -> None:
    """What is surely no disk is not to be imported as a raw one."""
    for name, content in (("x.ova", bytes(257) + b"ustar" + bytes(762)), ("x", b"LUKS\xba\xbe" + bytes(1018))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Failure) as caught:
            inspect(tmp_path / name, None)
        assert caught.value.next
        assert "--format raw" not in caught.value.next


def test_format_must_be_true(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is not qcow2"):
        inspect(raw(tmp_path / "r"), "qcow2")
    with pytest.raises(Failure, match="is qcow2, not raw"):
        inspect(qcow2(tmp_path / "q"), "raw")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"backing": 200}, "difference"),
        ({"version": 9}, "version 9"),
        ({"crypt": 1}, "encrypted"),
        ({"features": 4}, "another file"),
    ],
)
def test_qcow2_that_is_not_whole_by_itself(tmp_path: Path, made: dict[str, int], why: str) -> None:
    with pytest.raises(Failure, match=why):
        inspect(qcow2(tmp_path / "q", **made), None)


def digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_import_sends_every_byte_and_waits(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    path = raw(tmp_path / "disk.raw")
    ran = run(cloud, "image", "import", "demo", "--file", str(path), "--arch", "aarch64", "--checksum", digest(path))
    assert ran.code == 0, ran.err
    spec = cloud.requests("CreateImage")[0].image.spec
    assert (spec.digest, spec.size_bytes, spec.format, spec.arch) == (digest(path), 3 << 20, IMAGE_FORMAT_RAW, "aarch64")
    assert cloud.uploaded == path.read_bytes()
    assert "AVAILABLE" in ran.out


def test_import_from_a_url(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    path = qcow2(tmp_path / "disk")
    ran = run(cloud, "image", "import", "demo", "--url", path.as_uri())
    assert ran.code == 0, ran.err
    assert cloud.requests("CreateImage")[0].image.spec.format == IMAGE_FORMAT_QCOW2
    assert cloud.uploaded == path.read_bytes()


@pytest.mark.parametrize(
    ("url", "code", "why"),
    [
        ("http://127.0.0.1:1/x", 2, "only https"),
        ("ftp://127.0.0.1/x", 2, "only https"),
        ("file:///nowhere/x", 1, "cannot fetch"),
        ("https://127.0.0.1:1/x", 1, "cannot fetch"),
    ],
)
def test_bad_urls(cloud: Cloud, url: str, code: int, why: str) -> None:  # noqa: F811
    ran = run(cloud, "image", "import", "demo", "--url", url)
    assert (ran.code, why in ran.err) == (code, True), ran.err
    assert not cloud.calls


@pytest.mark.parametrize(
    ("checksum", "code", "why"), [("sha256:" + "0" * 64, 1, "checksum is wrong"), ("md5:12", 2, "64 hex digits")]
)
def test_wrong_checksum(cloud: Cloud, tmp_path: Path, checksum: str, code: int, why: str) -> None:  # noqa: F811
    ran = run(cloud, "image", "import", "demo", "--file", str(raw(tmp_path / "r")), "--checksum", checksum)
    assert (ran.code, why in ran.err) == (code, True), ran.err
    assert not cloud.calls


def test_an_upload_that_breaks_is_sent_again(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    def broken(_request: Any) -> None:
        raise TryAgain("no node is ready to take it")

    cloud.scripts["UploadImage"] += [broken, broken]
    path = raw(tmp_path / "r")
    ran = run(cloud, "image", "import", "demo", "--file", str(path))
    assert ran.code == 0, ran.err
    assert len(cloud.requests("UploadImage")) == 3
    assert cloud.uploaded == path.read_bytes()


def test_a_file_that_cannot_be_read_any_more_is_told(
    cloud: Cloud,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = transfer.checked_digest

    def then_gone(path: Path, *arguments: Any) -> str:
        digest = checked(path, *arguments)
        path.unlink()
        return digest

    monkeypatch.setattr(transfer, "checked_digest", then_gone)
    file = raw(tmp_path / "r")
    ran = run(cloud, "image", "import", "demo", "--file", str(file))
    assert ran.code == 1
    assert f"cannot read {file}: No such file or directory" in ran.err


def test_an_interrupted_import_goes_on(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    path = raw(tmp_path / "r")
    line = ("image", "import", "demo", "--file", str(path))
    cloud.scripts["UploadImage"].append(lambda _request: (_ for _ in ()).throw(Failure("the command was killed")))
    assert run(cloud, *line).code == 1

    async def waits() -> None:
        (image,) = cloud.objects["image"].values()
        await cloud.advance("image", image.id, "UPLOADING", "waits for its bytes")

    cloud.do(waits())
    ran = run(cloud, *line)
    assert ran.code == 0, ran.err
    assert cloud.uploaded == path.read_bytes()
    again = run(cloud, *line)
    assert (again.code, "exists already" in again.err) == (1, True)


def test_a_failed_import_says_why(cloud: Cloud, tmp_path: Path) -> None:  # noqa: F811
    async def fail(_message: Any) -> None:
        image = cloud.find("image", "demo")
        await cloud.advance("image", image.id, "FAILED", "n1: the bytes are not a qcow2 image")

    cloud.after_upload = fail
    ran = run(cloud, "image", "import", "demo", "--file", str(raw(tmp_path / "r")))
    assert ran.code == 1
    assert "the bytes are not a qcow2 image" in ran.err
