"""A Ceph cluster for tests and labs: one monitor, one manager, OSDs that keep all in memory, or in files.

    with Ceph(folder) as ceph:                         # children of the test, on loopback, in memory
        ceph.make_pool("vms")
        conf = ceph.enrol("cairn", "vms")              # a ceph.conf whose keyring may enter that pool alone
        ceph.ask("osd", "blocklist", "ls")             # as the administrator
        ceph.osds[0].kill()

    ceph = Ceph.of_host(host, folder, osds=3)          # services of a lab's host, in files
    host.boot(); ceph.form()

It answers some seconds after its start. What an OSD in memory had when it is killed is gone, as with a lost disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from tests.lab.etcd import free_ports
from tests.lab.hosts import Child, Host, LabError, Running, wait_until

ADDRESS = "127.0.0.21"
PORTS = (3300, 6789)
OSD_BYTES = 4 << 30
PLACEMENT_GROUPS = 8
_NEEDED = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-authtool", "monmaptool", "ceph", "rbd")

_CONF = """\
[global]
fsid = {fsid}
mon_host = {monitor}
ms_bind_ipv6 = false
public_addr = {address}
cluster_addr = {address}
auth_allow_insecure_global_id_reclaim = false
run_dir = {folder}/run
log_file = {folder}/log/$name.log
crash_dir = {folder}/crash
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_delete = true
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_osd_nearfull_ratio = .95
mon_osd_backfillfull_ratio = .96
mon_osd_full_ratio = .97
paxos_propose_interval = 0.1
paxos_min_wait = 0.02
osd_heartbeat_interval = 1
osd_heartbeat_grace = 4
mon_osd_min_down_reporters = 1
mon_osd_adjust_heartbeat_grace = false
[mon]
mon_data = {folder}/mon
keyring = {folder}/keyring
admin_socket = {folder}/run/$name.asok
[mgr]
mgr_data = {folder}/mgr
mgr_initial_modules =
mgr_stats_period = 1
admin_socket = {folder}/run/$name.asok
[osd]
osd_data = {folder}/osd.$id
osd_objectstore = {store}
memstore_device_bytes = {bytes}
bluestore_block_size = {bytes}
bdev_enable_discard = false
osd_memory_target = 939524096
admin_socket = {folder}/run/$name.asok
[client]
keyring = {folder}/keyring
"""


def missing() -> str:
    """Say what of Ceph this machine lacks; empty: nothing."""
    lacks = [name for name in _NEEDED if not shutil.which(name)]
    return f"no {', '.join(lacks)}" if lacks else ""


class Daemon(Protocol):
    """One process of the cluster."""

    def start(self) -> None: ...
    def kill(self, number: int = signal.SIGKILL) -> None: ...


@dataclass
class Service:
    """One that is a host's service, which starts it again when it ends."""

    name: str
    host: Host

    def start(self) -> None:
        """Let it run."""
        self.host.start(self.name)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.host.kill(self.name, number)


