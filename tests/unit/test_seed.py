"""The NoCloud seed: the files a guest reads, and the ISO around them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from cairn.proto.v1.agent_pb2 import DesiredVm, VmNic
from cairn.storage.base import StorageError
from cairn.storage.seed import build_seed, remove_seed, write_seed

VM = DesiredVm(
    id="i-0000001a",
    name="web",
    hostname="web-1",
    ssh_keys=["ssh-ed25519 AAAAC3Nz… me@host"],
    nics=[VmNic(mac="2a:00:00:00:00:01", mtu=1450), VmNic(mac="2a:00:00:00:00:02")],
)
needs_genisoimage = pytest.mark.skipif(not shutil.which("genisoimage"), reason="no genisoimage")


def test_files() -> None:
    files = build_seed(VM)
    assert yaml.safe_load(files["meta-data"]) == {
        "instance-id": "i-0000001a",
        "local-hostname": "web-1",
        "public-keys": ["ssh-ed25519 AAAAC3Nz… me@host"],
    }
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert yaml.safe_load(files["user-data"]) == {"hostname": "web-1", "ssh_authorized_keys": list(VM.ssh_keys)}
    assert yaml.safe_load(files["network-config"]) == {
        "version": 2,
        "ethernets": {
            "eth0": {"match": {"macaddress": "2a:00:00:00:00:01"}, "set-name": "eth0", "dhcp4": True, "mtu": 1450},
            "eth1": {"match": {"macaddress": "2a:00:00:00:00:02"}, "set-name": "eth1", "dhcp4": True},
        },
    }


def test_the_users_own_user_data_goes_in_as_it_is() -> None:
    vm = DesiredVm(id="i-0000001a", name="web", user_data=b"#!/bin/sh\necho \xff\x00\n", ssh_keys=["ssh-rsa A"])
    files = build_seed(vm)
    assert files["user-data"] == b"#!/bin/sh\necho \xff\x00\n"
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": vm.id, "local-hostname": "web", "public-keys": ["ssh-rsa A"]}


def test_hostile_names_stay_data() -> None:
    vm = DesiredVm(id="i-0000001a", hostname="a: b\nruncmd: [reboot]", ssh_keys=["k\n- x: y", "# no comment"])
    config = yaml.safe_load(build_seed(vm)["user-data"])
    assert config == {"hostname": vm.hostname, "ssh_authorized_keys": list(vm.ssh_keys)}


@needs_genisoimage
async def test_iso(tmp_path: Path) -> None:
    path = tmp_path / "seeds" / "i-0000001a.iso"
    assert await write_seed(path, VM)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    label = subprocess.run(["blkid", "-o", "value", "-s", "LABEL", path], capture_output=True, text=True, check=False).stdout
    assert label.strip() == "cidata"
    for name, content in build_seed(VM).items():
        read = subprocess.run(["isoinfo", "-J", "-i", path, "-x", f"/{name}"], capture_output=True, check=True).stdout
        assert read == content


@needs_genisoimage
async def test_written_again_only_when_something_changed(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    assert await write_seed(path, VM)
    inode = path.stat().st_ino
    assert not await write_seed(path, VM)
    assert path.stat().st_ino == inode
    changed = DesiredVm()
    changed.CopyFrom(VM)
    changed.hostname = "web-2"
    assert await write_seed(path, changed)
    path.write_bytes(b"rubbish")
    assert await write_seed(path, changed)


@needs_genisoimage
async def test_leftovers_of_a_killed_writer_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".seed.iso.new" / "files").mkdir(parents=True)
    (tmp_path / ".seed.iso.new" / "files" / "user-data").write_text("someone else's secret")
    (tmp_path / ".seed.iso.new" / "files" / "stray").write_text("x")
    await write_seed(tmp_path / "seed.iso", VM)
    listed = subprocess.run(
        ["isoinfo", "-J", "-f", "-i", tmp_path / "seed.iso"], capture_output=True, text=True, check=True
    ).stdout
    assert sorted(listed.split()) == ["/meta-data", "/network-config", "/user-data"]
    assert [found.name for found in tmp_path.iterdir()] == ["seed.iso"]


async def test_a_seed_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="i-0000001a"):
        await write_seed(tmp_path / "file" / "seed.iso", VM)


async def test_remove(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.write_bytes(b"x")
    for _ in range(2):
        await remove_seed(path)
    assert not path.exists()
