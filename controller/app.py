"""The controller: every part, put together. The only file that knows them all.

    controller = Controller(config, store, transport, clock, ids, authority=authority, ca_pem=ca)
    await controller.start()        # serves at once; answers "starting" until it has read the store
    await controller.wait()         # returns never; raises when a part has failed
    await controller.stop()

A simulation makes Controllers just like this, on its own store, transport and clock. `main` is the process `cairn-controller`.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

import click
import grpc.aio
from cairn.controller.api.authorise import Admission
from cairn.controller.api.core import Core
from cairn.controller.api.feed import Feed
from cairn.controller.api.interceptor import Gate
from cairn.controller.api.projects import ensure_default_project
from cairn.controller.api.quotas import ensure_quotas
from cairn.controller.api.refusals import Refusals
from cairn.controller.api.roles import ensure_builtin_roles
from cairn.controller.api.services import add_enrolment, add_services
from cairn.controller.archive import Archive
from cairn.controller.audit_bound import KEPT_MAX, OVER_MAX, AuditBound
from cairn.controller.audit_files import FolderFiles
from cairn.controller.backup import cluster_record
from cairn.controller.config import Config, ConfigError
from cairn.controller.jobs.import_image import ImportImage
from cairn.controller.jobs.keepers import Keepers
from cairn.controller.jobs.machine import Jobs
from cairn.controller.lateness import Lateness, freeze_heap
from cairn.controller.metering import Metering
from cairn.controller.metrics import MeteringMetrics, RuntimeMetrics, SyncMetrics
from cairn.controller.model.unreadable import all_unreadable
from cairn.controller.openid import Identities
from cairn.controller.peers import Peers
from cairn.controller.reconcilers.assignments import Assignments
from cairn.controller.reconcilers.base import Reconciler
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.members import Members
from cairn.controller.reconcilers.node_events import NodeEvents
from cairn.controller.reconcilers.openings import Openings
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.renewal import Renewal
from cairn.controller.retention import EVENT_KEEP_S, Retention
from cairn.controller.runtime import Runtime
from cairn.controller.standing import StoreReplaced, back_say
from cairn.controller.store.base import Store, Unavailable
from cairn.controller.store.cache import Cache
from cairn.controller.store.etcd import EtcdStore
from cairn.controller.sync import SyncService
from cairn.proto import kinds, log
from cairn.proto.errors import Refused, TryAgain
from cairn.proto.metrics import HttpsMetrics
from cairn.proto.pki import Authority, PkiError, load_pair
from cairn.proto.rpc import FileCredentials, GrpcTransport, add_health_and_reflection, split_endpoint
from cairn.proto.sealing import SealError, Seals
from cairn.proto.seams import Clock, Ids, SystemClock, SystemIds, Transport
from cairn.proto.v1 import agent_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector

_log = log.logger("controller")
PROBE_S: Final = 2.0
RETRY_S: Final = 0.5
# Answered also while nobody may decide anything: how it is, and the way out.
ALWAYS: Final = frozenset(
    {f"/cairn.v1.ClusterService/{name}" for name in ("GetClusterStatus", "BackupCluster", "RestoreCluster")}
)
# How long calls under way may go on after SIGTERM.
GRACE_S: Final = 2.0


def reconcilers() -> list[Reconciler]:
    """Return one of each."""
    jobs = Jobs([ImportImage()], [Keepers()])
    return [Ports(), Placements(), Assignments(), Openings(), Garbage(), jobs, NodeEvents(), Members()]


class Controller:
    """One controller. See the module."""

    def __init__(
        self,
        config: Config,
        store: Store,
        transport: Transport,
        clock: Clock,
        ids: Ids,
        *,
        authority: Authority | None = None,
        ca_pem: bytes = b"",
        registry: CollectorRegistry | None = None,
        version: str = "",
        seals: Seals | None = None,
        audits: tuple[int, int] = (KEPT_MAX, OVER_MAX),
        archive: Archive | None = None,
        identities: Identities | None = None,
    ) -> None:
        registry = registry or CollectorRegistry()
        self.config, self.store = config, store
        self._transport, self._clock = transport, clock
        self.cache = Cache(store)
        self.feed: Feed | None = None
        self.core = Core.build(
            store,
            self.cache,
            self._current_feed,
            clock,
            ids,
            transport,
            authority=authority,
            ca_pem=ca_pem,
            enrolment_endpoints=self._enrolment_endpoints,
            version=version,
            seals=seals,
            name=config.name,
            archive=archive,
            identities=identities,
        )
        self.standing, fenced = self.core.standing, self.core.store
        self.peers = Peers(config.name, [config.advertised], store, self.cache, clock, cluster=config.cluster, version=version)
        leases, metrics = Retention(store, EVENT_KEEP_S), RuntimeMetrics(registry)
        self.standing.refused = lambda why: metrics.store_refused.labels(why).inc()
        used = Counter("cairn_first_administrator", "What the first administrator's certificate did", registry=registry)
        self.core.mutations.root_used = used.inc
        unreadable = Gauge("cairn_records_unreadable", "Records that cannot be decoded", registry=registry)
        unreadable.set_function(lambda: sum(1 for _ in all_unreadable(self.cache.view)))
        acts = self.core.mutations.acts
        self.runtime = Runtime(self.cache, fenced, self.peers, clock, ids, reconcilers(), metrics, leases, acts)
        synced = SyncMetrics(registry)
        self.sync = SyncService(
            self.cache, fenced, clock, ids, leases, synced, self.standing, controller=config.name, seals=self.core.seals
        )
        self.metering = Metering(self.cache, fenced, self.peers, clock, ids, leases, MeteringMetrics(registry))
        self.audit_bound = AuditBound(fenced, clock, *audits, archive)
        self.core.mutations.closed = self.audit_bound.closed
        self.refusals = Refusals(self.core.mutations, self.cache, clock)
        # Set once calls are answered.
        self.ready = asyncio.Event()
        self.addresses: list[str] = []
        self._servers: list[grpc.aio.Server] = []
        self._enrol_address = ""
        # What the start waits for, when something went wrong.
        self._waits_for = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._health: list[tuple[Any, list[str]]] = []

    async def start(self) -> None:
        """Serve, and begin to work as soon as the store answers. Raises OSError when an address cannot be used."""
        gate = Gate(Admission(self.cache, self.core.mutations.freshen, self._clock), self._unready, self.refusals.note)
        server = self._transport.server(interceptors=[gate])
        names = add_services(server, self.core)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self.sync, server)
        await self._serve(server, [*names, "cairn.v1.AgentService"], list(self.config.listen), mutual=True)
        if self.config.enrol_listen:
            # Where no certificate is asked for: nodes that join, and callers with tokens.
            server = self._transport.server(interceptors=[gate])
            names = [*add_enrolment(server, self.core), *add_services(server, self.core)]
            (self._enrol_address,) = await self._serve(server, names, [self.config.enrol_listen], mutual=False)
        self._spawn(self.cache.run(), "cache")
        self._spawn(self._work(), "work")
        self._spawn(self._watch_health(), "health")
        _log.info("serving", name=self.config.name, addresses=self.addresses, enrolment=self._enrol_address)

    async def _serve(self, server: grpc.aio.Server, names: list[str], addresses: list[str], *, mutual: bool) -> list[str]:
        """Bind and start one server; return the bound addresses."""
        health = await add_health_and_reflection(server, names)
        self._health.append((health, ["", *names]))
        await self._tell_health(ready=False)
        bound = [await self._transport.listen(server, address, mutual=mutual) for address in addresses]
        self._servers.append(server)
        await server.start()
        if mutual:
            self.addresses += bound
        return bound

    async def wait(self) -> None:
        """Wait for ever; raise what a failed part raised."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise RuntimeError(f"{task.get_name()} has ended")

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """End calls, leave the peers, let go of the store."""
        self.ready.clear()
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.refusals.tell(math.inf)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.store.close()
        _log.info("stopped", name=self.config.name)

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    def _unready(self, method: str) -> Refused | None:
        """Return why a method cannot be answered now. What a stopped cluster needs is answered all the same."""
        if not self.cache.ready.is_set():
            return TryAgain(f"controller {self.config.name} is starting: it has not read the store yet")
        why = self.standing.why_not()
        if why is not None or method in ALWAYS:
            return None if method in ALWAYS else why
        if self.ready.is_set():
            return None
        return TryAgain(
            ": ".join(filter(None, (f"controller {self.config.name} is starting", self._waits_for or self.peers.trouble)))
        )

    def _current_feed(self) -> Feed:
        assert self.feed is not None, "the gate lets nobody through before the feed is there"
        return self.feed

    def _enrolment_endpoints(self) -> list[str]:
        """Return where new nodes enrol: every controller's address with this one's enrolment port."""
        if not self._enrol_address:
            return []
        _, port = split_endpoint(self._enrol_address)
        sessions = self.cache.view.all(kinds.CONTROLLER)
        hosts = {split_endpoint(endpoint)[0] for session in sessions for endpoint in session.endpoints}
        return sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)

    async def _work(self) -> None:
        """Everything that needs a picture of the store."""
        await self.cache.ready.wait()
        with self.cache.subscribe() as changes:
            self.feed = Feed(self.cache.view.revision)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(changes), name="feed")
                group.create_task(self.peers.run(), name="peers")
                await self._prepare()
                group.create_task(self.runtime.run(), name="runtime")
                group.create_task(self.sync.run(), name="sync")
                group.create_task(self.metering.run(), name="metering")
                group.create_task(self.audit_bound.run(), name="audit_bound")
                group.create_task(self.refusals.run(), name="refusals")
                self.ready.set()
                _log.info("ready", name=self.config.name, revision=self.cache.view.revision)

    async def _follow(self, changes: Any) -> None:
        async for change in changes:
            self._current_feed().push(self.cache.view, change.revision, change.records, change.gone, change.before)

    async def _prepare(self) -> None:
        """Make the default project and the roles that come with us, and be registered, however long the store takes."""
        while True:
            try:
                await ensure_default_project(self.core, self._clock)
                await ensure_builtin_roles(self.core, self._clock)
                await ensure_quotas(self.core, self._clock)
                await self.peers.registered.wait()
                await self.core.mutations.freshen()
                return
            except (Unavailable, Refused) as error:
                _log.warning("store_unavailable", error=str(error))
                self._waits_for = str(error)
                await asyncio.sleep(RETRY_S)

    async def _watch_health(self) -> None:
        """Say SERVING while calls are answered and the store is there."""
        while True:
            alive = self.ready.is_set()
            if alive:
                try:
                    async with asyncio.timeout(PROBE_S):
                        await self.core.store.revision()
                        await self._outlived()
                except (Unavailable, TimeoutError):
                    alive = False
                alive = alive and self.standing.why_not() is None
            await self._tell_health(ready=alive)
            await asyncio.sleep(PROBE_S if self.ready.is_set() else RETRY_S)

    async def _outlived(self) -> None:
        """See to a store that went back: nobody is told anything on its word. Raises StoreReplaced once it has a new epoch."""
        if self.standing.went_back is None:
            return
        self.sync.disband(back_say(*self.standing.went_back))
        cluster, _, _ = await cluster_record(self.store)
        if cluster.epoch > self.peers.epoch and not cluster.HasField("restore"):
            raise StoreReplaced(f"the store was restored, as epoch {cluster.epoch}: this controller starts anew")

    async def _tell_health(self, *, ready: bool) -> None:
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        for servicer, names in self._health:
            for name in names:
                await servicer.set(name, status)


