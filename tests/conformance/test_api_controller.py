"""The whole controller: started before its store, health, renewal, metrics, SIGTERM; in-process and as the real process."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
import urllib.request
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.app import Controller
from cairn.controller.config import Config
from cairn.controller.renewal import Renewal
from cairn.controller.store.base import Full
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.proto import pki
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Authority, Identity
from cairn.proto.rpc import FileCredentials, GrpcTransport, StaticCredentials
from cairn.proto.sealing import Seals
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.event_pb2 import ListEventsRequest
from cairn.proto.v1.project_pb2 import ListProjectsRequest
from cairn.proto.v1.vm_pb2 import GetVmRequest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conformance.api_world import ShiftedClock, Stubs, World
from tests.lab.etcd import Cluster, available

DEADLINE_S = 20.0
needs_etcd = pytest.mark.skipif(not available(), reason="no etcd on this machine")


async def eventually(what: str, probe: Any) -> Any:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + DEADLINE_S
    while not (found := await probe()):
        assert loop.time() < until_s, f"waited {DEADLINE_S} s for {what}"
        await asyncio.sleep(0.05)
    return found


class Site:
    """A CA and a folder of certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.ids = folder, SystemClock(), SystemIds()
        self.authority = Authority.create("cairn test", self.clock, self.ids)
        pki.write_public(folder / "ca.crt", self.authority.cert_pem)
        pki.write_private(folder / "ca.key", self.authority.key_pem)
        pair = self.authority.issue(Identity("controller", "c1"), hosts=["127.0.0.1", "cloud.example.org"])
        pki.install_pair(folder / "c1.crt", folder / "c1.key", pair)

    def config(self, **options: Any) -> Config:
        files = {name: str(self.folder / file) for name, file in (("ca", "ca.crt"), ("cert", "c1.crt"), ("key", "c1.key"))}
        fields = {"name": "c1", "listen": [f"unix:{self.folder}/c1.sock"], "advertise": "127.0.0.1:7443"}
        etcd = {"etcd_endpoints": ["127.0.0.1:1"], "etcd_ca": "x", "etcd_cert": "x", "etcd_key": "x"}
        return Config.parse({**fields, **etcd, **files, **options})

    def transport(self, identity: Identity) -> GrpcTransport:
        return GrpcTransport(StaticCredentials(self.authority.cert_pem, self.authority.issue(identity)))

    def channel(self, address: str, identity: Identity | None = None) -> grpc.aio.Channel:
        transport = self.transport(identity or Identity("user", "admin"))
        return transport.channel([address], server_name=CONTROLLER_SERVER_NAME)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
async def controller(site: Site) -> AsyncIterator[Controller]:
    config = site.config(enrol_listen="127.0.0.1:0")
    transport = site.transport(Identity("controller", "c1"))
    made = Controller(
        config,
        MemoryStore(MemoryBackend()),
        transport,
        site.clock,
        site.ids,
        authority=site.authority,
        ca_pem=site.authority.cert_pem,
        seals=Seals([bytes(64)]),
    )
    await made.start()
    yield made
    await made.stop(0)


async def health_of(channel: grpc.aio.Channel, service: str = "") -> Any:
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return answer.status


async def serving(channel: grpc.aio.Channel, service: str = "") -> bool:
    return await health_of(channel, service) == health_pb2.HealthCheckResponse.SERVING


async def test_a_controller_in_process_places_a_vm(site: Site, controller: Controller) -> None:
    """The product's own reconcilers run: a VM gets its address and its node without anybody's help."""
    async with site.channel(controller.addresses[0]) as channel:
        await eventually("health", lambda: serving(channel, "cairn.v1.VmService"))
        world = World.beside(controller, Stubs(channel))
        await world.network()
        await world.node("n1")
        await world.image()
        made = await world.vm()

        async def placed() -> Any:
            seen = await world.api.vms.GetVm(GetVmRequest(id=made.id))
            return seen.status.node == "n1" and seen.status.nics[0].address and seen

        seen = await eventually("the placement", placed)
        assert seen.status.nics[0].address == "10.1.1.2"
        found = await world.api.events.ListEvents(ListEventsRequest(filter=f"object = {made.id}"))
        reasons = {event.reason for event in found.events}
        assert {"Created", "Placed"} <= reasons


async def test_reflection_lists_the_services(site: Site, controller: Controller) -> None:
    async with site.channel(controller.addresses[0]) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"cairn.v1.VmService", "cairn.v1.AgentService", "grpc.health.v1.Health"} <= names
        call.cancel()


async def test_a_controller_that_starts_on_a_full_store_says_so(site: Site) -> None:
    """It cannot be registered, so it serves nothing yet; its callers learn why, and it goes on by itself."""
    store = MemoryStore(MemoryBackend())
    full, commit = asyncio.Event(), store.commit

    async def commit_or_not(txn: Any) -> int:
        if not full.is_set():
            raise Full("NOSPACE on member m1")
        return await commit(txn)

    store.commit = commit_or_not  # type: ignore[method-assign]
    made = Controller(site.config(), store, site.transport(Identity("controller", "c1")), site.clock, site.ids)
    await made.start()
    async with site.channel(made.addresses[0]) as channel:

        async def told() -> bool:
            try:
                await Stubs(channel).vms.GetVm(GetVmRequest(id="web"))
            except grpc.aio.AioRpcError as error:
                return "is starting: the store is full: NOSPACE on member m1" in (error.details() or "")
            return False

        await eventually("the reason", told)
        full.set()
        await eventually("health", lambda: serving(channel, "cairn.v1.VmService"))
    await made.stop(0)


