"""The demo guest: a bootable disk image made only of Debian packages, in a few seconds.

A FAT file system with syslinux, Debian's cloud kernel, and an initramfs of busybox, the guest agent and the scripts in files/.
No loop device, no debootstrap, no root file system: it runs from memory, in 128 MiB, and is ready about 4 s after power-on
without hardware virtualisation. Images are cached under .lab/cache by the builder's own content and the packages' versions.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent.parent / ".lab" / "cache"
META_PACKAGE = "linux-image-cloud-amd64"
PACKAGES = ("busybox-static", "qemu-guest-agent")
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_scsi", "sr_mod", "isofs", "virtio_console", "virtio_rng",
    "virtio_balloon", "button", "evdev", "pvpanic-mmio",
)  # fmt: skip
DISK_MIB = 32


class BuildError(Exception):
    """Which step of the image failed, and what the program said."""


def build(target: Path) -> Path:
    """Put the image at `target` (qcow2), building it only when builder or packages changed. Safe to run twice at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "guest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packages = wanted_packages()
        image = CACHE / f"guest-{key(packages)}.qcow2"
        if not image.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="guest-build-") as scratch:
                make(Path(scratch), packages).rename(image)
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, temporary)
    temporary.rename(target)
    return target


def run(*argv: str, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    """Run one program; BuildError with its last words when it fails."""
    result = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{' '.join(argv)[:200]}: exit {result.returncode}: {result.stderr.decode()[-500:].strip()}")
    return result.stdout


def wanted_packages() -> dict[str, str]:
    """Package names and the versions Debian offers now; refreshes apt's lists when it knows nothing."""
    for attempt in range(2):
        shown = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", META_PACKAGE, *PACKAGES], capture_output=True, text=True, check=False
        ).stdout
        versions = dict(re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", shown, re.MULTILINE | re.DOTALL))
        kernel = re.search(r"^Depends: (linux-image-\S+)", shown, re.MULTILINE)
        if kernel and versions.keys() == {META_PACKAGE, *PACKAGES}:
            versions[kernel.group(1)] = versions.pop(META_PACKAGE)
            return versions
        if attempt == 0:
            run("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=900", "update")
    raise BuildError(f"apt does not know {META_PACKAGE} and {', '.join(PACKAGES)}: is Debian's main archive in its sources?")


def key(packages: dict[str, str]) -> str:
    """What the image is a function of."""
    digest = hashlib.sha256(repr(sorted(packages.items())).encode())
    for path in (Path(__file__), *sorted((HERE / "files").iterdir())):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def make(scratch: Path, packages: dict[str, str]) -> Path:
    """Build the image in a scratch folder."""
    unpacked, root, disk = scratch / "unpacked", scratch / "root", scratch / "disk.raw"
    run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages, cwd=scratch)
    for package in scratch.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(unpacked))
    version = next((unpacked / "lib" / "modules").iterdir()).name
    furnish(root, unpacked, version)
    initrd = scratch / "initrd"
    names = "\n".join(["."] + [str(p.relative_to(root)) for p in sorted(root.rglob("*"))]) + "\n"
    archive = run("cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", cwd=root, stdin=names.encode())
    initrd.write_bytes(run("lz4", "-l", "-9", "-c", stdin=archive))
    run("mkfs.vfat", "-n", "CAIRN", "-C", str(disk), str(DISK_MIB * 1024))
    run("syslinux", "--install", str(disk))
    files = {"syslinux.cfg": HERE / "files" / "syslinux.cfg", "initrd": initrd, "vmlinuz": unpacked / f"boot/vmlinuz-{version}"}
    for name, path in files.items():
        run("mcopy", "-i", str(disk), str(path), f"::/{name}")
    image = scratch / "disk.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(image))
    return image


def furnish(root: Path, unpacked: Path, version: str) -> None:
    """Lay out the initramfs."""
    for folder in (
        "bin",
        "usr/sbin",
        "etc/acpi/PWRF",
        "dev",
        "proc",
        "sys",
        "run",
        "var/log",
        "root",
        "srv",
        "seed",
        "tmp",
        "modules",
    ):
        (root / folder).mkdir(parents=True)
    (root / "var/run").symlink_to("/run")
    shutil.copy2(unpacked / "bin/busybox", root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for name, place in {"init": "init", "dhcp": "etc/dhcp", "profile": "etc/profile"}.items():
        shutil.copy2(HERE / "files" / name, root / place)
        (root / place).chmod(0o755)
    button = root / "etc/acpi/PWRF/00000080"
    shutil.copy2(HERE / "files/power-button", button)
    button.chmod(0o755)
    (root / "modules/list").write_text("".join(f"/modules/{name}\n" for name in copy_modules(root, unpacked, version)))
    copy_with_libraries(unpacked / "usr/sbin/qemu-ga", root, "usr/sbin/qemu-ga")


def copy_modules(root: Path, unpacked: Path, version: str) -> list[str]:
    """Copy the kernel modules and all they need; return their file names in the order to load them."""
    run("depmod", "-b", str(unpacked), version)
    order: list[str] = []
    for module in MODULES:
        shown = run("modprobe", "-d", str(unpacked), "-S", version, "--show-depends", module).decode()
        for path in re.findall(r"^insmod (\S+)", shown, re.MULTILINE):
            name = Path(path).name
            if name not in order:
                order.append(name)
                # Without its signature: checking RSA costs an emulated CPU more than loading.
                run("strip", "--strip-debug", "-o", str(root / "modules" / name), path)
    return order


def copy_with_libraries(program: Path, root: Path, place: str) -> None:
    """Copy a program and the shared libraries it loads (this machine's own, of the same Debian release)."""
    shutil.copy2(program, root / place)
    listed = run("ldd", str(program)).decode()
    if absent := re.findall(r"^\s*(\S+) => not found", listed, re.MULTILINE):
        raise BuildError(f"{program.name} needs libraries this machine lacks: {', '.join(absent)}")
    for path in re.findall(r"(/\S+) \(0x", listed):
        destination = root / path.lstrip("/")
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(path).resolve(), destination)
