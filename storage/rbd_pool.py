"""A pool of a Ceph cluster, asked through a worker process (rbd_worker.py) that is started when it is needed, and anew when it
ended or hung.

    pool = RbdPool(Place(conf="/etc/ceph/ceph.conf", user="cairn", pool="vms"))
    await pool.swap("cairn.volume.vol-00000001", None, "{...}")      # False: there is one already
    await pool.make("vol-00000001.1.5f0c21aa", 1 << 30)
    await pool.close()

Every call raises StorageError: RbdError with Ceph's errno, or Silent when nobody answered. Then nobody knows whether it was
done, as when the worker is killed: what is written is so that doing it again, or not, is safe (rbd.py). Once a pool was silent
calls fail at once, so that nothing else waits for it, until it is found to answer again.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from cairn.storage import qemu_img
from cairn.storage.base import Network, PoolFull, StorageError

# The distribution's, which has python3-rados and python3-rbd.
PYTHON: Final = ("/usr/bin/python3",)
WORKER: Final = Path(__file__).with_name("rbd_worker.py")
# Since the answer was asked for, or was last said to come on.
SILENCE_S: Final = 15.0
# How often a pool that is away is looked for.
RETRY_S: Final = 5.0
# What is read to see whether a pool answers; there need not be one.
_PROBE: Final = "cairn.pool"
# One that grows waits for whoever had it open and was killed, half a minute.
_PATIENCE: Final = {"grow": 4}
THREADS: Final = 16
LINE_BYTES_MAX: Final = 64 << 20
_TAIL_BYTES: Final = 2000
_ENV: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_SECRETS: Final = uuid.UUID("5d1b8f0e-6f0c-4b0e-9d55-3a3c5e0f7a11")


class RbdError(StorageError):
    """What Ceph answered. errno: positive, as in errno.h."""

    def __init__(self, say: str, errno: int) -> None:
        super().__init__(say)
        self.errno = errno


class Silent(StorageError):
    """Nobody answered; nobody knows whether it was done."""


class Hung(Silent):
    """The worker was there, and the cluster was not."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pool is, and as whom it is entered. The user's key is in the keyring that `conf` names."""

    conf: str
    user: str
    pool: str
    # Of the pool (rados); empty: its own.
    namespace: str = ""

    @property
    def network(self) -> Network:
        """How guests get there; the secret is one that `RbdPool.key` has the value of."""
        secret = uuid.uuid5(_SECRETS, f"{self.conf} {self.user}")
        return Network("rbd", user=self.user, secret=str(secret), config=self.conf)

    def path(self, image: str) -> str:
        """Return an image's name as rbd and QEMU write it."""
        return "/".join(each for each in (self.pool, self.namespace, image) if each)


@dataclass(frozen=True, slots=True)
class Stat:
    """An image, in bytes: what a guest sees, and what is taken of the pool, copies counted once."""

    size_bytes: int
    used_bytes: int


@dataclass(slots=True)
class _Asked:
    """One call. moved_s: when it was last heard of."""

    answer: asyncio.Future[Any]
    moved_s: float


