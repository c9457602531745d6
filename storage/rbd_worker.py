"""A process that holds librados and librbd, for rbd_pool.py: one JSON line asks, one answers; several are worked at beside.

    python3 -I rbd_worker.py --conf /etc/ceph/ceph.conf --user cairn --pool vms [--namespace ours]
    > {"id": 1, "op": "read", "object": "cairn.volume.vol-00000001"}
    < {"id": 1, "result": "{...}"}
    > {"id": 2, "op": "remove", "name": "vol-00000001.3.5f0c21aa"}
    < {"id": 2, "progress": 0.4}
    < {"id": 2, "error": {"errno": 16, "say": "10.0.0.3:0/2718 has it open"}}

Why a process: librados blocks where it pleases, for as long as its cluster is away; a thread that does so can be neither ended
nor forgotten, a process can. It ends when its standard input does. It imports nothing of ours, and runs by whichever Python the
distribution made python3-rados and python3-rbd for. Its calls are those of Ceph's librados and librbd documentation.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import rados
import rbd

THREADS: Final = 16
CONNECT_S: Final = "10"
# layering, exclusive-lock, object-map, fast-diff, deep-flatten
FEATURES: Final = 1 | 4 | 8 | 16 | 32
RECORD: Final = "record"
BASE: Final = "base"
# What the head of an image takes at least.
HEAD_BYTES: Final = 4096
# As long as anything it sent may be under way.
EVICTED_S: Final = 600.0
# What was shut out stays so for longer than its process lives: five years.
SHUT_OUT_S: Final = 5 * 365 * 86400.0
SHUT_OUT_ROUNDS: Final = 5
ASKED_OBJECTS: Final = 1000
PROGRESS_S: Final = 1.0
# How long what an image takes is believed: of a large one it takes a moment to count.
KNOWN_S: Final = 300.0
COUNTED_BYTES_MAX: Final = 16 << 40
# "Of no snapshot", where Ceph asks of which.
_HEAD: Final = struct.pack("<Q", 2**64 - 2)
Progress = Callable[[int, int], int]


class _Known(NamedTuple):
    """What was found of an image when it was last opened."""

    id: str
    used_bytes: int
    until_s: float


class Pool:
    """One pool of one cluster, connected when first asked. A method is an op of the protocol, its arguments are the line's."""

    def __init__(self, conf: str, user: str, pool: str, namespace: str) -> None:
        self._conf, self._user, self._pool, self._namespace = conf, user, pool, namespace
        self._lock = threading.Lock()
        self._cluster: Any = None
        self._rbd = rbd.RBD()
        self._known: dict[str, _Known] = {}

    def connect(self) -> Any:
        """Return the cluster."""
        with self._lock:
            if self._cluster is None:
                cluster = self._configured()
                cluster.conf_set("client_mount_timeout", CONNECT_S)
                cluster.conf_set("rados_mon_op_timeout", CONNECT_S)
                # A clone's parent needs no protection.
                cluster.conf_set("rbd_default_clone_format", "2")
                cluster.connect()
                self._cluster = cluster
            return self._cluster

    def _configured(self) -> Any:
        # Its own complaint about a file it cannot read names nothing.
        Path(self._conf).read_bytes()
        return rados.Rados(conffile=self._conf, rados_id=self._user)

    def address(self) -> str:
        """Return what the cluster knows this process by."""
        return str(self.connect().get_addrs())

    def evict(self, address: str, for_s: float = EVICTED_S) -> None:
        """Have the cluster take nothing any more of a process that is gone: neither what it sent last, nor its watches."""
        command = {"prefix": "osd blocklist", "blocklistop": "add", "addr": address, "expire": for_s}
        cluster = self.connect()
        code, _, say = cluster.mon_command(json.dumps(command), b"")
        if code:
            raise OSError(abs(code), f"the cluster does not shut {address} out: {say}")
        cluster.wait_for_latest_osdmap()

    def shut_out(self, name: str) -> None:
        """Have the cluster take nothing any more of others who have an image open. EBUSY: some of them have it open still."""
        with self._io() as io:
            try:
                image = rbd.Image(io, name, read_only=True)
            except rbd.ImageNotFound:
                return
            with image:
                for _ in range(SHUT_OUT_ROUNDS):
                    others = _watchers(image, self.address())
                    if not others:
                        break
                    for address in others:
                        self.evict(address, SHUT_OUT_S)
                else:
                    raise OSError(errno.EBUSY, f"it is open elsewhere (of {', '.join(others)}), though that was shut out")
            self._tell_servers(io)

    def _tell_servers(self, io: Any) -> None:
        """See to it that every server of the pool knows by now who is shut out: each is asked something by who knows.

        Until then one that was slow to hear of it would still take what was sent before. Names are spread over servers evenly,
        so with so many of them the chance that one is asked nothing is less than 1 in 10^8, where there are fifty.
        """
        asked = [io.aio_stat(f"cairn.nothing.{number}", lambda *_answer: None) for number in range(ASKED_OBJECTS)]
        for each in asked:
            each.wait_for_complete_and_cb()

    def key(self) -> str:
        """Return the user's key, from where its configuration says it is. It goes to a pipe of who started us, no further."""
        cluster = self._configured()
        if key := cluster.conf_get("key"):
            return str(key)
        paths = str(cluster.conf_get("keyring")).split(",")
        for path in map(Path, paths):
            if path.exists() and (key := _key_in(path.read_text(), f"client.{self._user}")):
                return key
        raise OSError(errno.ENOENT, f"no key of client.{self._user} in {', '.join(paths)}")

    @contextmanager
    def _io(self) -> Iterator[Any]:
        """Give a context of one's own: threads do not share them."""
        with self.connect().open_ioctx(self._pool) as io:
            io.set_namespace(self._namespace)
            # Of a full pool what makes room is let pass, and the rest is refused, not kept waiting.
            io.set_osdmap_full_try()
            yield io

    def read(self, object: str) -> str | None:
        """Return an object's record; None: there is none."""
        with self._io() as io, rados.ReadOpCtx() as op:
            found, _ = io.get_omap_vals_by_keys(op, (RECORD,))
            try:
                io.operate_read_op(op, object)
            except rados.ObjectNotFound:
                return None
            return next((bytes(value).decode() for _, value in found), None)

    def swap(self, object: str, old: str | None, new: str) -> bool:
        """Replace a record (None: there is none) if it is what it was thought to be; return whether."""
        with self._io() as io, rados.WriteOpCtx() as op:
            if old is None:
                op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
            else:
                op.omap_cmp(RECORD, old, rados.LIBRADOS_CMPXATTR_OP_EQ)
            io.set_omap(op, (RECORD,), (new.encode(),))
            try:
                io.operate_write_op(op, object)
            except (rados.ObjectExists, rados.ObjectNotFound):
                return False
            except rados.Error as error:
                if _errno(error) == errno.ECANCELED:
                    return False
                raise
            return True

    def make(self, name: str, size_bytes: int) -> None:
        """Make an empty image."""
        with self._io() as io:
            self._rbd.create(io, name, size_bytes, old_format=False, features=FEATURES)

    def freeze(self, name: str) -> None:
        """Make the snapshot of an image that others are cloned from."""
        with self._io() as io, rbd.Image(io, name) as image:
            if not any(snap["name"] == BASE for snap in image.list_snaps()):
                image.create_snap(BASE)

    def clone(self, parent: str, name: str) -> None:
        """Make an image that starts as a frozen one."""
        with self._io() as io:
            self._rbd.clone(io, parent, BASE, io, name, features=FEATURES)

    def grow(self, name: str, size_bytes: int) -> None:
        """Make an image larger, if it is smaller."""
        with self._io() as io, rbd.Image(io, name) as image:
            if image.size() < size_bytes:
                image.resize(size_bytes, allow_shrink=False)

    def stat(self, name: str) -> dict[str, int] | None:
        """Return the size of an image and what it takes, in bytes; None: there is none."""
        with self._io() as io:
            known = self._known.get(name)
            if known is not None and time.monotonic() < known.until_s:
                size_bytes = _size_bytes(io, known.id)
                return {"size_bytes": size_bytes, "used_bytes": known.used_bytes} if size_bytes is not None else None
            try:
                image = rbd.Image(io, name, read_only=True)
            except rbd.ImageNotFound:
                return None
            with image:
                size_bytes, used_bytes = int(image.size()), HEAD_BYTES + _taken_bytes(image)
                self._known[name] = _Known(str(image.id()), used_bytes, time.monotonic() + KNOWN_S)
                return {"size_bytes": size_bytes, "used_bytes": used_bytes}

    def remove(self, name: str, progress: Progress) -> None:
        """Remove an image and its snapshots; absent: nothing. EBUSY, with who has it open, or what was cloned from it."""
        self._known.pop(name, None)
        with self._io() as io:
            try:
                self._rbd.remove(io, name, on_progress=progress)
            except rbd.ImageNotFound:
                return
            except (rbd.ImageBusy, rbd.ImageHasSnapshots):
                _clear(io, name)
                self._rbd.remove(io, name, on_progress=progress)

    def has_children(self, name: str) -> bool:
        """Return whether images were cloned from one; absent: none were."""
        with self._io() as io:
            try:
                with rbd.Image(io, name, read_only=True) as image:
                    return any(True for _ in image.list_children2())
            except rbd.ImageNotFound:
                return False

    def names(self, prefix: str) -> list[str]:
        """Return the images whose name begins so."""
        with self._io() as io:
            return sorted(name for name in self._rbd.list(io) if name.startswith(prefix))

    def facts(self) -> dict[str, int]:
        """Return the bytes that are stored and that may still be, as who writes counts them: copies count once."""
        cluster = self.connect()
        code, answer, say = cluster.mon_command(json.dumps({"prefix": "df", "format": "json"}), b"")
        if code:
            raise OSError(abs(code), f"asking for the room of pools failed: {say}")
        for pool in json.loads(answer)["pools"]:
            if pool["name"] == self._pool:
                return {"used_bytes": int(pool["stats"]["stored"]), "free_bytes": int(pool["stats"]["max_avail"])}
        raise OSError(errno.ENOENT, f"the cluster tells no room of pool {self._pool}")