async def test_before_the_store_is_read_calls_are_told_so(site: Site) -> None:
    store = MemoryStore(MemoryBackend())
    reads = asyncio.Event()
    read = store.read

    async def late(*arguments: Any, **keywords: Any) -> Any:
        await reads.wait()
        return await read(*arguments, **keywords)

    store.read = late  # type: ignore[method-assign]
    transport = site.transport(Identity("controller", "c1"))
    controller = Controller(site.config(), store, transport, site.clock, site.ids)
    await controller.start()
    try:
        async with site.channel(controller.addresses[0]) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Stubs(channel).projects.ListProjects(ListProjectsRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "is starting" in str(caught.value.details())
            assert await health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
            reads.set()
            await eventually("health", lambda: serving(channel))
            assert (await Stubs(channel).projects.ListProjects(ListProjectsRequest())).projects[0].name == "default"
    finally:
        await controller.stop(0)


async def test_a_certificate_is_renewed_when_two_thirds_are_over(site: Site) -> None:
    clock = ShiftedClock()
    renewed: list[int] = []
    transport = GrpcTransport(FileCredentials(site.folder / "ca.crt", site.folder / "c1.crt", site.folder / "c1.key"))
    before = (site.folder / "c1.crt").read_bytes()
    config = site.config()
    renewal = Renewal(config, transport, site.authority, clock, site.ids, list, lambda: renewed.append(1))
    assert not await renewal.renew_if_due()
    clock.ahead = timedelta(days=61)
    assert await renewal.renew_if_due()
    after = pki.load_pair(site.folder / "c1.crt", site.folder / "c1.key")
    assert after.cert_pem != before
    assert pki.identity_of(after.cert_pem) == Identity("controller", "c1")
    assert {"127.0.0.1", "cloud.example.org"} <= set(pki.hosts_of(after.cert_pem, Identity("controller", "c1")))
    assert renewed


async def test_a_controller_without_the_ca_key_is_renewed_by_a_peer(site: Site, controller: Controller) -> None:
    clock = ShiftedClock()
    clock.ahead = timedelta(days=61)
    async with site.channel(controller.addresses[0]) as channel:
        await eventually("health", lambda: serving(channel))
    transport = GrpcTransport(FileCredentials(site.folder / "ca.crt", site.folder / "c1.crt", site.folder / "c1.key"))
    before = (site.folder / "c1.crt").read_bytes()
    renewal = Renewal(site.config(), transport, None, clock, site.ids, lambda: controller.addresses)
    assert await renewal.renew_if_due()
    pair = pki.load_pair(site.folder / "c1.crt", site.folder / "c1.key")
    assert pair.cert_pem != before
    assert pki.identity_of(pair.cert_pem) == Identity("controller", "c1")
    assert set(pki.hosts_of(pair.cert_pem, Identity("controller", "c1"))) == {"127.0.0.1", "cloud.example.org"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@needs_etcd
@pytest.mark.etcd
async def test_the_process_waits_for_etcd_serves_metrics_and_ends_on_sigterm(site: Site, etcd: Cluster) -> None:
    """`cairn-controller --config FILE` against real etcd that comes late."""
    member, metrics = etcd.members[0], free_port()
    config = {
        **{name: str(value) for name, value in (("ca", site.folder / "ca.crt"), ("ca_key", site.folder / "ca.key"))},
        **{"cert": str(site.folder / "c1.crt"), "key": str(site.folder / "c1.key"), "name": "c1"},
        **{"etcd_ca": str(etcd.folder / "client/etcd-ca.crt"), "etcd_cert": str(etcd.folder / "client/client.crt")},
        **{"etcd_key": str(etcd.folder / "client/client.key"), "metrics_listen": f"127.0.0.1:{metrics}"},
        **{"listen": [f"unix:{site.folder}/c1.sock"], "advertise": "127.0.0.1:7443", "etcd_endpoints": etcd.endpoints},
    }
    lines = [f"{key} = {str(value)!r}" if isinstance(value, str) else f"{key} = {value!r}" for key, value in config.items()]
    (site.folder / "c1.toml").write_text("\n".join(lines).replace("'", '"'))
    member.kill()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from cairn.controller.app import main; main()", "--config", str(site.folder / "c1.toml")),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with site.channel(f"unix:{site.folder}/c1.sock") as channel:
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING

            async def starting() -> bool:
                return await health_of(channel) == not_serving

            await eventually("the socket", starting)
            member.start()
            await eventually("health", lambda: serving(channel))
        text = await asyncio.to_thread(scrape, site, metrics)
        assert "cairn_queue_depth" in text
        assert "process_resident_memory_bytes" in text
        with pytest.raises(OSError):  # noqa: PT011 - whatever TLS says to a stranger
            await asyncio.to_thread(scrape, site, metrics, known=False)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def scrape(site: Site, port: int, *, known: bool = True) -> str:
    context = ssl.create_default_context(cafile=str(site.folder / "ca.crt"))
    if known:
        context.load_cert_chain(site.folder / "c1.crt", site.folder / "c1.key")
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=context, timeout=5) as answer:
        return str(answer.read().decode())


def test_a_bad_configuration_is_one_sentence(tmp_path: Path) -> None:
    from cairn.controller.app import main
    from click.testing import CliRunner

    (tmp_path / "c.toml").write_text('nmae = "c1"\n')
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "c.toml")])
    assert result.exit_code == 1
    assert result.output.strip() == "Error: unknown option 'nmae'; did you mean 'name'?"