class RbdPool:
    """See the module."""

    def __init__(
        self, place: Place, *, silence_s: float = SILENCE_S, retry_s: float = RETRY_S, python: Sequence[str] = PYTHON
    ) -> None:
        self.place = place
        self._silence_s, self._retry_s, self._python = silence_s, retry_s, python
        self._ids = itertools.count(1)
        self._starting = asyncio.Lock()
        # No more than the worker has threads: who waits for one is not silence.
        self._free = asyncio.Semaphore(THREADS)
        self._worker: _Worker | None = None
        # Address of a worker that ended by itself or hung.
        self._evicts = ""
        # Why the pool does not answer; None: it does, as far as is known.
        self._away: StorageError | None = None
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        """The worker's process; 0: there is none now."""
        return self._worker.pid if self._worker is not None and not self._worker.ended else 0

    @property
    def address(self) -> str:
        """What the cluster knows the worker by; empty: none has reached it yet."""
        return self._worker.address if self._worker is not None else ""

    async def read(self, object: str) -> str | None:
        """Return an object's record; None: there is none."""
        return cast("str | None", await self._call("read", object=object))

    async def swap(self, object: str, old: str | None, new: str) -> bool:
        """Replace a record (None: there is none) if it is what it was thought to be; return whether."""
        return bool(await self._call("swap", object=object, old=old, new=new))

    async def make(self, name: str, size_bytes: int) -> None:
        """Make an empty image. RbdError, EEXIST."""
        await self._call("make", name=name, size_bytes=size_bytes)

    async def fill(self, name: str, path: Path, format: str, size_bytes: int) -> None:
        """Write a disk image's file, of a format as QEMU names it, over an empty image of that size."""
        target = {"driver": "rbd", "pool": self.place.pool, "image": name, "conf": self.place.conf, "user": self.place.user}
        if self.place.namespace:
            target["namespace"] = self.place.namespace
        await qemu_img.fill(str(path), format, target, size_bytes)

    async def freeze(self, name: str) -> None:
        """Make of an image what others can be cloned from; again: nothing."""
        await self._call("freeze", name=name)

    async def clone(self, parent: str, name: str) -> None:
        """Make an image that starts as a frozen one. RbdError: EEXIST; ENOENT, its parent is not there."""
        await self._call("clone", parent=parent, name=name)

    async def grow(self, name: str, size_bytes: int) -> None:
        """Make an image as large, if it is smaller. RbdError, ENOENT."""
        await self._call("grow", name=name, size_bytes=size_bytes)

    async def stat(self, name: str) -> Stat | None:
        """Return what an image is; None: there is none."""
        found = await self._call("stat", name=name)
        return Stat(**found) if found else None

    async def remove(self, name: str) -> None:
        """Remove an image; absent: nothing. RbdError: EBUSY when somebody has it open, ENOTEMPTY when it has children."""
        await self._call("remove", name=name)

    async def has_children(self, name: str) -> bool:
        """Return whether images were cloned from one."""
        return bool(await self._call("has_children", name=name))

    async def shut_out(self, name: str) -> None:
        """Have the cluster take nothing any more of others who have an image open; absent: nothing. RbdError: EBUSY."""
        await self._call("shut_out", name=name)

    async def names(self, prefix: str) -> list[str]:
        """Return the images whose name begins so, sorted."""
        return cast("list[str]", await self._call("names", prefix=prefix))

    async def room(self) -> tuple[int, int]:
        """Return the bytes that are used and free, as who writes counts them: copies count once."""
        found = await self._call("facts")
        return found["used_bytes"], found["free_bytes"]

    async def key(self) -> str:
        """Return the user's key, which guests' processes need."""
        return str(await self._call("key"))

    async def close(self) -> None:
        """End the worker."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        async with self._starting:
            if self._worker is not None:
                await self._worker.end(Silent("closed"))
                if self._worker.greeting is not None:
                    await asyncio.gather(self._worker.greeting, return_exceptions=True)
                self._worker = None

    async def _call(self, op: str, **asked: Any) -> Any:
        try:
            async with self._free:
                # A key is read from a file, also while the cluster is away.
                if op != "key" and self._away is not None:
                    self._look_for_it(self._away)
                    raise Silent(str(self._away))
                worker = await self._running()
                if op != "key":
                    await self._greeted(worker)
                return await worker.ask(next(self._ids), op, asked)
        except RbdError as error:
            what = " ".join(str(asked[key]) for key in ("object", "name") if key in asked)
            say = f"{op} {what} in pool {self.place.pool} failed: {error}" if what else f"{op} failed: {error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PoolFull(say) from error
            if error.errno == errno.ESHUTDOWN:
                # The cluster takes nothing of this worker any more; it may of another.
                await self._give_up(say)
            raise RbdError(say, error.errno) from error
        except Hung as error:
            self._look_for_it(error)
            raise

    async def _give_up(self, say: str) -> None:
        if self._worker is not None:
            await self._worker.end(Silent(say))
        self._look_for_it(Silent(say))

    def _look_for_it(self, why: StorageError) -> None:
        """Let calls fail at once until it answers again."""
        if self._closed:
            return
        self._away = why
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while self._away is not None:
            await asyncio.sleep(self._retry_s)
            try:
                await self._greeted(await self._running())
                self._away = None
            except StorageError as error:
                self._away = error

    async def _running(self) -> _Worker:
        async with self._starting:
            if self._worker is None or self._worker.ended:
                dead, self._worker = self._worker, await _Worker.started(self._python, self.place, self._silence_s)
                self._evicts = dead.address if dead is not None and dead.address else self._evicts
            return self._worker

    async def _greeted(self, worker: _Worker) -> None:
        """Wait until a worker has reached the cluster; whoever waits for that learns at once that it cannot."""
        if worker.address:
            return
        if worker.greeting is None or worker.greeting.done():
            worker.greeting = asyncio.create_task(self._greet(worker))
        try:
            await asyncio.shield(worker.greeting)
        except StorageError as error:
            self._look_for_it(error)
            raise

    async def _greet(self, worker: _Worker) -> None:
        """Learn what the cluster knows a worker by, and have it forget the one before: that would be believed to be there."""
        if self._evicts:
            try:
                await worker.ask(next(self._ids), "evict", {"address": self._evicts})
            except RbdError as error:
                # Without that right its watches end by themselves, after half a minute.
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
                    raise
            self._evicts = ""
        address = str(await worker.ask(next(self._ids), "address", {}))
        await worker.ask(next(self._ids), "read", {"object": _PROBE})
        worker.address = address


class _Worker:
    """A process, from its start to its end."""

    def __init__(self, process: Process, place: Place, silence_s: float) -> None:
        self._process, self._place, self._silence_s = process, place, silence_s
        self._asked: dict[int, _Asked] = {}
        self._tail = b""
        self.ended = False
        # What the cluster knows it by; empty: not asked yet.
        self.address = ""
        self.greeting: asyncio.Task[None] | None = None
        self._tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._keep_tail())]

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def started(cls, python: Sequence[str], place: Place, silence_s: float) -> _Worker:
        options = ["--conf", place.conf, "--user", place.user, "--pool", place.pool, "--namespace", place.namespace]
        command = [*python, "-I", str(WORKER), *options]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=_ENV, limit=LINE_BYTES_MAX, start_new_session=True
            )
        except OSError as error:
            raise StorageError(f"the Ceph worker cannot be started: {python[0]}: {error.strerror}") from error
        return cls(process, place, silence_s)

    async def ask(self, id: int, op: str, asked: dict[str, Any]) -> Any:
        loop = asyncio.get_running_loop()
        waits = self._asked[id] = _Asked(loop.create_future(), loop.time())
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": id, "op": op, **asked}).encode() + b"\n")
            while not waits.answer.done():
                silence_s = self._silence_s * _PATIENCE.get(op, 1)
                left_s = waits.moved_s + silence_s - loop.time()
                if left_s <= 0:
                    say = f"pool {self._place.pool} did not answer for {silence_s:.0f} s: {op}; is its cluster up?"
                    await self.end(Hung(say))
                    break
                await asyncio.wait({waits.answer}, timeout=left_s)
            return await waits.answer
        finally:
            del self._asked[id]
            waits.answer.cancel()

    async def end(self, why: Silent) -> None:
        """Kill it; who waits for an answer is told why."""
        self._fail(why)
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(*(each for each in self._tasks if each is not asyncio.current_task()), return_exceptions=True)

    def _fail(self, why: Silent) -> None:
        self.ended = True
        for each in self._asked.values():
            if not each.answer.done():
                each.answer.set_exception(why)

    async def _hear(self) -> None:
        """Take the answers, until it ends."""
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                # One that was killed while it wrote leaves half a line.
                if not line.endswith(b"\n"):
                    break
                self._take(json.loads(line))
        except ValueError:
            # A line too long, or none of ours: it cannot be followed any more.
            self._process.kill()
        self.ended = True
        await self._process.wait()
        last = self._tail.decode(errors="replace").strip().splitlines()
        self._fail(Silent(f"the Ceph worker of pool {self._place.pool} ended{f': {last[-1]}' if last else ''}"))

    def _take(self, said: dict[str, Any]) -> None:
        asked = self._asked.get(said["id"])
        if asked is None or asked.answer.done():
            return
        asked.moved_s = asyncio.get_running_loop().time()
        if "error" in said:
            asked.answer.set_exception(RbdError(said["error"]["say"], said["error"]["errno"]))
        elif "result" in said:
            asked.answer.set_result(said["result"])

    async def _keep_tail(self) -> None:
        """Keep the last of what it complains of; nobody else reads it."""
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