# --- the process -----------------------------------------------------------------------------------------------------------


class MetricsServer:
    """Prometheus metrics over HTTPS, for holders of a certificate of this cluster."""

    def __init__(self, config: Config, registry: CollectorRegistry) -> None:
        self._config, self._registry = config, registry
        self._server: HttpsMetrics | None = None

    def start(self) -> None:
        """Serve, with the certificate that is there now. Raises OSError."""
        self.stop()
        if not self._config.metrics_listen:
            return
        files = {"cert": Path(self._config.cert), "key": Path(self._config.key), "ca": Path(self._config.ca)}
        self._server = HttpsMetrics(self._config.metrics_listen, self._registry, **files)

    def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
            self._server = None


def open_etcd(config: Config) -> Store:
    """Return the store every real controller has."""
    return EtcdStore(config.etcd_endpoints, FileCredentials(config.etcd_ca, config.etcd_cert, config.etcd_key))


async def told_by_signal() -> None:
    """Return on SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


async def serve(
    config: Config,
    authority: Authority | None,
    ca_pem: bytes,
    clock: Clock,
    ids: Ids,
    *,
    open_store: Callable[[Config], Store] = open_etcd,
    told_to_stop: Callable[[], Coroutine[Any, Any, None]] = told_by_signal,
) -> None:
    """Run a controller until it is told to stop. Raises OSError, PkiError, SealError."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    transport = GrpcTransport(FileCredentials(config.ca, config.cert, config.key), ids=ids)
    controller = Controller(
        config,
        open_store(config),
        transport,
        clock,
        ids,
        authority=authority,
        ca_pem=ca_pem,
        registry=registry,
        version=installed_version("cairn"),
        seals=load_seals(config),
        archive=load_archive(config, ca_pem, clock),
    )
    metrics = MetricsServer(config, registry)
    renewal = Renewal(config, transport, authority, clock, ids, lambda: others(controller), metrics.start)
    try:
        await controller.start()
        metrics.start()
        heap = freeze_heap(controller.cache.ready, controller.sync.loaded)
        await _first_end(controller.wait(), renewal.run(), Lateness(registry).run(), heap, told_to_stop())
    finally:
        metrics.stop()
        await controller.stop()


