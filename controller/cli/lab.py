"""cairn lab --simulated: a whole cloud on this machine, for trying the command line and for load; no root, no libvirt.

    this command ── controller: the real one, its store in memory          (cairn.controller.standalone)
                 └─ fleets: 2 or more, real agents on fake drivers        (cairn.agent.fleet)

It makes the authorities, starts the processes, lets every node join with a one-time token of its own, tells how to use the
cloud, and waits for Ctrl-C. The children live on a pipe from this process (proto/lifeline.py), so kill -9 ends them too. All
files are in one folder, which is removed; one that kill -9 left behind is removed by the next lab. A fleet that dies is started
again, and its nodes come back with their ledgers and empty disks; with the controller everything is lost, so then the lab ends.

The user's own contexts are not touched: the folder holds a context file of its own, for CAIRN_CONFIG.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cairn.controller.cli.client import Session
from cairn.controller.cli.failures import Exit, Failure
from cairn.controller.cli.settings import load_context

NODES_PER_FLEET: Final = 50
# Two, so that one can be killed and the other goes on.
FLEETS_MIN: Final = 2
TOKENS_AT_ONCE: Final = 8
START_S: Final = 120.0
LOOK_EVERY_S: Final = 0.2
# From closing a child's pipe to SIGKILL.
STOP_S: Final = 10.0
AGAIN_S: Final = 1.0
PREFIX: Final = "cairn-lab-"
CONTEXT: Final = "simulated"
# A raw disk with a boot sector's signature: enough of an image for guests that do not exist.
IMAGE_BYTES: Final = 1 << 20


class Child:
    """One process of the lab. Its output is in its log."""

    def __init__(self, name: str, module: str, *arguments: str, log: Path) -> None:
        self.name, self.log = name, log
        # -P: what lies in the current folder is not imported.
        self._argv = [sys.executable, "-P", "-m", module, *arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Run it, in a session of its own: Ctrl-C is for this command alone, which ends its children in order."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    async def tell(self, document: dict[str, Any]) -> None:
        """Send it a line."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError as error:
            raise self.death() from error

    async def ended(self) -> None:
        """Return when it has ended."""
        assert self._process is not None
        await self._process.wait()

    async def die(self) -> None:
        """Raise Failure when it has ended."""
        await self.ended()
        raise self.death()

    def death(self) -> Failure:
        """Return the failure that its end is, with its last words."""
        lines = self.log.read_text(errors="replace").splitlines()[-3:]
        return Failure(f"{self.name} has ended", lines=lines, next=f"see {self.log}")

    async def stop(self) -> None:
        """Let it end; kill it when it does not."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@dataclass(frozen=True)
class Node:
    """A server to be."""

    number: int
    name: str
    token: str = ""


class SimulatedLab:
    """The processes, and what they were told."""

    def __init__(self, session: Session, folder: Path, nodes: int) -> None:
        self.folder = folder
        self._outer, self._count = session, nodes
        (folder / "log").mkdir(mode=0o700)
        endpoint, enrol = self._endpoints = _free_endpoints(2)
        self.controller = Child(
            "the controller", "cairn.controller.standalone",
            "--pki", str(folder / "pki"), "--listen", endpoint, "--enrol-listen", enrol, "--cluster", CONTEXT,
            log=folder / "log" / "controller.log",
        )  # fmt: skip
        digits = len(str(nodes))
        servers = [Node(number, f"n{number:0{digits}d}") for number in range(1, nodes + 1)]
        count = min(nodes, max(FLEETS_MIN, math.ceil(nodes / NODES_PER_FLEET)))
        self.fleets = {self._fleet(number): servers[number - 1 :: count] for number in range(1, count + 1)}

    def _fleet(self, number: int) -> Child:
        log = self.folder / "log" / f"fleet-{number}.log"
        return Child(f"fleet {number}", "cairn.agent.fleet", "--folder", str(self.folder / "nodes"), log=log)

    async def up(self, say: Callable[[str], None]) -> None:
        """Return when every node is ready. Raises Failure."""
        self._write()
        for child in (self.controller, *self.fleets):
            await child.start()
        context = load_context("", {"CAIRN_CONFIG": str(self.folder / "config.toml")})
        session = Session(self._outer.settings, context)
        try:
            async with asyncio.timeout(START_S):
                deaths = (child.die() for child in (self.controller, *self.fleets))
                await _first_end(self._fill(session, say), *deaths)
        except TimeoutError as error:
            raise Failure(f"it is not up after {START_S:.0f} s", next=f"see {self.folder}/log") from error
        finally:
            await session.close()

    async def _fill(self, session: Session, say: Callable[[str], None]) -> None:
        """Let every node join, and wait until all are ready."""
        say("the controller is starting")
        while not await self._answers(session):
            pass
        for fleet, servers in self.fleets.items():
            await self._join(session, fleet, servers)
        while (ready := await self._ready_nodes(session)) < self._count:
            say(f"{ready} of {self._count} nodes are ready")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _answers(self, session: Session) -> bool:
        """Tell whether the controller does; it takes seconds to find out that not."""
        try:
            await self._ready_nodes(session)
        except Failure as failure:
            if failure.code is not Exit.UNREACHABLE:
                raise
            return False
        return True

    def _write(self) -> None:
        """Make certificates, the context and an image to try."""
        from cairn.proto import pki

        pki.init_cluster(
            self.folder / "pki", CONTEXT, controllers={"c1": ["127.0.0.1"]}, etcd_members={},
            clock=self._outer.clock, ids=self._outer.ids,
        )  # fmt: skip
        files = "".join(f'{option} = "pki/{name}"\n' for option, name in _FILES.items())
        context = f'current = "{CONTEXT}"\n\n[contexts.{CONTEXT}]\nendpoints = ["{self._endpoints[0]}"]\n{files}'
        (self.folder / "config.toml").write_text(context)
        (self.folder / "demo.raw").write_bytes((bytes(510) + b"\x55\xaa").ljust(IMAGE_BYTES, b"\0"))

    async def _ready_nodes(self, session: Session) -> int:
        from cairn.proto.v1.cluster_pb2 import GetClusterStatusRequest

        return int((await session.call("cluster", GetClusterStatusRequest())).nodes_ready)

    async def _join(self, session: Session, fleet: Child, servers: list[Node]) -> None:
        """Give each server its token."""
        from cairn.proto.v1.node_pb2 import CreateJoinTokenRequest

        async def token(server: Node) -> str:
            async with limit:
                request = CreateJoinTokenRequest(node_name=server.name)
                return str((await session.call("node", request)).token)

        limit = asyncio.Semaphore(TOKENS_AT_ONCE)
        tokens = await asyncio.gather(*map(token, servers))
        for server, each in zip(servers, tokens, strict=True):
            await fleet.tell({"number": server.number, "name": server.name, "token": each})

    async def watch(self, say: Callable[[str], None]) -> None:
        """Start fleets again that died; Failure when the controller has."""
        await _first_end(self.controller.die(), *(self._keep(fleet, part, say) for fleet, part in self.fleets.items()))

    async def _keep(self, fleet: Child, servers: list[Node], say: Callable[[str], None]) -> None:
        while True:
            await fleet.ended()
            say(f"{fleet.name} has ended; its {len(servers)} nodes are started again (see {fleet.log})")
            await asyncio.sleep(AGAIN_S)
            await fleet.start()
            for server in servers:
                await fleet.tell({"number": server.number, "name": server.name, "token": ""})

    async def down(self) -> None:
        """End every process: first the nodes, so that the controller has nobody left to serve."""
        await asyncio.gather(*(fleet.stop() for fleet in self.fleets))
        await self.controller.stop()


_FILES: Final = {"ca": "ca.crt", "cert": "admin.crt", "key": "admin.key"}


async def bring_up(session: Session, nodes: int, folder: Path | None) -> None:
    """Be a cloud until told to end. Raises Failure."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with _folder(folder) as place:
        lab = SimulatedLab(session, place, nodes)
        try:
            await _first_end(stop.wait(), _live(session, lab, nodes))
        finally:
            session.output.say("ending every process")
            await lab.down()
    session.output.say("nothing of it is left" if folder is None else f"its files are in {folder}")


