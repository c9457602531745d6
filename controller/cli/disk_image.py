"""What a file is: a qcow2 or raw disk image, and whether it is all there. Looked at before anything is sent.

qcow2: header, L1 and L2 tables (QEMU docs/interop/qcow2.txt). A file that ends before a cluster its tables point to was cut.
Raw has no header, so without --format only what looks like a disk is taken: a partition table, a boot sector, or a file system.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cairn.controller.cli.failures import Failure
from cairn.controller.cli.values import size_text

QCOW2_MAGIC: Final = b"QFI\xfb"
SECTOR_BYTES: Final = 512
# Bits 9 to 55 of an L1 or L2 entry: a host offset.
_OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED: Final = 1 << 62
_L1_ENTRIES_MAX: Final = 4 << 20
_PACKED: Final = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}
_OTHER: Final = {
    b"KDMV": "a VMware disk (VMDK)",
    b"vhdxfile": "a Hyper-V disk (VHDX)",
    b"conectix": "a VHD disk",
    b"<<< ": "a VirtualBox disk (VDI)",
    b"\x7fELF": "a program",
    b"LUKS\xba\xbe": "an encrypted disk (LUKS)",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
_TURN: Final = {
    "an encrypted disk (LUKS)": "a guest cannot start from it: decrypt it first, and import what is inside",
    "a program": "give the file of a disk",
    "a web page": "what was downloaded is a page, not the image: look at its address",
}
_CONVERT: Final = "qemu-img convert -O qcow2 turns many into one"
# POSIX.1-1988, ustar: the magic is at byte 257.
_TAR_AT: Final = 257
# (offset, bytes): what a raw disk holds somewhere near its start.
_SIGNS: Final = (
    (510, b"\x55\xaa"),
    (512, b"EFI PART"),
    (0x438, b"\x53\xef"),
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),
    (0x8001, b"CD001"),
    (0, b"hsqs"),
)


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A file that is an image. format: "qcow2" or "raw"."""

    path: Path
    format: str
    size_bytes: int
    virtual_size_bytes: int


def inspect(path: Path, format: str | None) -> DiskImage:
    """Return what a file is; Failure when it is no image, not of the format said, or cut short."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(64 << 10) + file.read(8 << 10)
            return _inspect(path, file, size, start, format)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error


def _inspect(path: Path, file: BinaryIO, size: int, start: bytes, format: str | None) -> DiskImage:
    if not size:
        raise Failure(f"{path} is empty")
    if format != "raw" and start.startswith(QCOW2_MAGIC):
        return DiskImage(path, "qcow2", size, _check_qcow2(path, file, size))
    if format == "qcow2":
        raise Failure(f"{path} is not qcow2: it does not start with the bytes QFI\\xfb")
    if format is None:
        _check_raw(path, start)
    elif start.startswith(QCOW2_MAGIC):
        raise Failure(f"{path} is qcow2, not raw", next="leave --format out")
    if size % SECTOR_BYTES:
        raise Failure(f"{path} is {size} bytes, not a whole number of {SECTOR_BYTES}-byte sectors: a raw image that was cut?")
    return DiskImage(path, "raw", size, size)


def _check_raw(path: Path, start: bytes) -> None:
    for magic, (name, command) in _PACKED.items():
        if start.startswith(magic):
            raise Failure(f"{path} is compressed ({name})", next=f"unpack it first: {command} {path}")
    for magic, name in _OTHER.items():
        if start.startswith(magic):
            raise Failure(
                f"{path} is {name}, not a qcow2 or raw image",
                next=_TURN.get(name, "qemu-img convert -O qcow2 turns many into one"),
            )
    if start[_TAR_AT : _TAR_AT + 5] == b"ustar":
        what = "a virtual appliance (OVA) or another archive" if path.suffix.lower() == ".ova" else "an archive (tar)"
        how = f"tar -xf {path}, then qemu-img convert -O qcow2 DISK.vmdk DISK.qcow2, and import that"
        raise Failure(f"{path} is {what}, not a qcow2 or raw image", next=how)
    if not any(start[offset:].startswith(sign) for offset, sign in _SIGNS):
        raise Failure(
            f"{path} is not an image: neither qcow2, nor does it hold a partition table or file system",
            next="if it is a raw image all the same, say --format raw",
        )


def _check_qcow2(path: Path, file: BinaryIO, size: int) -> int:
    """Return the virtual size; Failure for a header we cannot use or a file that ends too early."""
    header = _read(path, file, size, 0, 72)
    version, backing, _, cluster_bits, virtual_size, crypt, l1_size, l1_offset = struct.unpack_from(">IQIIQIIQ", header, 4)
    if version not in (2, 3):
        raise Failure(f"{path} is qcow2 version {version}; 2 and 3 are known")
    if not 9 <= cluster_bits <= 21 or l1_size > _L1_ENTRIES_MAX:
        raise Failure(f"{path} has a broken qcow2 header")
    if backing:
        raise Failure(f"{path} is only the difference to another image", next=f"qemu-img convert -O qcow2 {path} WHOLE.qcow2")
    if crypt:
        raise Failure(f"{path} is encrypted")
    if version == 3 and struct.unpack_from(">Q", _read(path, file, size, 72, 8))[0] & 0b100:
        raise Failure(f"{path} keeps its data in another file", next=f"qemu-img convert -O qcow2 {path} WHOLE.qcow2")
    cluster = 1 << cluster_bits
    for index, l1 in enumerate(_entries(path, file, size, l1_offset, l1_size)):
        if table := l1 & _OFFSET_MASK:
            left = virtual_size - index * cluster * (cluster // 8)
            _check_table(path, file, size, table, cluster_bits, left)
    return int(virtual_size)


def _check_table(path: Path, file: BinaryIO, size: int, table: int, cluster_bits: int, left: int) -> None:
    """Check an L2 table; left: bytes of the disk from its first cluster on. The disk's last cluster may be a short one."""
    cluster = 1 << cluster_bits
    for index, entry in enumerate(_entries(path, file, size, table, cluster // 8)):
        if entry & _COMPRESSED:
            end = (entry & ((1 << (62 - (cluster_bits - 8))) - 1)) + 1
        else:
            offset = entry & _OFFSET_MASK
            end = offset + max(0, min(cluster, left - index * cluster)) if offset else 0
        if end > size:
            raise _cut(path, size, end)


def _entries(path: Path, file: BinaryIO, size: int, offset: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f">{count}Q", _read(path, file, size, offset, count * 8))


def _read(path: Path, file: BinaryIO, size: int, offset: int, length: int) -> bytes:
    if offset + length > size:
        raise _cut(path, size, offset + length)
    file.seek(offset)
    return file.read(length)


def _cut(path: Path, size: int, end: int) -> Failure:
    return Failure(
        f"{path} is truncated: it has {size_text(size)} and says of itself to have at least {size_text(end)}",
        next="fetch the file again and compare its checksum",
    )
