"""What a controller needs to start. Everything else (overcommit, cordons, retention) is a resource in the API.

A TOML file (`cairn-controller --config /etc/cairn/controller.toml`):

    name = "c1"
    listen = ["10.0.0.1:7443", "unix:/run/cairn/controller.sock"]
    etcd_endpoints = ["10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"]
    etcd_ca = "/etc/cairn/pki/etcd-ca.crt"      # and etcd_cert, etcd_key
    ca = "/etc/cairn/pki/ca.crt"                # and cert, key; ca_key where this controller signs

An unknown or misspelt key is an error that names it and the nearest one there is.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Self

from cairn.proto.pki import SECRETS_KEY

LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """The configuration cannot be used; the text names the option."""


@dataclass(frozen=True, slots=True)
class Config:
    """A controller's options. Addresses are "host:port"; `listen` takes "unix:/path" too."""

    # Unique among the controllers; the name in its certificate.
    name: str
    # Where clients and agents reach it, mTLS.
    listen: tuple[str, ...]
    etcd_endpoints: tuple[str, ...]
    etcd_ca: str
    etcd_cert: str
    etcd_key: str
    # PEM files: the CA everybody trusts, this controller's certificate and its key.
    ca: str
    cert: str
    key: str
    # host:port under which others reach it; empty: the first TCP address of `listen`.
    advertise: str = ""
    # Where new nodes enrol, without a client certificate; empty: nowhere.
    enrol_listen: str = ""
    # Prometheus metrics, HTTPS with client certificates; empty: none.
    metrics_listen: str = ""
    # Key of the CA, where this controller signs certificates.
    ca_key: str = ""
    # A folder of this host for what the audit lets go of in the store, this controller's own; empty: it is gone then.
    audit_dir: str = ""
    # Name of the cluster, used when this controller is the first of a new one.
    cluster: str = "cairn"
    log_level: str = "info"

    @property
    def advertised(self) -> str:
        """host:port under which others reach it."""
        return self.advertise or next((address for address in self.listen if not address.startswith("unix:")), "")

    @property
    def secrets_key(self) -> Path:
        """Keys that seal what users trust the cluster with: beside this controller's own key, the same on every controller."""
        return Path(self.key).with_name(SECRETS_KEY)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises ConfigError."""
        try:
            return cls.parse(tomllib.loads(path.read_text()))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Return the options of a parsed file. Raises ConfigError."""
        options = {field.name: field for field in fields(cls)}
        for key in content:
            if key not in options:
                near = difflib.get_close_matches(key, options, 1)
                raise ConfigError(f"unknown option {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        for name, option in options.items():
            if option.default is MISSING and not content.get(name):
                raise ConfigError(f"option {name!r} is required")
        config = cls(**{key: _typed(key, value, str(options[key].type)) for key, value in content.items()})
        config._check()
        return config

    def _check(self) -> None:
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level: {self.log_level!r} is not one of {', '.join(LOG_LEVELS)}")
        for name in ("advertise", "enrol_listen", "metrics_listen"):
            value = getattr(self, name)
            if value:
                _check_address(name, value)
        for address in self.listen:
            if not address.startswith("unix:"):
                _check_address("listen", address)
        if not self.advertised:
            raise ConfigError("listen: at least one host:port is needed, or `advertise`: agents cannot reach a unix socket")


def _typed(key: str, value: Any, wanted: str) -> Any:
    if wanted == "str" and isinstance(value, str):
        return value
    if wanted.startswith("tuple") and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise ConfigError(f"{key}: {value!r} is not a {'text' if wanted == 'str' else 'list of texts'}")


def _check_address(name: str, value: str) -> None:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{name}: {value!r} is not host:port")