async def _live(session: Session, lab: SimulatedLab, nodes: int) -> None:
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    session.output.say(f"a simulated cloud of {nodes} nodes, in {lab.folder}")
    with session.output.progress() as progress:
        await lab.up(progress.update)
    session.output.say(f"all {nodes} nodes are ready, {loop.time() - start_s:.1f} s after the start")
    session.output.lines(_usage(lab.folder))
    await lab.watch(session.output.say)


async def _first_end(*parts: Coroutine[Any, Any, Any]) -> None:
    """Run them until one ends; end the others; raise what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _usage(folder: Path) -> Iterator[str]:
    yield "In another shell:"
    yield f"  export CAIRN_CONFIG={folder}/config.toml"
    yield "  cairn node list"
    yield f"  cairn image import demo --file {folder}/demo.raw --arch x86_64"
    yield "  cairn vpc create demo --cidr 10.1.0.0/16"
    yield "  cairn subnet create blue --vpc demo --cidr 10.1.0.0/20"
    yield "  cairn vm create web --cpus 1 --memory 1GiB --image demo --subnet blue --count 200"
    yield "Ctrl-C ends it."


# --- the folder ------------------------------------------------------------------------------------------------------------


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Yield a folder that is ours alone: the one given, which must be new or empty, or one that is removed afterwards."""
    if given is not None:
        try:
            given.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(given.iterdir()):
                raise Failure(f"{given} is not empty, and a simulated cloud cannot be continued", next="give a new folder")
        except OSError as error:
            raise Failure(f"{given}: {error.strerror}") from error
        yield given.resolve()
        return
    sweep()
    place = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with _locked(place):
            yield place
    finally:
        shutil.rmtree(place)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold a folder: whoever finds its lock free finds nobody alive in it."""
    new = place / "lock.new"
    with new.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(place / "lock")
        yield


def sweep() -> None:
    """Remove the folders of labs that were killed."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
        except OSError:
            # Alive, somebody else's, or removed by another lab just now.
            continue


def _free_endpoints(count: int) -> list[str]:
    """Return ports of the loopback address that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()
