"""Firmware and system identity: DMI where there is one, else the device tree; UEFI and secure boot from /sys/firmware/efi."""

from __future__ import annotations

from typing import Final

from cairn.hardware.inventory.tree import Tree, told
from cairn.proto.v1.node_pb2 import FirmwareFacts

_DMI: Final = "sys/class/dmi/id"
_DEVICE_TREES: Final = ("sys/firmware/devicetree/base", "proc/device-tree")
# UEFI specification 2.10, 3.3: EFI_GLOBAL_VARIABLE. The file has 4 bytes of attributes before the value.
_SECURE_BOOT: Final = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def read_firmware(tree: Tree) -> FirmwareFacts:
    """Return who made the machine and its firmware. Serial and UUID are readable to root only, and empty otherwise."""

    def dmi(name: str) -> str:
        return told(tree.text(f"{_DMI}/{name}"))

    facts = FirmwareFacts(
        vendor=dmi("bios_vendor"),
        version=dmi("bios_version"),
        date=dmi("bios_date"),
        uefi=tree.is_dir("sys/firmware/efi"),
        secure_boot=tree.raw(_SECURE_BOOT)[4:5] == b"\1",
        # A maker of boards leaves the system's strings to whoever builds the system; the board has a name all the same.
        system_vendor=dmi("sys_vendor") or dmi("board_vendor"),
        system_product=dmi("product_name") or dmi("board_name"),
        system_serial=dmi("product_serial"),
        system_uuid=dmi("product_uuid").lower(),
    )
    base = next((name for name in _DEVICE_TREES if tree.is_dir(name)), "")
    if base and not facts.system_product:
        maker = tree.text(f"{base}/compatible").partition("\0")[0].partition(",")
        facts.system_product = told(tree.text(f"{base}/model"))
        facts.system_vendor = facts.system_vendor or (maker[0] if maker[1] else "")
        facts.system_serial = facts.system_serial or told(tree.text(f"{base}/serial-number"))
    return facts
