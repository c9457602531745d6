"""The NoCloud seed: a small ISO a guest reads its name, keys, network and user data from, before any network works.

Format: cloud-init's NoCloud data source (label "cidata"; files meta-data, user-data, network-config version 2). The same facts
are served at 169.254.169.254 for guests that prefer it. Addresses come by DHCP, so a seed does not age when ports change.

The digest of the files stands in the ISO's application identifier (ECMA-119, 8.4.20), so an unchanged seed is recognised
by reading one sector and needs no file beside it that could disagree.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import yaml
from cairn.proto.v1.agent_pb2 import DesiredVm
from cairn.storage.base import StorageError
from cairn.storage.owner import Owner
from cairn.storage.pool import attempt, in_thread, remove, sync_file

_COMMAND: Final = ("genisoimage", "-quiet", "-volid", "cidata", "-joliet", "-rock")
_TIMEOUT_S: Final = 60.0
# Primary volume descriptor: sector 16 of 2048 bytes; the application identifier is its bytes 575 to 702, padded with blanks.
_APPLICATION_AT: Final = 16 * 2048 + 574
_APPLICATION_BYTES: Final = 128


def build_seed(vm: DesiredVm) -> dict[str, bytes]:
    """Return the files of the seed by name. Pure: the same VM gives the same bytes.

    The user's own user data goes in as it is (any cloud-init format); the SSH keys also stand in meta-data.
    """
    hostname = vm.hostname or vm.name
    keys = list(vm.ssh_keys)
    meta: dict[str, object] = {"instance-id": vm.id, "local-hostname": hostname}
    config: dict[str, object] = {"hostname": hostname}
    if keys:
        meta["public-keys"] = keys
        config["ssh_authorized_keys"] = keys
    return {
        "meta-data": _dump(meta),
        "network-config": _dump(_network(vm)),
        "user-data": vm.user_data or b"#cloud-config\n" + _dump(config),
    }


async def write_seed(path: Path, vm: DesiredVm, owner: Owner | None = None) -> bool:
    """Make the ISO at path, mode 0600, atomically; return False when it held exactly this already. Raises StorageError.

    owner: whose guests' processes are.
    """
    with attempt(f"writing the seed of {vm.id}"):
        return await in_thread(_write, path, build_seed(vm), (owner or Owner()).give)


def _write(path: Path, files: dict[str, bytes], own: Callable[[Path], None]) -> bool:
    mark = _mark(files)
    if _mark_of(path) == mark:
        own(path)
        return False
    folder = _folder_of(path)
    try:
        _lay_out(folder, files)
        _make_iso(folder / "seed.iso", folder / "files", mark)
        own(folder / "seed.iso")
        sync_file(folder / "seed.iso")
        # Complete under its name or not there; whether the name survives a power cut matters to nobody: it is made again.
        (folder / "seed.iso").replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


async def remove_seed(path: Path) -> None:
    """Delete a seed, and what of it a killed writer left; absent: no error."""
    with attempt(f"removing the seed {path}"):
        with suppress(FileNotFoundError):
            await in_thread(shutil.rmtree, _folder_of(path))
        await in_thread(remove, path)


def _folder_of(path: Path) -> Path:
    """Return where a seed is while it is made: what is in it is a secret, too."""
    return path.with_name(f".{path.name}.new")


def _network(vm: DesiredVm) -> dict[str, object]:
    ethernets = {}
    for number, nic in enumerate(vm.nics):
        card: dict[str, object] = {"match": {"macaddress": nic.mac}, "set-name": f"eth{number}", "dhcp4": True}
        if nic.mtu:
            card["mtu"] = nic.mtu
        ethernets[f"eth{number}"] = card
    return {"version": 2, "ethernets": ethernets}


def _dump(content: dict[str, object]) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000).encode()


def _mark(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(files[name]), files[name]))
    return f"CAIRN SEED {digest.hexdigest().upper()}"


def _mark_of(path: Path) -> str:
    """Return the application identifier of an ISO; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(_APPLICATION_AT)
            return file.read(_APPLICATION_BYTES).decode("ascii", errors="replace").rstrip()
    except FileNotFoundError:
        return ""


def _lay_out(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    for name, content in files.items():
        (folder / "files" / name).write_bytes(content)


def _make_iso(path: Path, folder: Path, mark: str) -> None:
    try:
        done = subprocess.run(
            [*_COMMAND, "-appid", mark, "-output", str(path), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"genisoimage took longer than {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise StorageError(f"genisoimage failed: {done.stderr.decode(errors='replace').strip()}")
