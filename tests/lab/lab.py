"""A whole cloud on one machine: N servers, the product's own programs, the product's own way to join.

    lab = Lab("lab", nodes=3); lab.up(); lab.cairn("vm", "list"); lab.down()

The first three servers (one, when there are fewer than three) also carry etcd and a controller. `up` is idempotent and mends
what is missing; `down` removes every trace, also of a lab whose maker crashed. The ordinary shell reaches the controllers
through their unix sockets; `up` writes the context `lab` for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.lab import etcd, libvirtd
from tests.lab.ceph import Ceph
from tests.lab.ceph import missing as ceph_missing
from tests.lab.console import converse
from tests.lab.hosts import REPOSITORY, ROOT, Host, LabError, Underlay, erase, namespaces, run, traces, wait_until

BINARIES = REPOSITORY / ".venv" / "bin"
CONTROL_NODES_MAX = 3
UP_TIMEOUT_S = 90.0
STORAGE_ADDRESS = "172.31.0.31"
# Its place on the underlay's bridge; the nodes' are 1 to 9.
STORAGE_PORT = 21
STORAGE_OSDS = 3
STORAGE_POOL = "vms"
STORAGE_USER = "cairn"


@dataclass(frozen=True)
class Storage:
    """A server with a Ceph cluster, which the nodes use as any that is there already."""

    host: Host
    ceph: Ceph


class Lab:
    """One lab; `name` keeps several apart."""

    def __init__(
        self, name: str = "lab", nodes: int = 3, say: Callable[[str], None] = lambda text: None, *, storage: str = ""
    ) -> None:
        """storage: "ceph" for a cluster on a server of its own, which all nodes have a pool of; a lab that has one keeps it."""
        if not 1 <= nodes <= 9:
            raise LabError(f"--nodes is {nodes}: a lab has 1 to 9 servers")
        if storage not in ("", "ceph"):
            raise LabError(f"--storage is {storage}: ceph, or nothing for disks of the nodes alone")
        self.name, self.nodes, self.say, self._storage = name, nodes, say, storage
        self.folder = ROOT / name
        self.prefix = f"cl-{name}"
        self.underlay = Underlay(self.prefix)

    # --- what it consists of -----------------------------------------------------------------------------------------

    @cached_property
    def hosts(self) -> list[Host]:
        hosts = [self._host(index) for index in range(1, self.nodes + 1)]
        control = hosts[: self._control_count]
        members = {host.name: host.address for host in control}
        for host in control:
            host.services |= self._control_services(host.name, members)
        return hosts

    @cached_property
    def storage(self) -> Storage | None:
        """The server with Ceph, if there is one."""
        folder = self.folder / "s1"
        if not self._storage and not folder.exists():
            return None
        host = Host("s1", STORAGE_ADDRESS, folder, f"{self.prefix}-s1")
        return Storage(host, Ceph.of_host(host, folder / "ceph", STORAGE_OSDS))

    @property
    def control(self) -> list[Host]:
        """The servers that carry etcd and a controller."""
        return self.hosts[: self._control_count]

    @property
    def _control_count(self) -> int:
        return CONTROL_NODES_MAX if self.nodes >= CONTROL_NODES_MAX else 1

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def config_path(self) -> Path:
        """Where the command line finds this lab when told by CAIRN_CONFIG."""
        return self.folder / "config.toml"

    def _host(self, index: int) -> Host:
        name = f"n{index}"
        host = Host(name, f"172.31.0.{10 + index}", self.folder / name, f"{self.prefix}-{name}")
        data = host.folder / "data"
        host.binds = [
            (str(data / "etc"), "/etc/cairn"),
            (str(data / "lib"), "/var/lib/cairn"),
            (str(data / "run"), "/run/cairn"),
            *self._libvirtd(host).binds(),
        ]
        host.services = {
            "libvirtd": {"argv": self._libvirtd(host).argv()},
            "agent": {"argv": [str(BINARIES / "cairn-agent"), "run", "--config", "/etc/cairn/agent.toml"]},
        }
        return host

    def _libvirtd(self, host: Host) -> libvirtd.Libvirtd:
        return libvirtd.Libvirtd(host.folder / "libvirt", host.name, host.address)

    # --- up ------------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Bring everything up that is not; mends a lab that is half there."""
        ROOT.mkdir(mode=0o700, exist_ok=True)
        with (ROOT / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is_up():
                self.say("it is up already")
                self._write_contexts()
                return
            self._make()
            self._write_contexts()

    def _is_up(self) -> bool:
        if not all(host.init_pid for host in self.hosts) or not self.config_path.exists():
            return False
        if self.storage is not None and not (self.storage.host.init_pid and self.storage.ceph.is_formed):
            return False
        listed = self.cairn("node", "list", "-o", "json", check=False)
        if listed.returncode != 0:
            return False
        ready = [node for node in json.loads(listed.stdout) if node.get("status", {}).get("state") == "STATE_READY"]
        return len(ready) == self.nodes

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        libvirtd.warm(self.folder)
        self.underlay.up()
        self._certificates()
        for host in self.control:
            self._prepare_control(host)
        if self.storage is not None:
            self._boot_storage(self.storage)
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._boot, range(1, self.nodes + 1)))
        self._write_context(self.config_path, "lab")
        self.say("waiting for the control plane")
        wait_until(
            f"the controllers to answer (see {self.folder}/n1/log/controller.log)",
            lambda: self.cairn("cluster", "status", check=False).returncode == 0,
            UP_TIMEOUT_S,
        )
        for host in self.hosts:
            self._join(host)
        self.say("waiting for every node to be ready")
        wait_until(f"the nodes to be ready (see {self.folder}/n*/log/agent.log)", self._is_up, UP_TIMEOUT_S, every_s=0.3)

    def _certificates(self) -> None:
        if (self.pki / "ca.crt").exists():
            return
        arguments = ["--directory", str(self.pki), "--name", self.name]
        for host in self.control:
            arguments += ["--controller", f"{host.name}={host.address}", "--etcd", f"{host.name}={host.address}"]
        run(str(BINARIES / "cairn"), "cluster", "init", *arguments)

    def _prepare_control(self, host: Host) -> None:
        """Give a server what its etcd member and its controller need."""
        data = host.folder / "data"
        for sub in ("etc/pki", "lib/etcd", "run"):
            (data / sub).mkdir(parents=True, exist_ok=True, mode=0o700)
        controller = f"controller-{host.name}"
        copies = {
            "ca.crt": "ca.crt",
            "ca.key": "ca.key",
            "secrets.key": "secrets.key",
            "etcd-ca.crt": "etcd-ca.crt",
            **{f"{controller}.{end}": f"controller.{end}" for end in ("crt", "key")},
            **{f"{controller}-etcd.{end}": f"controller-etcd.{end}" for end in ("crt", "key")},
            **{f"etcd-{host.name}.{end}": f"etcd.{end}" for end in ("crt", "key")},
        }
        for source, target in copies.items():
            place(data / "etc" / "pki" / target, (self.pki / source).read_bytes())
        place(data / "etc" / "controller.toml", self._controller_config(host).encode())

    @staticmethod
    def _control_services(name: str, members: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        controller = [str(BINARIES / "cairn-controller"), "--config", "/etc/cairn/controller.toml"]
        member = etcd.member_argv(name, members, Path("/var/lib/cairn/etcd"), Path("/etc/cairn/pki"))
        return {"etcd": {"argv": member, "drop": True}, "controller": {"argv": controller, "drop": True}}

    def _controller_config(self, host: Host) -> str:
        endpoints = [f"{each.address}:2379" for each in self.control]
        return toml(
            name=host.name,
            listen=[f"{host.address}:7443", f"unix:{self.socket_of(host)}"],
            advertise=f"{host.address}:7443",
            enrol_listen=f"{host.address}:7444",
            metrics_listen=f"{host.address}:7445",
            etcd_endpoints=endpoints,
            etcd_ca="/etc/cairn/pki/etcd-ca.crt",
            etcd_cert="/etc/cairn/pki/controller-etcd.crt",
            etcd_key="/etc/cairn/pki/controller-etcd.key",
            ca="/etc/cairn/pki/ca.crt",
            cert="/etc/cairn/pki/controller.crt",
            key="/etc/cairn/pki/controller.key",
            ca_key="/etc/cairn/pki/ca.key",
            audit_dir="/var/lib/cairn/audit",
        )

    def socket_of(self, host: Host) -> Path:
        """A controller's unix socket; the path is the same inside and outside the server."""
        return host.folder / "data" / "run" / "controller.sock"

    def _boot(self, index: int) -> None:
        host = self.hosts[index - 1]
        if host.init_pid:
            return
        self._libvirtd(host).write()
        for sub in ("etc/pki", "lib", "run"):
            (host.folder / "data" / sub).mkdir(parents=True, exist_ok=True, mode=0o700)
        (host.folder / "down").mkdir(exist_ok=True)
        if not (host.folder / "data/etc/pki/node.crt").exists():
            (host.folder / "down" / "agent").touch()
        place(host.folder / "data" / "etc" / "agent.toml", self._agent_config(host).encode())
        if host.namespace not in namespaces():
            run("ip", "netns", "add", host.namespace)
            self.underlay.plug(index, host.namespace, host.address)
        host.boot()

    def _boot_storage(self, storage: Storage) -> None:
        """Power the server with Ceph on, make its cluster the first time, and a pool that nodes may enter."""
        host, ceph = storage.host, storage.ceph
        if host.init_pid and ceph.is_formed:
            return
        if missing := ceph_missing():
            raise LabError(f"this machine lacks what Ceph needs: {missing}")
        self.say("a server with Ceph: a monitor, a manager, three OSDs")
        if not ceph.is_formed:
            host.power_off()
            shutil.rmtree(ceph.folder, ignore_errors=True)
            for name in host.services:
                place(host.folder / "down" / name, b"")
        if host.namespace not in namespaces():
            run("ip", "netns", "add", host.namespace)
            self.underlay.plug(STORAGE_PORT, host.namespace, host.address)
        host.boot()
        if not ceph.is_formed:
            ceph.form()
            ceph.make_pool(STORAGE_POOL, copies=STORAGE_OSDS)
        ceph.enrol(STORAGE_USER, STORAGE_POOL)

    def _agent_config(self, host: Host) -> str:
        rbd: dict[str, Any] = {}
        if self.storage is not None:
            conf = self.storage.ceph.folder / f"{STORAGE_USER}.conf"
            rbd = {"rbd_pool": STORAGE_POOL, "rbd_user": STORAGE_USER, "rbd_conf": str(conf)}
        return toml(
            name=host.name,
            listen=f"{host.address}:7446",
            vtep=host.address,
            metrics_listen=f"{host.address}:7447",
            **rbd,
        )

    def _join(self, host: Host) -> None:
        """Let a server join as any server does: a one-time token in a file, a key made there, a certificate signed here."""
        if (host.folder / "data/etc/pki/node.crt").exists():
            host.start("agent")
            return
        token = self.cairn("node", "token", "create", "--node", host.name).stdout
        place(host.folder / "data" / "etc" / "join-token", token.encode())
        agent = str(BINARIES / "cairn-agent")
        host.run(agent, "join", "--config", "/etc/cairn/agent.toml", "--token-file", "/etc/cairn/join-token")
        (host.folder / "data" / "etc" / "join-token").unlink()
        host.start("agent")
        self.say(f"{host.name} joined")

    # --- the way in ------------------------------------------------------------------------------------------------------

    @property
    def endpoints(self) -> list[str]:
        return [f"unix:{self.socket_of(host)}" for host in self.control]

    def _write_context(self, path: Path, context: str) -> None:
        document: dict[str, Any] = tomllib.loads(path.read_text()) if path.exists() else {}
        contexts = document.setdefault("contexts", {})
        contexts[context] = {
            "endpoints": self.endpoints,
            "ca": str(self.pki / "ca.crt"),
            "cert": str(self.pki / "admin.crt"),
            "key": str(self.pki / "admin.key"),
        }
        document["current"] = context
        write_contexts(path, document)

    def _write_contexts(self) -> None:
        self._write_context(self.config_path, "lab")
        if self.name == "lab":
            self._write_context(user_config(), "lab")

    def _forget_context(self) -> None:
        path = user_config()
        if self.name != "lab" or not path.exists():
            return
        document = tomllib.loads(path.read_text())
        document.get("contexts", {}).pop("lab", None)
        if document.get("current") == "lab":
            document["current"] = next(iter(document.get("contexts", {})), "")
        if document.get("contexts"):
            write_contexts(path, document)
        else:
            path.unlink()

    def environment(self) -> dict[str, str]:
        """For the product's command line."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        return {**kept, "CAIRN_CONFIG": str(self.config_path), "NO_COLOR": "1", "COLUMNS": "100"}

    def cairn(
        self, *arguments: str, check: bool = True, timeout_s: float = 180.0, **keywords: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the product's command line against this lab."""
        command = [str(BINARIES / "cairn"), *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment(), timeout=timeout_s,
            stdin=keywords.pop("stdin", subprocess.DEVNULL), **keywords,
        )  # fmt: skip
        if check and result.returncode != 0:
            raise LabError(f"cairn {' '.join(arguments)}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def json(self, *arguments: str) -> Any:
        """Run it with -o json and return the document."""
        return json.loads(self.cairn(*arguments, "-o", "json").stdout)

    def console(self, vm: str, line: str, *, until: str, timeout_s: float = 30.0) -> str:
        """Type a line into a guest's serial console, return what it said up to `until`."""
        return converse([str(BINARIES / "cairn"), "vm", "console", vm], self.environment(), line, until, timeout_s)

    # --- down ------------------------------------------------------------------------------------------------------------

    def down(self) -> None:
        """Remove every trace."""
        started = time.monotonic()
        erase(self.prefix, self.folder)
        self._forget_context()
        (ROOT / f"{self.name}.lock").unlink(missing_ok=True)
        if ROOT.exists() and not any(ROOT.iterdir()):
            ROOT.rmdir()
        if left := self.traces():
            raise LabError("these traces are left:\n" + "\n".join(left))
        self.say(f"removed in {time.monotonic() - started:.1f} s")

    def traces(self) -> list[str]:
        """What is left of this lab outside its folder and in it."""
        return traces(self.prefix, self.folder)

    def status(self) -> None:
        """Say which processes run."""
        for host in [*self.hosts, *([self.storage.host] if self.storage is not None else [])]:
            running = {name: host.pid_of(name) for name in host.services} if host.init_pid else {}
            print(
                f"{host.name}  {host.address}  " + ("off" if not running else "  ".join(f"{n}={p}" for n, p in running.items()))
            )


def place(path: Path, content: bytes) -> None:
    """Write a private file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_bytes(content)


def toml(**values: Any) -> str:
    """Render flat values as TOML."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def user_config() -> Path:
    """The command line's own configuration file of this user."""
    return Path(os.environ.get("CAIRN_CONFIG") or Path.home() / ".config" / "cairn" / "config.toml")


def write_contexts(path: Path, document: dict[str, Any]) -> None:
    """Write a context file, replacing it in one step."""
    lines = [f"current = {json.dumps(document.get('current', ''))}\n"]
    for name, context in document.get("contexts", {}).items():
        lines.append(f"\n[contexts.{json.dumps(name)}]\n{toml(**context)}")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(lines))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit("run python -m tests.lab")