def _key_in(keyring: str, name: str) -> str:
    """Return the key of a name in a keyring's text; empty: it has none."""
    section = ""
    for line in map(str.strip, keyring.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        word, _, value = line.partition("=")
        if section == name and word.strip() == "key":
            return value.strip()
    return ""


def _size_bytes(io: Any, id: str) -> int | None:
    """Return an image's size by its id, in one call (of Ceph's object class rbd); None: it is gone."""
    try:
        answer = io.execute(f"rbd_header.{id}", "rbd", "get_size", _HEAD)
    except rados.ObjectNotFound:
        return None
    # Its order in one byte, then its size.
    _, size_bytes = struct.unpack("<BQ", answer[1] if isinstance(answer, tuple) else answer)
    return int(size_bytes)


def _taken_bytes(image: Any) -> int:
    """Return what an image takes besides what it shares with its parent, in whole objects; 0 where counting would be slow."""
    if image.flags() & rbd.RBD_FLAG_FAST_DIFF_INVALID or not image.features() & rbd.RBD_FEATURE_FAST_DIFF:
        return 0
    if image.size() > COUNTED_BYTES_MAX:
        return 0
    taken = 0

    def count(_offset: int, length: int, exists: bool) -> None:
        nonlocal taken
        taken += length if exists else 0

    image.diff_iterate(0, image.size(), None, count, include_parent=False, whole_object=True)
    return taken


def _clear(io: Any, name: str) -> None:
    """Remove an image's snapshots, so that it can go. OSError: somebody has it open, or something was cloned from it."""
    with rbd.Image(io, name) as image:
        _require_alone(image)
        _require_childless(image)
        for snap in list(image.list_snaps()):
            image.remove_snap(snap["name"])


def _watchers(image: Any, mine: str) -> list[str]:
    """Return the addresses of who has an image open to write, but for our own ("[v2:10.0.0.3:0/27,v1:10.0.0.3:0/27]")."""
    ours = set(re.split(r"[\[\],]|v[12]:", mine))
    return [address for each in image.watchers_list() if (address := str(each["addr"])) not in ours]


def _require_alone(image: Any) -> None:
    """OSError, EBUSY, when others have an image open: who opens it to write watches it, as we do."""
    watchers = [str(each["addr"]) for each in image.watchers_list()]
    if len(watchers) > 1:
        raise OSError(errno.EBUSY, f"it is open elsewhere (of {', '.join(watchers)} one is this node)")


def _require_childless(image: Any) -> None:
    """OSError, ENOTEMPTY, when images were cloned from one."""
    children = [str(each["image"]) for each in image.list_children2()]
    if children:
        raise OSError(errno.ENOTEMPTY, f"{len(children)} images were cloned from it, such as {children[0]}")


def _errno(error: Exception) -> int:
    return abs(int(getattr(error, "errno", 0) or 0))


class Server:
    """Reads lines, works at them in threads, writes lines."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Serve until the input ends."""
        threads = ThreadPoolExecutor(THREADS)
        for line in sys.stdin.buffer:
            threads.submit(self._answer, json.loads(line))
        # Threads may be blocked in librados: they are not waited for.
        os._exit(0)

    def _answer(self, asked: dict[str, Any]) -> None:
        id, op = asked.pop("id"), asked.pop("op")
        if op == "remove":
            asked["progress"] = self._progress(id)
        try:
            self._write({"id": id, "result": getattr(self._pool, op)(**asked)})
        except Exception as error:  # noqa: BLE001 - each is told to who asked
            self._write({"id": id, "error": {"errno": _errno(error), "say": _say(error)}})

    def _progress(self, id: int) -> Progress:
        told_s = 0.0

        def progress(done: int, total: int) -> int:
            nonlocal told_s
            now_s = time.monotonic()
            if now_s - told_s >= PROGRESS_S:
                told_s = now_s
                self._write({"id": id, "progress": done / total if total else 1.0})
            return 0

        return progress

    def _write(self, answer: dict[str, Any]) -> None:
        line = json.dumps(answer).encode() + b"\n"
        with self._lock:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _say(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return str(error) or type(error).__name__


def main() -> None:
    """Serve what the command line names."""
    parser = argparse.ArgumentParser()
    for option in ("--conf", "--user", "--pool"):
        parser.add_argument(option, required=True)
    parser.add_argument("--namespace", default="")
    asked = parser.parse_args()
    Server(Pool(asked.conf, asked.user, asked.pool, asked.namespace)).serve()


if __name__ == "__main__":
    main()
