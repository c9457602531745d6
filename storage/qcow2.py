"""qcow2 files, as far as we read and write them ourselves: bytes in, facts or bytes out. Source: QEMU's docs/interop/qcow2.txt.

Read: the head, for the virtual size and the reasons to refuse a file before any other program opens it. We never let QEMU guess
a format: a guest could write a qcow2 head into its raw disk and have the host open any file as its "backing file".

Written: a disk on which nothing has been written yet (`blank`), which is three tables and no data. `qemu-img create` makes the
same, but for a table of names that only messages use, and takes 15 to 30 ms to come up: a tenth of a guest's whole start.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.base import BadImage

QCOW2_MAGIC = b"QFI\xfb"
HEAD_BYTES = 4096
SECTOR_BYTES = 512
VIRTUAL_BYTES_MAX = 64 << 40

# Magic, version, backing offset and length, cluster bits, virtual size, encryption, L1 entries, L1 offset,
# refcount table offset and clusters, snapshots, snapshot table offset.
_HEAD = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">Q")
_EXTERNAL_DATA_FILE = 1 << 2
_CORRUPT = 1 << 1
# Dirty, corrupt, external data file, compression type, extended L2 entries.
_KNOWN_FEATURES = 0b11111

# What is written: version 3, clusters of 64 KiB, reference counts of 16 bits (2^4), as qemu-img does.
_CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << _CLUSTER_BITS
_REFCOUNT_ORDER = 4
# A first-level entry stands for a table of second-level entries, one cluster large, 8 bytes each.
L1_ENTRY_BYTES = CLUSTER_BYTES * (CLUSTER_BYTES // 8)
# QEMU opens no larger first-level table.
L1_ENTRIES_MAX = (32 << 20) // 8
# Features of three kinds, order of reference counts, length of the header; compression type and padding.
_VERSION_3 = struct.Struct(">QQQIIQ")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA


@dataclass(frozen=True, slots=True)
class Qcow2Head:
    """What the first bytes say. backing: the name of the backing file as written; empty: none."""

    virtual_size_bytes: int
    backing: str


def whole_sectors(size_bytes: int) -> int:
    """Return a size rounded up to whole sectors, as QEMU does."""
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def read_head(head: bytes) -> Qcow2Head:
    """Read the first HEAD_BYTES of a file (fewer when it is shorter). Raises BadImage when it is not qcow2."""
    if head[:4] != QCOW2_MAGIC:
        raise BadImage("not a qcow2 image: the file does not start with its magic number")
    if len(head) < _HEAD.size:
        raise BadImage("truncated qcow2 image: its header is incomplete")
    _, version, backing_at, backing_bytes, cluster_bits, size, _, _, _, _, _, _, _ = _HEAD.unpack_from(head)
    if version not in (2, 3):
        raise BadImage(f"qcow2 version {version} is not known (2 and 3 are)")
    if not 9 <= cluster_bits <= 21:
        raise BadImage(f"damaged qcow2 image: cluster size 2^{cluster_bits}")
    backing = ""
    if backing_at:
        backing = head[backing_at : backing_at + backing_bytes].decode(errors="replace") or "(unreadable name)"
    return Qcow2Head(virtual_size_bytes=size, backing=backing)


def blank(size_bytes: int, *, backing: str = "", backing_format: str = "") -> tuple[dict[int, bytes], int]:
    """Return (the bytes of an empty disk's file by their offsets, the size of that file); between them are zeros.

    size_bytes: of the disk, whole sectors. backing: the file it is a copy of, relative to its own, and that file's format.
    Clusters: header, reference count table, one block of counts, first-level table. ValueError: larger than what QEMU opens.
    """
    l1_entries = max(1, -(-size_bytes // L1_ENTRY_BYTES))
    if size_bytes % SECTOR_BYTES or l1_entries > L1_ENTRIES_MAX:
        raise ValueError(f"a qcow2 disk cannot have {size_bytes} bytes")
    clusters = 3 + -(-8 * l1_entries // CLUSTER_BYTES)
    l1_at, counts_at, block_at = 3 * CLUSTER_BYTES, CLUSTER_BYTES, 2 * CLUSTER_BYTES
    counts = struct.pack(">H", 1) * clusters
    whole = head(size_bytes, l1_entries, l1_at, counts_at, 1, backing=backing, backing_format=backing_format)
    return {0: whole, counts_at: struct.pack(">Q", block_at), block_at: counts}, clusters * CLUSTER_BYTES


def head(
    size_bytes: int,
    l1_entries: int,
    l1_at: int,
    counts_at: int,
    counts_clusters: int,
    *,
    backing: str = "",
    backing_format: str = "",
) -> bytes:
    """Return the header of a file: of a disk of so many bytes, whose first-level and reference count tables are there."""
    named = backing.encode()
    extensions = _extension(_BACKING_FORMAT, backing_format.encode()) if backing else b""
    extensions += _EXTENSION.pack(0, 0)
    name_at = _HEAD.size + _VERSION_3.size + len(extensions) if backing else 0
    fixed = _HEAD.pack(
        *(QCOW2_MAGIC, 3, name_at, len(named), _CLUSTER_BITS, size_bytes, 0),
        *(l1_entries, l1_at, counts_at, counts_clusters, 0, 0),
    )
    return fixed + _VERSION_3.pack(0, 0, 0, _REFCOUNT_ORDER, _HEAD.size + _VERSION_3.size, 0) + extensions + named


def _extension(kind: int, content: bytes) -> bytes:
    return _EXTENSION.pack(kind, len(content)) + content + bytes(-len(content) % 8)


def check_image(head: bytes, size_bytes: int, format: ImageFormat.ValueType) -> tuple[ImageFormat.ValueType, int]:
    """Judge an uploaded file of size_bytes by its first HEAD_BYTES.

    Returns its format (found out when `format` is unspecified) and virtual size in bytes. Raises BadImage: not what it is
    said to be, needs other files, encrypted, or too short for its own tables.
    """
    is_qcow2 = head[:4] == QCOW2_MAGIC
    if format == ImageFormat.IMAGE_FORMAT_QCOW2 or (is_qcow2 and format == ImageFormat.IMAGE_FORMAT_UNSPECIFIED):
        virtual = _check_qcow2(head, size_bytes)
        return ImageFormat.IMAGE_FORMAT_QCOW2, virtual
    if is_qcow2:
        raise BadImage("said to be raw, but it is a qcow2 image")
    if size_bytes == 0 or size_bytes % SECTOR_BYTES:
        raise BadImage(f"not a disk image: a raw image is a multiple of {SECTOR_BYTES} bytes, this has {size_bytes}")
    _check_virtual_size(size_bytes)
    return ImageFormat.IMAGE_FORMAT_RAW, size_bytes


def _check_qcow2(head: bytes, size_bytes: int) -> int:
    found = read_head(head)
    if found.backing:
        raise BadImage("the qcow2 image has a backing file; flatten it first (qemu-img convert)")
    _, version, _, _, cluster_bits, _, crypt, l1_entries, l1_at, refcounts_at, refcount_clusters, _, _ = _HEAD.unpack_from(head)
    if crypt:
        raise BadImage("the qcow2 image is encrypted; decrypt it first (qemu-img convert)")
    if version >= 3:
        _check_features(head)
    ends = (l1_at + 8 * l1_entries, refcounts_at + (refcount_clusters << cluster_bits))
    if max(ends) > size_bytes or not refcounts_at:
        raise BadImage(f"truncated qcow2 image: its tables end at byte {max(ends)}, the file has {size_bytes}")
    _check_virtual_size(found.virtual_size_bytes)
    return found.virtual_size_bytes


def _check_features(head: bytes) -> None:
    if len(head) < _HEAD.size + _FEATURES.size:
        raise BadImage("truncated qcow2 image: its header is incomplete")
    (features,) = _FEATURES.unpack_from(head, _HEAD.size)
    if features & _EXTERNAL_DATA_FILE:
        raise BadImage("the qcow2 image keeps its data in another file; flatten it first (qemu-img convert)")
    if features & _CORRUPT:
        raise BadImage("the qcow2 image is marked corrupt")
    if features & ~_KNOWN_FEATURES:
        raise BadImage(f"the qcow2 image needs features not known here ({features & ~_KNOWN_FEATURES:#x})")


def _check_virtual_size(virtual: int) -> None:
    if not SECTOR_BYTES <= virtual <= VIRTUAL_BYTES_MAX:
        if virtual < SECTOR_BYTES:
            raise BadImage(f"its disk has {virtual} bytes; the smallest is one sector, {SECTOR_BYTES} bytes")
        raise BadImage(f"its disk has {virtual / (1 << 40):.1f} TiB; the largest is {VIRTUAL_BYTES_MAX >> 40} TiB")
