"""Secrets that guests' disks are opened with, kept by libvirt: it gives them to QEMU, and to nobody else (private)."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import libvirt
from cairn.agent.hypervisor.base import HypervisorError
from cairn.storage.base import Network, StorageError

# Usage types of secrets, by the disk's protocol; libvirt's secret format.
_TYPES: Final = {"rbd": "ceph"}


class Keys:
    """The secrets of one libvirtd. Nobody can read them back, so they are told before a guest starts, and else once."""

    def __init__(
        self,
        keys: Mapping[Network, Callable[[], Awaitable[str]]],
        call: Callable[[str, Callable[[Any], Any]], Awaitable[Any]],
    ) -> None:
        """call: does something on the connection, and raises HypervisorError."""
        self._keys = {network.secret: (network, value) for network, value in keys.items()}
        self._call = call
        self._given: set[str] = set()

    def __bool__(self) -> bool:
        """Whether any disk may need one."""
        return bool(self._keys)

    async def give(self, secrets: Iterable[str], *, again: bool = False) -> None:
        """Have libvirt know these, those that are ours. HypervisorError when it cannot, or a value cannot be had.

        again: also what it was told: it may have been made anew since, or the value be another.
        """
        for secret in secrets:
            if secret not in self._keys or (secret in self._given and not again):
                continue
            network, value = self._keys[secret]
            try:
                key = await value()
            except StorageError as error:
                raise HypervisorError(f"the key of {network.user} cannot be had: {error}") from error
            await self._call(f"keep the key of {network.user}", partial(_keep, network, key))
            self._given.add(secret)


def secret_xml(network: Network) -> str:
    """Return the definition of the secret that a network disk names, in libvirt's secret format."""
    secret = ET.Element("secret", ephemeral="no", private="yes")
    ET.SubElement(secret, "uuid").text = network.secret
    ET.SubElement(secret, "description").text = f"cairn: {network.user} of {network.config or network.protocol}"
    usage = ET.SubElement(secret, "usage", type=_TYPES[network.protocol])
    # Names of usages are unique, as UUIDs are.
    ET.SubElement(usage, "name").text = f"cairn {network.secret}"
    return ET.tostring(secret, encoding="unicode")


def secrets_of(domain: Any) -> list[str]:
    """Return the UUIDs of the secrets that a virDomain's disks name."""
    tree = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))  # noqa: S314 - libvirt's own
    return [uuid for each in tree.iterfind("devices/disk/source/auth/secret") if (uuid := each.get("uuid"))]


def _keep(network: Network, value: str, connection: Any) -> None:
    connection.secretDefineXML(secret_xml(network)).setValue(base64.b64decode(value))
