"""Secrets that guests' disks are opened with, kept by libvirt: it gives them to QEMU, and to nobody else (private)."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from typing import Any, Final

from cairn.storage.base import Network

# Usage types of secrets, by the disk's protocol; libvirt's secret format.
_TYPES: Final = {"rbd": "ceph"}


def secret_xml(network: Network) -> str:
    """Return the definition of the secret that a network disk names, in libvirt's secret format."""
    secret = ET.Element("secret", ephemeral="no", private="yes")
    ET.SubElement(secret, "uuid").text = network.secret
    ET.SubElement(secret, "description").text = f"cairn: {network.user} of {network.config or network.protocol}"
    usage = ET.SubElement(secret, "usage", type=_TYPES[network.protocol])
    # Names of usages are unique, as UUIDs are.
    ET.SubElement(usage, "name").text = f"cairn {network.secret}"
    return ET.tostring(secret, encoding="unicode")


def keep_secret(network: Network, value: str, connection: Any) -> None:
    """Define a network disk's secret and set its value, given in base 64."""
    connection.secretDefineXML(secret_xml(network)).setValue(base64.b64decode(value))
