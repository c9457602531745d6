"""The real-life twin of the simulation: real servers, etcd, libvirt and QEMU; the same users, faults and checkers; real time.

    figures = await Twin(lab, seed=1, seconds=600.0, say=print).run()

Runs in the underlay's network namespace of a lab that is up and empty (see __main__.py). Two witnesses feed the referee all the
time: a watch of etcd, and looks at the servers. When the time for faults is over everything is mended, the cloud must come to
rest as asked, controllers must tell the truth of it, everybody restarted must change nothing, and after all is erased nothing
may be left. The seed decides what users and faults do and in which order, not the moment of anything else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cairn.controller.store.base import Batch, Unavailable
from cairn.controller.store.etcd import EtcdStore
from cairn.proto import kinds
from cairn.proto.rpc import FileCredentials, GrpcTransport
from cairn.proto.seams import SystemClock, SystemIds

from tests.lab.hosts import Host, run
from tests.lab.lab import Lab
from tests.sim import audit, cast
from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker, Violation
from tests.sim.checkers.metered import Metered
from tests.sim.user import SUBNET, User
from tests.twin.eyes import Eyes
from tests.twin.faults import Faults
from tests.twin.load import Load, TwinClient
from tests.twin.logs import Logs, Untroubled
from tests.twin.patience import PatientReferee
from tests.twin.punctual import Punctual
from tests.twin.waits import waits

USERS: Final = ("u1", "u2", "u3")
LOOK_S: Final = 0.5
REST_S: Final = 240.0
# How long all may take besides the time for faults: whoever waits for ever is named.
LIMIT_S: Final = 420.0
# How long everything must look right before it is believed.
STILL_S: Final = 6.0
VPC: Final = "twin"


@dataclass
class Figures:
    """What there is to count."""

    faults: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    pictures: int = 0
    revisions: int = 0
    lines: int = 0
    requests: int = 0
    vms: int = 0
    guests_started: int = 0
    guests_most: int = 0
    # Of all VMs: on servers, counted, and how long the two were apart, in seconds; and the latest report without faults.
    used_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    latest_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def told(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"

        return "\n".join(
            [
                f"faults: {sum(self.faults.values())} ({told(self.faults)})",
                f"acts of users: {sum(self.acts.values())} ({told(self.acts)})",
                f"requests answered: {self.requests}; VMs made: {self.vms}; guests started: {self.guests_started},"
                f" at most {self.guests_most} at a time",
                f"guests ran for {self.used_s[0]:.0f} s, {self.used_s[1]:.0f} s are counted; reports were late by"
                f" {self.used_s[2]:.0f} s in all, {self.latest_s:.1f} s at most once faults had ended",
                f"looks: {self.looks}; pictures judged: {self.pictures}; revisions judged: {self.revisions};"
                f" log lines judged: {self.lines}",
                f"violations: {len(self.violations)}",
                *(f"  {text}" for text in self.violations),
            ]
        )


class Twin:
    """One run. To be made in a running loop."""

    def __init__(self, lab: Lab, seed: int | str, seconds: float, say: Callable[[str], None]) -> None:
        self.lab, self._seed, self._seconds, self._say = lab, seed, seconds, say
        self._began_s = asyncio.get_running_loop().time()
        self.figures = Figures()
        self._metered, self._punctual = Metered(), Punctual(asyncio.get_running_loop().time)
        others = [each for each in cast.all_checkers() if not isinstance(each, Metered)]
        self._checkers: list[Checker] = [*others, self._metered, self._punctual, Untroubled()]
        self.referee = PatientReferee(self._checkers, self._fail)
        # Servers, controllers and this process are on one machine: they have one clock.
        self._clock = SystemClock()
        self.referee.cloud.clock = self._clock.now
        self._began = self._clock.now().replace(minute=0, second=0, microsecond=0)
        self.asked: Asked = self.referee.asked
        etcd = [lab.pki / name for name in ("etcd-ca.crt", "controller-n1-etcd.crt", "controller-n1-etcd.key")]
        self.store = EtcdStore([f"{host.address}:2379" for host in lab.control], FileCredentials(*etcd))
        self._transport = GrpcTransport(FileCredentials(lab.pki / "ca.crt", lab.pki / "admin.crt", lab.pki / "admin.key"))
        self._clients: list[TwinClient] = []
        self.client = self._connect(lab.endpoints)
        self.faults = Faults(lab, f"{seed}/faults", self._well, self.note)
        self.logs = Logs(lab.hosts)
        self.eyes: Eyes
        # What was damaged, and mended: nothing is here.
        self.were_spoiled: frozenset[str] = frozenset()
        # The newest revision seen, and that of each node's session.
        self._seen = 0
        self._sessions: dict[str, int] = {}

    def note(self, text: str) -> None:
        """Log what is done to the cloud and what it answers."""
        self._say(f"{asyncio.get_running_loop().time() - self._began_s:7.2f} s  {text}")

    async def run(self) -> Figures:
        """Play it all. What must not be is in the figures; the run goes on as long as it makes sense."""
        await self._open()
        watchers = [asyncio.create_task(self._follow()), asyncio.create_task(self._look_on())]
        play = asyncio.create_task(self._play())
        limit_s = self._seconds + LIMIT_S
        done, _ = await asyncio.wait([*watchers, play], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._violated("\n    ".join([f"not done after {limit_s:.0f} s; these wait:", *waits()]))
        elif play not in done:
            self._violated("a witness has ended before the play")
        for task in (*watchers, play):
            task.cancel()
        results = await asyncio.gather(*watchers, play, return_exceptions=True)
        # Also when it was cut short: the lab may have more to do.
        await self.faults.calm()
        self.eyes.close()
        await self.store.close()
        for result in results:
            if isinstance(result, Exception):
                self._violated(f"{type(result).__name__}: {result}")
        for text in self.logs.unexplained(self.faults.killed):
            self._violated(text)
        self._count()
        return self.figures

    async def _play(self) -> None:
        await self._rest("empty", self.referee.unemptied)
        before = {kind: {each.id for each in found} for kind, found in (await self._listed(*self.lab.endpoints)).items()}
        await self.client.create_vpc(VPC, "10.1.0.0/16")
        await self.client.create_subnet_in(VPC, SUBNET, "10.1.1.0/24")
        self.note("the story begins")
        until_s = asyncio.get_running_loop().time() + self._seconds
        users = [self._user(name) for name in USERS]
        working = asyncio.gather(*(self._work(user, until_s) for user in users))
        await self.faults.run(until_s)
        await self.faults.calm()
        self._punctual.calm = True
        self.note("all faults have ended")
        await self._bounded("not everybody was answered", working)
        await self._rest("at rest", self.referee.unsettled)
        await self._ask_all()
        await self._ask_libvirt()
        await self._again()
        await self._erase_all()
        await self._rest("empty", self.referee.unemptied)
        await self._tidy(before)
        await self._rest("empty", self.referee.unemptied)

    # --- the witnesses -------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Take in the store as it is, and the secrets nobody may see."""
        items, self._seen = await self.store.read(kinds.ROOT)
        self.referee.begin_anew(self._checkers, self._seen, [(item.key, item.value) for item in items])
        nodes = {node.name: id for id, node in self.referee.cloud.all("node").items()}
        self.eyes = Eyes(self.lab.hosts, nodes)
        for path in sorted(self.lab.pki.glob("*.key")):
            self.referee.cloud.secrets |= {line for line in path.read_text().splitlines() if len(line) == 64}

    async def _follow(self) -> None:
        """Show each revision to the referee."""
        async for batch in self.store.watch(kinds.ROOT, self._seen):
            if batch.changes:
                self.referee.batch(batch, None)
                self.figures.revisions += 1
                self._take(batch)
            self._seen = batch.revision

    def _take(self, batch: Batch) -> None:
        for change in batch.changes:
            kind, id = kinds.split(change.key)
            if kind is kinds.NODE_SESSION and change.value is not None:
                self._sessions[id] = batch.revision
            self.figures.vms += kind is kinds.VM and change.create_revision == batch.revision

    async def _look_on(self) -> None:
        """Look at the servers again and again."""
        while True:
            pictures = await asyncio.to_thread(self.eyes.look)
            await self._caught_up()
            for picture, between in pictures:
                if not between:
                    self.referee.ledger(picture)
                self.referee.host(picture, between=between)
                self.figures.pictures += 1
            for line in self.logs.lines():
                self.figures.lines += 1
                self.referee.line(line)
            guests = sum(len(host.guests) for host in self.referee.cloud.hosts.values())
            self.figures.guests_most = max(self.figures.guests_most, guests)
            self.figures.looks += 1
            await asyncio.sleep(LOOK_S)

    async def _caught_up(self) -> None:
        """Wait until the newest revision of the store was seen; as long as it has no quorum, nothing moves."""
        while True:
            try:
                newest = await self.store.revision()
                break
            except Unavailable:
                await asyncio.sleep(0.2)
        while self._seen < newest:
            await asyncio.sleep(0.02)

    async def _looked(self) -> None:
        """Wait for a look that began after now."""
        wanted = self.figures.looks + 2
        while self.figures.looks < wanted:
            await asyncio.sleep(0.05)

    def _fail(self, violation: Violation) -> None:
        self._violated(str(violation))

    def _violated(self, text: str) -> None:
        if text not in self.figures.violations:
            self.figures.violations.append(text)
            self.note(f"VIOLATION {text}")

    # --- who does what -------------------------------------------------------------------------------------------------------

    def _connect(self, endpoints: list[str]) -> TwinClient:
        client = TwinClient(self._transport, endpoints, SystemIds(), self.note)
        self._clients.append(client)
        return client

    async def _listed(self, *endpoints: str) -> dict[str, list[Any]]:
        """Return kind -> all objects, as one of these controllers tells."""
        return await audit.listed(TwinClient(self._transport, endpoints, SystemIds(), lambda _text: None))

    def _user(self, name: str) -> User:
        return User(name, self, self._connect(self.lab.endpoints), self.asked)

    async def _work(self, user: User, until_s: float) -> None:
        load = Load(user, f"{self._seed}/load")
        try:
            await load.run(until_s)
        except AssertionError as error:
            self._violated(str(error))
        finally:
            self.figures.acts += load.done

    async def _well(self, host: Host) -> bool:
        members = await self.store.members()
        return any(member.endpoint.startswith(f"{host.address}:") and member.healthy for member in members)

    async def _bounded(self, what: str, work: Any) -> None:
        try:
            async with asyncio.timeout(REST_S):
                await work
        except TimeoutError as error:
            raise AssertionError(f"{what} within {REST_S:.0f} s") from error

    async def _rest(self, what: str, complaints: Callable[[], list[str]]) -> None:
        """Wait until nobody complains, and that stays so for a while."""
        loop = asyncio.get_running_loop()
        began_s = quiet_s = loop.time()
        last = "at once"
        while loop.time() - quiet_s < STILL_S:
            await self._looked()
            if said := complaints():
                quiet_s, last = loop.time(), f"{loop.time() - began_s:.0f} s later; the last to be true: {said[0]}"
                if quiet_s - began_s > REST_S:
                    raise AssertionError(f"not {what} after {REST_S:.0f} s: {'; '.join(said[:6])}")
        self.note(f"{what} {last}")

    async def _ask_all(self) -> None:
        """Have each controller list everything it knows."""
        for host in self.lab.control:
            alone = TwinClient(self._transport, (f"unix:{self.lab.socket_of(host)}",), SystemIds(), lambda _text: None)
            found: dict[str, list[Any]] = {**await audit.listed(alone), "usage": await audit.used_since(alone, self._began)}
            for kind, objects in found.items():
                for text in self.referee.listed(f"the controller on {host.name}", kind, objects):
                    self._violated(text)

    async def _ask_libvirt(self) -> None:
        """Have each server's libvirt list its domains: what it says must be what its files and the processes say."""
        for host in self.referee.cloud.hosts.values():
            uri = f"qemu+unix:///system?socket={self.lab.host(host.name).folder}/libvirt/run/libvirt-sock"
            executing = [id for id, guest in host.guests.items() if guest.executing]
            for which, seen in (("--state-running", executing), ("--all", host.definitions)):
                listed = (await asyncio.to_thread(run, "virsh", "-c", uri, "list", "--name", which)).stdout.split()
                if sorted(listed) != sorted(seen):
                    self._violated(f"libvirt on {host.name} lists {sorted(listed)} {which}, seen were {sorted(seen)}")

    async def _again(self) -> None:
        """Restart everybody while all is at rest: nothing may change."""
        await self._looked()
        before = dict(self._sessions)
        self._resting(on=True)
        self.note("everybody is restarted")
        await self.faults.all_restarted()

        async def connected() -> None:
            while not all(self._sessions[node] > revision for node, revision in before.items()):
                await asyncio.sleep(0.1)

        await self._bounded("not all nodes were connected again", connected())
        await asyncio.sleep(STILL_S)
        await self._looked()
        self._resting(on=False)
        await self._rest("at rest again", self.referee.unsettled)

    def _resting(self, *, on: bool) -> None:
        try:
            self.referee.resting(on)
        except Violation as violation:
            self._fail(violation)

    async def _erase_all(self) -> None:
        """Erase all VMs, then all volumes."""

        async def erase() -> None:
            for vm in list(self.asked.vms):
                await self.client.delete_vm(vm)
                self.asked.erase_vm(vm)
            for volume in list(self.asked.volumes):
                await self.client.delete_volume(volume)
                self.asked.erase_volume(volume)

        await self._bounded("not everything could be erased", erase())

    async def _tidy(self, before: dict[str, set[str]]) -> None:
        """Remove what users made besides: images and networks."""
        for kind, delete in (
            ("image", self.client.delete_image),
            ("subnet", self.client.delete_subnet),
            ("vpc", self.client.delete_vpc),
        ):
            for each in (await self._listed(*self.lab.endpoints))[kind]:
                if each.id not in before[kind]:
                    await delete(each.id)

    def _count(self) -> None:
        figures = self.figures
        figures.faults = self.faults.struck
        figures.requests = sum(client.answered for client in self._clients)
        figures.used_s, figures.latest_s = self._metered.totals_s(self.referee.cloud), self._punctual.latest_s
        figures.guests_started = sum(host.boots for host in self.referee.cloud.hosts.values())
