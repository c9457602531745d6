"""Disks: whole physical (or virtio) block devices with a medium. No loop, ram, zram, device-mapper, md, optical or floppy.

One disk is one, however many ways lead to it: paths of a multipath device, or devices with the same world-wide name, serial and
size, are counted once. One that is reached over a network (NVMe over Fabrics, iSCSI, Fibre Channel) says so: it is not this
machine's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cairn.hardware.inventory.tree import TEXT_BYTES_MAX, Tree, told
from cairn.proto.v1.node_pb2 import DiskFacts

# Always 512, whatever the device's block size (Linux Documentation/ABI/stable/sysfs-block).
_SYSFS_SECTOR_BYTES: Final = 512
# Optical, floppy, hidden paths of a multipath NVMe namespace, boot and replay areas of eMMC.
_NVME: Final = re.compile(r"nvme\d+")
_NOT_A_DISK: Final = re.compile(r"(sr|fd)\d+|nvme\d+c\d+n\d+|mmcblk\d+(boot\d+|rpmb|gp\d+)")
# Where a device hangs tells what it is; "remote": over a network.
_TRANSPORTS: Final = (
    ("/session", "iscsi"), ("/rport-", "fc"), ("/nvme", "nvme"), ("/usb", "usb"), ("/virtio", "virtio"),
    ("/end_device-", "sas"), ("/ata", "sata"),
)  # fmt: skip
_REMOTE: Final = frozenset({"iscsi", "fc"})
_SECTORS_MAX: Final = 2**63 // _SYSFS_SECTOR_BYTES - 1


def read_disks(tree: Tree) -> list[DiskFacts]:
    """Return the disks in the order of their names."""
    folders = tree.folders("sys/block") or tree.folders("sys/class/block")
    lead = _multipaths(tree, folders)
    found: dict[object, DiskFacts] = {}
    for path in folders:
        if _is_disk(tree, path):
            disk = _disk(tree, path)
            by_name = (disk.wwn, disk.serial, disk.size_bytes) if disk.wwn else path.name
            found.setdefault(lead.get(path.name) or by_name, disk).paths += 1
    return list(found.values())


def _multipaths(tree: Tree, folders: list[Path]) -> dict[str, str]:
    """Return which multipath device each path belongs to: "sda" -> "mpath-35000c50000000001"."""
    lead: dict[str, str] = {}
    for path in folders:
        uuid = tree.text(path / "dm/uuid") if path.name.startswith("dm-") else ""
        if uuid.startswith("mpath-"):
            lead.update((slave.name, uuid) for slave in tree.folders(path / "slaves"))
    return lead


def _is_disk(tree: Tree, path: Path) -> bool:
    return (
        tree.exists(path / "device")
        and not tree.exists(path / "partition")
        and not _NOT_A_DISK.fullmatch(path.name)
        and tree.number(path / "hidden") == 0
        and tree.number(path / "size", 0, _SECTORS_MAX) > 0
    )


def _disk(tree: Tree, path: Path) -> DiskFacts:
    udev = _udev(tree, tree.text(path / "dev"))
    vendor, model = told(tree.text(path / "device/vendor")), told(tree.text(path / "device/model"))
    # SCSI names the maker apart; for SATA it says only "ATA", for virtio and NVMe it is a PCI number.
    maker = "" if vendor in ("", "ATA") or vendor.startswith("0x") else vendor + " "
    transport, remote = _transport(tree, path, udev)
    return DiskFacts(
        name=path.name,
        model=(maker + model).strip() or udev.get("ID_MODEL", "").replace("_", " "),
        serial=_serial(tree, path) or udev.get("ID_SERIAL_SHORT", ""),
        size_bytes=tree.number(path / "size", 0, _SECTORS_MAX) * _SYSFS_SECTOR_BYTES,
        # virtio says so of every disk whose host does not tell.
        rotational=transport != "virtio" and tree.number(path / "queue/rotational") == 1,
        transport=transport,
        removable=tree.number(path / "removable") == 1,
        logical_block_bytes=tree.number(path / "queue/logical_block_size"),
        wwn=_wwn(tree, path) or udev.get("ID_WWN", "").replace("0x", "naa.", 1),
        remote=remote,
    )


def _transport(tree: Tree, path: Path, udev: dict[str, str]) -> tuple[str, bool]:
    """Return how a disk is reached, and whether that is over a network."""
    where = f"{tree.device(path / 'device')}/"
    for part, name in _TRANSPORTS:
        if part not in where:
            continue
        if name == "nvme" and (fabric := _fabric(tree, path)):
            return f"nvme-{fabric}", True
        if name == "sata" and _is_parallel(tree, where):
            return "pata", False
        return name, name in _REMOTE
    if tree.exists(path / "device/sas_address"):
        return "sas", False
    return {"ata": "sata", "usb": "usb", "nvme": "nvme"}.get(udev.get("ID_BUS", ""), ""), False


def _fabric(tree: Tree, path: Path) -> str:
    """Return the network an NVMe namespace comes over ("tcp", "rdma", "fc"); empty for one on PCI Express."""
    device = path / "device"
    controllers = [device, *(each for each in tree.folders(device) if _NVME.fullmatch(each.name))]
    ways = {tree.text(each / "transport") for each in controllers} - {"", "pcie", "loop", "apple-nvme"}
    return min(ways, default="")


def _is_parallel(tree: Tree, where: str) -> bool:
    """Tell whether an ATA port has no SATA link: its speed is then not known (Linux libata, sata_spd)."""
    port = where[: where.index("/", where.index("/ata") + 1)]
    speeds = {tree.text(f"{port}/{link.name}/ata_link/{link.name}/sata_spd".lstrip("/")) for link in _links(tree, port)}
    return speeds == {"<unknown>"}


def _links(tree: Tree, port: str) -> list[Path]:
    return [each for each in tree.folders(port.lstrip("/")) if each.name.startswith("link")]


def _serial(tree: Tree, path: Path) -> str:
    for name in ("serial", "device/serial"):
        if serial := told(tree.text(path / name)):
            return serial
    # Unit serial number page (SPC-4, 7.8.15): 4 bytes of head, then text.
    return told(tree.raw(path / "device/vpd_pg80")[4:].decode("ascii", errors="ignore").strip("\0 "))


def _wwn(tree: Tree, path: Path) -> str:
    for name in ("wwid", "device/wwid"):
        text = tree.text(path / name)
        if text.startswith(("naa.", "eui.", "uuid.", "nvme.")):
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
    lines = tree.text(f"run/udev/data/b{device}", TEXT_BYTES_MAX).splitlines() if device else []
    pairs = (line[2:].partition("=") for line in lines if line.startswith("E:"))
    return {key: value for key, _, value in pairs}
