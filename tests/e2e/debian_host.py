"""A fresh Debian server for one test: a debootstrap-ed root file system with systemd as process 1, in namespaces of its own.

    with DebianHost.running(folder, packages) as host: host.ssh("systemctl", "is-system-running")

The tree is made once per machine (.lab/cache), with the Debian packages to install already downloaded into apt's archive, so
the server itself needs no network but a wire to a second namespace, `admin`, where Ansible and the command line run. What the
server writes goes to an overlay and is gone with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CACHE = REPOSITORY / ".lab" / "cache"
SUITE = "bookworm"
INCLUDE = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "iproute2",
    "openssh-server",
    "python3",
    "python3-apt",
    "python3-venv",
    "kmod",
)
ADMIN_ADDRESS, HOST_ADDRESS = "172.31.200.1", "172.31.200.2"
# Here and on the server, as on hardened machines: the roles, not the umask, must say who may read what they make.
STRICT_UMASK = 0o077

# Process 1 of the server, after the shell that prepares its file systems. $1: the tree. $2: its name.
BOOT = r"""
set -e; umask 022
tree=$1; mount --make-rprivate /; hostname "$2"
mount -t proc proc "$tree/proc"; mount -t sysfs -o ro sysfs "$tree/sys"
mount -t tmpfs -o mode=755 tmpfs "$tree/dev"; mkdir "$tree/dev/pts" "$tree/dev/shm" "$tree/dev/net"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
  IFS=: read -r name major minor <<< "$node"; mknod -m 666 "$tree/dev/$name" c "$major" "$minor"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$tree/dev/pts"
ln -s pts/ptmx "$tree/dev/ptmx"; ln -s /proc/self/fd "$tree/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$tree/run"; mount -t tmpfs tmpfs "$tree/tmp"
mount -t tmpfs tmpfs "$tree/sys/fs/cgroup"; mount -t cgroup2 cgroup2 "$tree/sys/fs/cgroup"
cd "$tree"; mkdir -p .old; pivot_root . .old; umount -l /.old
exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init --log-target=journal --log-level=warning
"""


def run(*command: str | Path, check: bool = True, **keywords: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **keywords)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def wait_until(what: str, probe: Callable[[], Any], timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := probe()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.2)
    return value


def mirror() -> str:
    """The Debian mirror this machine itself installs from."""
    listed = run("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages").stdout
    sites = [site for release, site in (line.split() for line in listed.splitlines()) if release == SUITE]
    if not sites:
        raise AssertionError(f"apt on this machine knows no mirror of {SUITE}: run apt-get update")
    return sites[0]


def missing() -> str:
    """Why no such server can be run on this machine; empty: it can."""
    if os.geteuid() != 0:
        return "making a server of namespaces needs root"
    for program in ("debootstrap", "ssh", "ssh-keygen", "nsenter", "unshare", "ip"):
        if not shutil.which(program):
            return f"{program} is not installed"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "this kernel has no overlay file system"
    return ""


def prepared_tree(packages: Sequence[str]) -> Path:
    """Return the cached tree with these packages in apt's archive; made when missing (about two minutes, needs a mirror)."""
    digest = hashlib.sha256("\n".join([SUITE, *INCLUDE, *packages]).encode()).hexdigest()[:12]
    tree = CACHE / f"debian-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            new = tree.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            run("nice", "debootstrap", "--variant=minbase", f"--include={','.join(INCLUDE)}", SUITE, new, mirror())
            shutil.copy("/etc/resolv.conf", new / "etc/resolv.conf")
            options = ("-qq", "-y", "--no-install-recommends", "-o", "APT::Keep-Downloaded-Packages=true")
            run("nice", "chroot", new, "apt-get", *options, "--download-only", "install", *packages)
            (new / "etc/resolv.conf").unlink()
            new.rename(tree)
    return tree


