"""Disks: whole physical (or virtio) block devices with a medium. No loop, ram, zram, device-mapper, md, optical or floppy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cairn.hardware.inventory.tree import Tree, told
from cairn.proto.v1.node_pb2 import DiskFacts

# Always 512, whatever the device's block size (Linux Documentation/ABI/stable/sysfs-block).
_SYSFS_SECTOR_BYTES: Final = 512
# Optical, floppy, hidden paths of a multipath NVMe namespace, boot and replay areas of eMMC.
_NOT_A_DISK: Final = re.compile(r"(sr|fd)\d+|nvme\d+c\d+n\d+|mmcblk\d+(boot\d+|rpmb|gp\d+)")
_TRANSPORTS: Final = (("/nvme", "nvme"), ("/usb", "usb"), ("/virtio", "virtio"), ("/end_device-", "sas"), ("/ata", "sata"))


def read_disks(tree: Tree) -> list[DiskFacts]:
    """Return the disks in the order of their names."""
    folders = tree.folders("sys/block") or tree.folders("sys/class/block")
    return [_disk(tree, path) for path in folders if _is_disk(tree, path)]


def _is_disk(tree: Tree, path: Path) -> bool:
    return (
        (path / "device").exists()
        and not (path / "partition").exists()
        and not _NOT_A_DISK.fullmatch(path.name)
        and tree.number(path / "hidden") == 0
        and tree.number(path / "size") > 0
    )


def _disk(tree: Tree, path: Path) -> DiskFacts:
    udev = _udev(tree, tree.text(path / "dev"))
    vendor, model = told(tree.text(path / "device/vendor")), told(tree.text(path / "device/model"))
    # SCSI names the maker apart; for SATA it says only "ATA", for virtio and NVMe it is a PCI number.
    maker = "" if vendor in ("", "ATA") or vendor.startswith("0x") else vendor + " "
    return DiskFacts(
        name=path.name,
        model=(maker + model).strip() or udev.get("ID_MODEL", "").replace("_", " "),
        serial=_serial(tree, path) or udev.get("ID_SERIAL_SHORT", ""),
        size_bytes=tree.number(path / "size") * _SYSFS_SECTOR_BYTES,
        rotational=tree.number(path / "queue/rotational") == 1,
        transport=_transport(path, udev),
        removable=tree.number(path / "removable") == 1,
        logical_block_bytes=tree.number(path / "queue/logical_block_size"),
        wwn=_wwn(tree, path) or udev.get("ID_WWN", "").replace("0x", "naa.", 1),
    )


def _transport(path: Path, udev: dict[str, str]) -> str:
    where = f"{(path / 'device').resolve()}/"
    for part, name in _TRANSPORTS:
        if part in where:
            return name
    if (path / "device/sas_address").exists():
        return "sas"
    return {"ata": "sata", "usb": "usb", "nvme": "nvme"}.get(udev.get("ID_BUS", ""), "")


def _serial(tree: Tree, path: Path) -> str:
    for name in ("serial", "device/serial"):
        if serial := told(tree.text(path / name)):
            return serial
    # Unit serial number page (SPC-4, 7.8.15): 4 bytes of head, then text.
    return told(tree.raw(path / "device/vpd_pg80")[4:].decode("ascii", errors="ignore").strip("\0 "))


def _wwn(tree: Tree, path: Path) -> str:
    for name in ("wwid", "device/wwid"):
        text = tree.text(path / name)
        if text.startswith(("naa.", "eui.", "uuid.")):
            return text
    return _naa(tree.raw(path / "device/vpd_pg83"))


def _naa(page: bytes) -> str:
    """Return the NAA designator of the logical unit in a device identification page (SPC-4, 7.8.6); empty: none."""
    at = 4
    while at + 4 <= len(page):
        length = page[at + 3]
        association, kind = page[at + 1] >> 4 & 3, page[at + 1] & 15
        if association == 0 and kind == 3:
            return "naa." + page[at + 4 : at + 4 + length].hex()
        at += 4 + length
    return ""


def _udev(tree: Tree, device: str) -> dict[str, str]:
    """Return what udev found out about a device number "8:0"; empty without udev."""
    lines = tree.text(f"run/udev/data/b{device}").splitlines() if device else []
    pairs = (line[2:].partition("=") for line in lines if line.startswith("E:"))
    return {key: value for key, _, value in pairs}
