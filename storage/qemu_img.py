"""qemu-img as an asyncio subprocess, under limits: an image is a stranger's input, so memory, CPU and time are bounded.

The format is always given (never probed) and no argument is a secret. Rejected: libguestfs (heavy), a QEMU storage daemon
(needed for live work only).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from cairn.storage.base import BadImage, StorageError

TIMEOUT_S = 600.0
_LIMITS = ("prlimit", "--as=4294967296", "--cpu=300", "--core=0", "--")
# Ceph's library takes gigabytes of addresses, not of memory, for its threads.
_COPY_LIMITS = ("prlimit", "--as=17179869184", "--core=0", "--")
COPY_BYTES_S_MIN = 4 << 20


async def _run(*arguments: str, limits: tuple[str, ...] = _LIMITS, more_s: float = 0.0) -> tuple[int, str, str]:
    """more_s: how much longer than others it may take."""
    timeout_s = TIMEOUT_S + more_s
    process = await asyncio.create_subprocess_exec(
        *limits,
        "qemu-img",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError as error:
        raise StorageError(f"qemu-img {arguments[0]} took longer than {timeout_s:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace").strip()


async def resize(path: str, size_bytes: int) -> None:
    """Grow a qcow2 file nobody has open. Raises StorageError with QEMU's reason (its lock, when a guest runs on it)."""
    code, _, err = await _run("resize", "-q", "-f", "qcow2", "--", path, str(size_bytes))
    if code:
        raise StorageError(f"qemu-img resize failed: {err}")


async def check(path: str, virtual_size_bytes: int) -> None:
    """Verify a stranger's qcow2 file: that QEMU reads it as we did, and that no table points past its end. Raises BadImage."""
    code, out, err = await _run("info", "-f", "qcow2", "--output=json", "--", path)
    if code:
        raise BadImage(f"qemu-img cannot read it: {_reason(err, path)}")
    info: dict[str, Any] = json.loads(out)
    if info.get("virtual-size") != virtual_size_bytes or any("backing" in key for key in info):
        raise BadImage("qemu-img reads its header differently")
    code, out, err = await _run("check", "-q", "-f", "qcow2", "--output=json", "--", path)
    # 0: clean. 3: only leaked clusters, harmless. 2: corrupt. 1: could not check.
    if code not in (0, 3):
        raise BadImage(f"qemu-img check finds it damaged: {_reason(err, path)}")


async def fill(source: str, format: str, target: Mapping[str, str], size_bytes: int) -> None:
    """Write a disk image's content over a blank block device of QEMU's (driver and its options), of that size. StorageError.

    The image is one that `check` has let pass: what is bounded is how long it may take.
    """
    options = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in target.items())
    code, _, err = await _run(
        *("convert", "-q", "-n", "--target-is-zero", "-W", "-f", format, "--target-image-opts", "--", source, options),
        limits=_COPY_LIMITS,
        more_s=size_bytes / COPY_BYTES_S_MIN,
    )
    if code:
        raise StorageError(f"qemu-img convert failed: {err.splitlines()[-1] if err else 'no reason given'}")


def _reason(err: str, path: str) -> str:
    lines = err.replace(path, "the file").splitlines()
    return lines[0] if lines else "no reason given"