class Ceph(Running):
    """See the module."""

    def __init__(self, folder: Path, osds: int = 1, *, enter: Sequence[str] = ()) -> None:
        """enter: command line that leads into the network it is to be in; none: this one."""
        self._set_up(folder, osds, ADDRESS, free_ports([ADDRESS]), "memstore")
        self._enter = lambda *argv: [*enter, *argv]
        log = folder / "log"
        self._daemons: dict[str, Daemon] = {
            name: Child([*enter, *argv], log / f"{name}.out") for name, argv in self._programs.items()
        }

    @classmethod
    def of_host(cls, host: Host, folder: Path, osds: int) -> Self:
        """Return one whose processes are services of a host that is not booted yet; `form` makes it once it is."""
        self = cls.__new__(cls)
        self._set_up(folder, osds, host.address, PORTS, "bluestore")
        self._enter = host.enter
        host.services |= {name: {"argv": argv} for name, argv in self._programs.items()}
        self._daemons = {name: Service(name, host) for name in self._programs}
        return self

    def _set_up(self, folder: Path, osds: int, address: str, ports: tuple[int, int], store: str) -> None:
        self.folder, self.conf, self._store = folder, folder / "ceph.conf", store
        self._monitor, self._address = f"[v2:{address}:{ports[0]},v1:{address}:{ports[1]}]", address
        self._enter: Callable[..., list[str]]
        self._daemons: dict[str, Daemon]
        options = ["--conf", str(self.conf), "-f", "-i"]
        self._programs = {
            "mon": ["/usr/bin/ceph-mon", *options, "a"],
            "mgr": ["/usr/bin/ceph-mgr", *options, "x"],
            **{f"osd{index}": ["/usr/bin/ceph-osd", *options, str(index)] for index in range(osds)},
        }

    @property
    def osds(self) -> list[Daemon]:
        """Its OSDs, the first first."""
        return [daemon for name, daemon in self._daemons.items() if name.startswith("osd")]

    @property
    def is_formed(self) -> bool:
        """Whether it was made, as far as its folder tells."""
        return (self.folder / "formed").exists()

    def form(self) -> None:
        """Make a new cluster and start it; LabError when it does not come up."""
        for each in ("run", "log", "crash", "mon", "mgr"):
            (self.folder / each).mkdir(parents=True)
        known = {"address": self._address, "monitor": self._monitor, "folder": self.folder, "bytes": OSD_BYTES}
        fsid = str(uuid.uuid4())
        self.conf.write_text(_CONF.format(fsid=fsid, store=self._store, **known))
        self._make_mon(fsid)
        self._daemons["mon"].start()
        self.ask("osd", "set-require-min-compat-client", "nautilus")
        said = self.ask("auth", "get-or-create", "mgr.x", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")
        (self.folder / "mgr" / "keyring").write_text(f"[mgr.x]\nkey = {said[0]['key']}\n")
        self._daemons["mgr"].start()
        for index, osd in enumerate(self.osds):
            self._make_osd(index)
            osd.start()
        wait_until("the OSDs to be up", lambda: self.ask("osd", "stat")["num_up_osds"] == len(self.osds), 120)
        (self.folder / "formed").touch()

    def ask(self, *words: str, text: str = "") -> Any:
        """Return what the cluster answers its administrator, from JSON; LabError when it refuses."""
        said = self.run("ceph", "--connect-timeout", "20", "-f", "json", *words, text=text)
        # Some answers have a line for people after them.
        return json.JSONDecoder().raw_decode(said.strip())[0] if said.strip() else None

    def make_pool(self, name: str, copies: int = 1) -> None:
        """Make a pool of so many copies."""
        self.ask("osd", "pool", "create", name, str(PLACEMENT_GROUPS))
        sure = ("--yes-i-really-mean-it",) if copies == 1 else ()
        self.ask("osd", "pool", "set", name, "size", str(copies), *sure)
        self.ask("osd", "pool", "application", "enable", name, "rbd")
        wait_until("its room to be known", lambda: any(each["name"] == name for each in self.ask("df")["pools"]), 60)

    def make_namespace(self, pool: str, name: str) -> None:
        """Make a namespace of a pool, which has volumes of its own."""
        self.run("rbd", "namespace", "create", f"{pool}/{name}")

    def images(self, pool: str) -> list[str]:
        """Return the names of the images in a pool."""
        return self.run("rbd", "ls", pool).split()

    def enrol(self, user: str, pool: str) -> Path:
        """Return a ceph.conf for a user who may use one pool alone, as docs/operations/storage.md has it."""
        conf, keyring = self.folder / f"{user}.conf", self.folder / f"{user}.keyring"
        said = self.ask("auth", "get-or-create", f"client.{user}", "mon", "profile rbd", "osd", f"profile rbd pool={pool}")
        keyring.write_text(f"[client.{user}]\nkey = {said[0]['key']}\n")
        keyring.chmod(0o600)
        conf.write_text(f"[global]\nmon_host = {self._monitor}\n[client]\nkeyring = {keyring}\n")
        return conf

    def begin(self) -> None:
        """As `form`."""
        self.form()

    def stop(self) -> None:
        """End all processes and remove their data."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
        shutil.rmtree(self.folder)

    def _make_mon(self, fsid: str) -> None:
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        self.run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        admin = ("-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self.run("ceph-authtool", keyring, "--gen-key", *admin)
        self.run("monmaptool", "--create", "--addv", "a", self._monitor, "--fsid", fsid, "--enable-all-features", monmap)
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)

    def _make_osd(self, index: int) -> None:
        place = self.folder / f"osd.{index}"
        place.mkdir()
        name = str(uuid.uuid4())
        key = self.run("ceph-authtool", "--gen-print-key").strip()
        self.ask("osd", "new", name, "-i", "-", text=json.dumps({"cephx_secret": key}))
        (place / "keyring").write_text(f"[osd.{index}]\nkey = {key}\n")
        self.run("ceph-osd", "-i", str(index), "--mkfs", "--osd-uuid", name)

    def run(self, *argv: str, text: str = "") -> str:
        """Return what a command of Ceph's tools prints, run where the cluster is as its administrator; LabError: it failed."""
        environment = {**os.environ, "CEPH_CONF": str(self.conf)}
        command = self._enter(*argv)
        done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip()[-500:]}")
        return done.stdout