@dataclass
class DebianHost:
    """One running server, reached over SSH from the namespace `admin`."""

    name: str
    folder: Path
    admin: str

    @property
    def key(self) -> Path:
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def in_admin(self, *command: str | Path, **keywords: Any) -> subprocess.CompletedProcess[str]:
        """Run a program where the administrator sits."""
        return run("nsenter", f"--net=/run/netns/{self.admin}", "--", *command, **keywords)

    def ssh(self, *command: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the server."""
        options = (
            "-i",
            self.key,
            "-o",
            f"UserKnownHostsFile={self.known_hosts}",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=5",
        )
        return self.in_admin("ssh", *options, f"root@{HOST_ADDRESS}", *command, check=check, timeout=timeout_s)

    def symptoms(self) -> str:
        """What an administrator would look at first: the units in trouble, their journals, the console. Never raises."""
        console = self.folder / "console.log"
        found = [f"== console\n{tail(console.read_text(errors='replace') if console.exists() else '')}"]
        try:
            # A unit between two attempts of Restart= has not failed yet.
            states = "--state=failed,auto-restart,activating"
            listed = self.ssh("systemctl", "list-units", "--all", "--plain", "--no-legend", states, check=False)
            for unit in [line.split()[0] for line in listed.stdout.splitlines()]:
                status = self.ssh("systemctl", "status", "--no-pager", "--full", "--lines=0", unit, check=False)
                journal = self.ssh("journalctl", "--no-pager", "--lines=40", "--unit", unit, check=False)
                found.append(f"== {unit}\n{status.stdout}{tail(journal.stdout)}")
            found.append(f"== asking the server\n{listed.stderr}" if listed.returncode else "")
        except subprocess.TimeoutExpired as error:
            found.append(f"== asking the server\n{error}")
        return "\n".join(found)

    @classmethod
    @contextmanager
    def running(cls, name: str, folder: Path, packages: Sequence[str]) -> Iterator[DebianHost]:
        """Boot it; everything of it is gone after the block."""
        tree = prepared_tree(packages)
        wire, admin = f"cd{os.getpid()}h", f"cd{os.getpid()}a"
        host = cls(name, folder, admin)
        root = folder / "root"
        process: subprocess.Popen[bytes] | None = None
        try:
            _plug(wire, admin)
            _mount(tree, folder)
            _authorise(host, root)
            command = ["nsenter", f"--net=/run/netns/{wire}", "--"]
            command += ["unshare", "-m", "-u", "-i", "-p", "-C", "--fork", "--kill-child", "--", "bash", "-c", BOOT, "boot"]
            with (folder / "console.log").open("wb") as console:
                process = subprocess.Popen(
                    [*command, str(root), name],
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,
                )
            try:
                wait_until("the server", lambda: host.ssh("true", check=False).returncode == 0, 60)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{host.symptoms()}") from error
            yield host
        finally:
            if process is not None:
                process.kill()
                process.wait()
            # Its mounts are gone with its last process; the overlay is ours.
            wait_until(
                "the overlay to be free", lambda: run("umount", root, check=False).returncode == 0 or not root.is_mount(), 30
            )
            for namespace in (wire, admin):
                run("ip", "netns", "del", namespace, check=False)


def tail(text: str) -> str:
    """What of a log fits into an error: its last lines, none of them endless."""
    return "\n".join(line[:500] for line in text.splitlines()[-40:])


def _plug(wire: str, admin: str) -> None:
    for namespace in (wire, admin):
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
    run("ip", "-n", admin, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", wire)
    for namespace, address in ((admin, ADMIN_ADDRESS), (wire, HOST_ADDRESS)):
        run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")


def _mount(tree: Path, folder: Path) -> None:
    for sub in ("root", "upper", "work"):
        (folder / sub).mkdir(parents=True)
    # The upper folder's mode is that of the server's "/", where every user must get in, whatever the umask here.
    (folder / "upper").chmod(0o755)
    layers = f"lowerdir={tree},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    run("mount", "-t", "overlay", "-o", layers, "overlay", folder / "root")


def _authorise(host: DebianHost, root: Path) -> None:
    """Give the administrator a key the server knows, and the server's key to the administrator; sessions, a strict umask."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host.key)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    shutil.copy(host.key.with_suffix(".pub"), root / "root/.ssh/authorized_keys")
    public = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    host.known_hosts.write_text(f"{HOST_ADDRESS} {public}")
    (root / "etc/hostname").write_text(host.name + "\n")
    settings = root / "etc/systemd/system/ssh.service.d/umask.conf"
    settings.parent.mkdir()
    settings.write_text(f"[Service]\nUMask={STRICT_UMASK:04o}\n")
