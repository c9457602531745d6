"""What an agent needs to start, from a TOML file. An unknown key is an error. Policy is in the API, not here.

Example, all a usual node needs::

    name = "n1"
    listen = "10.0.0.11:7446"
    vtep = "10.0.0.11"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from cairn.proto.rpc import split_endpoint

HYPERVISORS: Final = ("libvirt", "fake")


class ConfigError(Exception):
    """The configuration cannot be used; the text names the key."""


@dataclass(frozen=True, slots=True)
class Config:
    """The options."""

    # Name of the node: 1 to 63 of [a-z0-9-].
    name: str
    # host:port this agent serves controllers and other nodes on.
    listen: str
    # host:port others reach it at; empty: as `listen`.
    advertise: str = ""
    # Underlay address of this node's tunnels; empty: the host of `listen`.
    vtep: str = ""
    # MTU of the underlay; 0: that of the interface that has the vtep.
    underlay_mtu: int = 0
    state_dir: str = "/var/lib/cairn"
    pki_dir: str = "/etc/cairn/pki"
    # Where volumes and images are kept; empty: state_dir.
    pool_dir: str = ""
    # User that guests' processes run as, as qemu.conf says; empty: the agent's own.
    guest_user: str = ""
    # Pool of a Ceph cluster for volumes of type rbd; empty: none. Its namespace (rados) is after a slash: "vms/cairn".
    rbd_pool: str = ""
    # As whom it is entered; `rbd_conf` names the keyring.
    rbd_user: str = "cairn"
    rbd_conf: str = "/etc/ceph/ceph.conf"
    hypervisor: str = "libvirt"
    hypervisor_uri: str = "qemu:///system"
    # host:port of the metrics (HTTPS, client certificate needed); empty: none.
    metrics_listen: str = ""
    log_level: str = "info"
    # host:port of the controllers; empty: those told at join.
    controllers: tuple[str, ...] = field(default=())

    @property
    def endpoint(self) -> str:
        """Where others reach this agent."""
        return self.advertise or self.listen

    @property
    def tunnel_address(self) -> str:
        """Underlay address of this node."""
        return self.vtep or split_endpoint(self.listen)[0]

    @property
    def state_path(self) -> Path:
        """Folder of what the agent keeps."""
        return Path(self.state_dir)

    @property
    def pool_path(self) -> Path:
        """Folder of volumes and images."""
        return Path(self.pool_dir or self.state_dir)

    @property
    def pki_path(self) -> Path:
        """Folder of key and certificates."""
        return Path(self.pki_dir)


def load(path: Path) -> Config:
    """Read a configuration; ConfigError when it cannot be used."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse(document, str(path))


def parse(document: dict[str, Any], name: str = "configuration") -> Config:
    """Check a configuration's keys, types and values."""
    known = {each.name: each for each in fields(Config)}
    for key, value in document.items():
        if key not in known:
            raise ConfigError(f"{name}: unknown key {key!r}; known are {', '.join(known)}")
        wanted = {"int": int, "tuple[str, ...]": list}.get(str(known[key].type), str)
        if type(value) is not wanted:
            raise ConfigError(f"{name}: {key} must be a {wanted.__name__}")
    for key in ("name", "listen"):
        if not document.get(key):
            raise ConfigError(f"{name}: {key} is missing")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
    config = Config(**values)
    if config.hypervisor not in HYPERVISORS:
        raise ConfigError(f"{name}: hypervisor must be one of {', '.join(HYPERVISORS)}")
    if config.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"{name}: log_level must be debug, info, warning or error")
    for key in ("listen", "advertise", "metrics_listen"):
        _check_endpoint(name, key, getattr(config, key))
    for endpoint in config.controllers:
        _check_endpoint(name, "controllers", endpoint)
    return config


def _check_endpoint(name: str, key: str, value: str) -> None:
    if not value or value.startswith("unix:"):
        return
    try:
        split_endpoint(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {key}: {error}") from error