def load_seals(config: Config) -> Seals:
    """Return the keys that seal secrets; none, said loudly, when the file is not there. Raises SealError, OSError."""
    try:
        return Seals.load(config.secrets_key)
    except FileNotFoundError:
        why = "no user data and no keys are taken; `cairn cluster init` makes the file"
        _log.warning("no_secrets_key", path=str(config.secrets_key), why=why)
        return Seals()


def load_archive(config: Config, ca_pem: bytes, clock: Clock) -> Archive | None:
    """Return the audit's files; none, said loudly, when there is no place for them."""
    if not config.audit_dir:
        _log.warning("no_audit_dir", why="of the audit only the newest records are kept; give audit_dir in the configuration")
        return None
    pair = partial(load_pair, Path(config.cert), Path(config.key))
    return Archive(FolderFiles(Path(config.audit_dir)), pair, ca_pem, clock, config.name)


def others(controller: Controller) -> list[str]:
    """Return the endpoints of the other live controllers."""
    sessions = controller.cache.view.all(kinds.CONTROLLER)
    return sorted(each for session in sessions if session.name != controller.config.name for each in session.endpoints)


async def _first_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Run them until one ends; end the others; raise what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="TOML file.")
def main(path: Path) -> None:
    """Run a controller of a Cairn cloud."""
    os.umask(0o077)
    try:
        config = Config.load(path)
        log.configure(config.log_level)
        clock, ids = SystemClock(), SystemIds()
        authority = Authority.load(Path(config.ca), Path(config.ca_key), clock, ids) if config.ca_key else None
        asyncio.run(serve(config, authority, Path(config.ca).read_bytes(), clock, ids))
    except (ConfigError, PkiError, SealError, OSError) as error:
        raise click.ClickException(str(error)) from error
