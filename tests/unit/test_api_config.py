"""A controller's configuration: few options, and mistakes are named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.config import Config, ConfigError

GOOD: dict[str, Any] = {
    "name": "c1",
    "listen": ["10.0.0.1:7443", "unix:/run/cairn/controller.sock"],
    "etcd_endpoints": ["10.0.0.1:2379"],
} | {name: f"/etc/cairn/pki/{name}" for name in ("etcd_ca", "etcd_cert", "etcd_key", "ca", "cert", "key")}


def test_the_least_that_works() -> None:
    config = Config.parse(GOOD)
    assert config.advertised == "10.0.0.1:7443"
    assert config.listen == tuple(GOOD["listen"])


def test_at_most_sixteen_options() -> None:
    assert len(fields(Config)) <= 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lisen": []}, "unknown option 'lisen'; did you mean 'listen'"),
        ({"overcommit": 4}, "unknown option 'overcommit'"),
        ({"name": ""}, "option 'name' is required"),
        ({"listen": "10.0.0.1:7443"}, "listen: .* is not a list of texts"),
        ({"name": 7}, "name: 7 is not a text"),
        ({"listen": ["10.0.0.1"]}, "not host:port"),
        ({"advertise": "host"}, "advertise: 'host' is not host:port"),
        ({"metrics_listen": "host:99999"}, "not host:port"),
        ({"listen": ["unix:/run/c.sock"]}, "agents cannot reach a unix socket"),
        ({"log_level": "loud"}, "log_level: 'loud'"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config.parse(GOOD | change)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Config.load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not TOML"):
        Config.load(tmp_path / "bad.toml")
    (tmp_path / "good.toml").write_text("\n".join(f"{key} = {value!r}" for key, value in GOOD.items()).replace("'", '"'))
    assert Config.load(tmp_path / "good.toml").name == "c1"
