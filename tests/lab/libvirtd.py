"""A private libvirtd for one host of the lab, without systemd: what to write, what to run, what to mount where.

    settings = Libvirtd(folder=host.folder / "libvirt", hostname="node1", address="10.77.0.11")
    settings.write()                                 # folders, configuration, warm QEMU capabilities
    host.services["libvirtd"] = {"argv": settings.argv()}
    host.binds += settings.binds()

The daemon listens on one unix socket, mode 0700 root, and on nothing else. It must have a process 1 or subreaper above it that
reaps at once (tests/lab/init.py does), or libvirt waits seconds for QEMU's zombie at every destroy.

Probing QEMU takes about 12 s per new host; what it found is kept under .lab/cache and copied to the next host (`warm`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.hosts import REPOSITORY, Host, LabError, run, wait_until

CACHE = REPOSITORY / ".lab" / "cache" / "qemu-capabilities"
DAEMON = "/usr/sbin/libvirtd"
# RFC 5737: for daemons that no other host talks to; libvirtd refuses a loopback address here.
NO_ADDRESS = "192.0.2.1"
PROGRAMS = (DAEMON, "/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-aarch64")

LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
listen_tls = 0
listen_tcp = 0
unix_sock_group = "root"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
unix_sock_admin_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
log_outputs = "3:stderr"
max_clients = 50
max_workers = 20
"""

# user: root, as a lab's pools lie in folders of whoever runs it (a home, pytest's own: mode 0700), which no other user
# enters. The Ansible role has the distribution's unprivileged user; tests/conformance/test_guest_user.py boots a guest so.
# security_driver and namespaces: none, as the lab's hosts are containers themselves. stdio_handler: no virtlogd.
QEMU_CONF = """\
user = "{user}"
group = "{group}"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
security_default_confined = 0
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
set_process_name = 1
max_core = 0
migration_address = "{address}"
migration_host = "{address}"
vnc_listen = "127.0.0.1"
spice_listen = "127.0.0.1"
"""


@dataclass(frozen=True)
class Libvirtd:
    """Where one daemon keeps its things and what it is called."""

    folder: Path
    hostname: str
    address: str
    user: str = "root"
    group: str = "root"

    @property
    def socket(self) -> Path:
        """The daemon's only socket, as seen from outside the host."""
        return self.folder / "run" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """How a process outside the host connects."""
        return f"qemu+unix:///system?socket={self.socket}"

    def argv(self) -> list[str]:
        """The command line to run inside the host."""
        return [DAEMON, "--config", "/etc/libvirt/libvirtd.conf", "--pid-file", "/run/libvirt/libvirtd.pid"]

    def binds(self) -> list[tuple[str, str]]:
        """(folder, where the daemon expects it) for the host's mount namespace."""
        targets = {
            "etc": "/etc/libvirt",
            "run": "/run/libvirt",
            "lib": "/var/lib/libvirt",
            "log": "/var/log/libvirt",
            "cache": "/var/cache/libvirt",
        }
        return [(str(self.folder / name), target) for name, target in targets.items()]

    def write(self) -> None:
        """Make folders and configuration; a daemon's state from before is kept. Idempotent."""
        add_accounts()
        for source, _ in self.binds():
            Path(source).mkdir(parents=True, exist_ok=True, mode=0o755)
        identity = uuid.uuid5(uuid.NAMESPACE_DNS, self.hostname)
        (self.folder / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=identity))
        (self.folder / "etc" / "qemu.conf").write_text(QEMU_CONF.format(address=self.address, user=self.user, group=self.group))
        kept, own = kept_capabilities(), self.folder / "cache" / "qemu" / "capabilities"
        if kept.is_dir() and not own.exists():
            shutil.copytree(kept, own)

    def answers(self) -> bool:
        """Whether the daemon takes calls."""
        return run("virsh", "-c", self.uri, "version", check=False).returncode == 0


def missing() -> str:
    """Why no libvirtd can be run on this machine; empty: it can."""
    if os.geteuid() != 0:
        return "a private libvirtd needs root"
    for program in (DAEMON, "/usr/bin/virsh", PROGRAMS[1]):
        if not Path(program).exists():
            return f"{program} is not installed"
    return ""


def add_accounts() -> None:
    """Add the system accounts libvirtd insists on (Debian's libvirt-daemon-system would); no error when they are there."""
    groups = Path("/etc/group").read_text()
    for group in ("kvm", "libvirt-qemu"):
        if f"\n{group}:" not in groups:
            run("groupadd", "--force", "--system", group)
    if "\nlibvirt-qemu:" not in Path("/etc/passwd").read_text():
        home = ("--home-dir", "/var/lib/libvirt", "--no-create-home", "--shell", "/usr/sbin/nologin")
        run("useradd", "--system", "--gid", "kvm", "--groups", "libvirt-qemu", *home, "libvirt-qemu")


def kept_capabilities() -> Path:
    """Where the capabilities of exactly these programs on this kernel are kept."""
    parts = [os.uname().release]
    for program in PROGRAMS:
        if Path(program).exists():
            status = Path(program).stat()
            parts.append(f"{program} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return CACHE / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def keep_capabilities(settings: Libvirtd) -> None:
    """Keep what a daemon found out, for the next hosts."""
    kept, own = kept_capabilities(), settings.folder / "cache" / "qemu" / "capabilities"
    if kept.exists() or not own.is_dir():
        return
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
    shutil.copytree(own, temporary)
    temporary.rename(kept)


def warm(scratch: Path) -> None:
    """Make sure the capabilities are kept; about 12 s the first time on a machine, nothing after that."""
    if kept_capabilities().exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept_capabilities().exists():
            with running(scratch / "warm", f"cw{os.getpid()}") as (settings, _):
                run("virsh", "-c", settings.uri, "domcapabilities")
                keep_capabilities(settings)
    shutil.rmtree(scratch / "warm")


@contextmanager
def running(folder: Path, name: str, user: str = "root", group: str = "root") -> Iterator[tuple[Libvirtd, Host]]:
    """Run one libvirtd in a host of its own, in a network namespace called `name`; everything of it ends with the block."""
    settings = Libvirtd(folder / "libvirt", name, NO_ADDRESS, user, group)
    host = Host(name, settings.address, folder / "host", name)
    settings.write()
    host.services["libvirtd"] = {"argv": settings.argv()}
    host.binds += settings.binds()
    run("ip", "netns", "add", name)
    try:
        host.boot()
        wait_until(f"libvirtd to answer (see {host.folder}/log/libvirtd.log)", settings.answers)
        yield settings, host
    finally:
        host.power_off()
        try:
            run("ip", "netns", "del", name)
        except LabError as error:
            raise LabError(f"{name} is still there") from error
