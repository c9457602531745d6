"""A real API server over a store, and a hand that plays the parts of the world around it: nodes, jobs, reconcilers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
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
from cairn.controller.audit_files import AuditFiles
from cairn.controller.openid import Identities
from cairn.controller.reconcilers.openings import Openings
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.store.base import Conflict, Put, Store, Txn
from cairn.controller.store.cache import Cache
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.pki import CONTROLLER_SERVER_NAME, Authority, Identity
from cairn.proto.rpc import GrpcTransport, StaticCredentials
from cairn.proto.sealing import KEY_BYTES, Seals
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1 import (
    api_token_pb2_grpc,
    audit_pb2_grpc,
    auth_pb2_grpc,
    binding_pb2_grpc,
    cluster_pb2_grpc,
    event_pb2_grpc,
    identity_provider_pb2_grpc,
    image_pb2_grpc,
    job_pb2_grpc,
    login_pb2_grpc,
    node_pb2_grpc,
    port_pb2_grpc,
    price_list_pb2_grpc,
    project_pb2_grpc,
    quota_pb2_grpc,
    role_pb2_grpc,
    subnet_pb2_grpc,
    usage_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
    vm_pb2_grpc,
    volume_pb2_grpc,
    vpc_pb2_grpc,
)
from cairn.proto.v1.agent_pb2 import Observed, Report
from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, CreateBindingRequest, Subject
from cairn.proto.v1.cluster_pb2 import ControllerSession, NameClaim
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_QCOW2, CreateImageRequest, Image, ImageContent, ImageSpec
from cairn.proto.v1.node_pb2 import Node, NodeFacts, NodeSession
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, Subnet, SubnetSpec
from cairn.proto.v1.user_pb2 import User, UserSpec
from cairn.proto.v1.vm_pb2 import CreateVmRequest, Nic, Vm, VmSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, Vpc, VpcSpec

MIB = 1024**2
GIB = 1024**3
DIGEST = "sha256:" + "ab" * 32


class Stubs:
    """Every service, as seen by one identity."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.projects: Any = project_pb2_grpc.ProjectServiceStub(channel)
        self.images: Any = image_pb2_grpc.ImageServiceStub(channel)
        self.vpcs: Any = vpc_pb2_grpc.VpcServiceStub(channel)
        self.subnets: Any = subnet_pb2_grpc.SubnetServiceStub(channel)
        self.ports: Any = port_pb2_grpc.PortServiceStub(channel)
        self.volumes: Any = volume_pb2_grpc.VolumeServiceStub(channel)
        self.vms: Any = vm_pb2_grpc.VmServiceStub(channel)
        self.nodes: Any = node_pb2_grpc.NodeServiceStub(channel)
        self.jobs: Any = job_pb2_grpc.JobServiceStub(channel)
        self.events: Any = event_pb2_grpc.EventServiceStub(channel)
        self.audits: Any = audit_pb2_grpc.AuditServiceStub(channel)
        self.usage: Any = usage_pb2_grpc.UsageServiceStub(channel)
        self.prices: Any = price_list_pb2_grpc.PriceListServiceStub(channel)
        self.auth: Any = auth_pb2_grpc.AuthServiceStub(channel)
        self.users: Any = user_pb2_grpc.UserServiceStub(channel)
        self.quotas: Any = quota_pb2_grpc.QuotaServiceStub(channel)
        self.roles: Any = role_pb2_grpc.RoleServiceStub(channel)
        self.tokens: Any = api_token_pb2_grpc.ApiTokenServiceStub(channel)
        self.idps: Any = identity_provider_pb2_grpc.IdentityProviderServiceStub(channel)
        self.logins: Any = login_pb2_grpc.LoginServiceStub(channel)
        self.bindings: Any = binding_pb2_grpc.BindingServiceStub(channel)
        self.cluster: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        self.identity: Any = cluster_pb2_grpc.IdentityServiceStub(channel)
        self.enrolment: Any = cluster_pb2_grpc.EnrolmentServiceStub(channel)


class ShiftedClock:
    """The machine's clock, moved forward by hand."""

    def __init__(self) -> None:
        self._clock, self.ahead = SystemClock(), timedelta()

    def now(self) -> Any:
        return self._clock.now() + self.ahead


class World:
    """One API server and what surrounds it. `api` is an administrator's stubs."""

    def __init__(self, store: Store, folder: Path, files: AuditFiles | None = None) -> None:
        self.store, self.folder = store, folder
        self._files = files
        self.clock, self.ids = ShiftedClock(), SystemIds()
        self.authority = Authority.create("cairn test", self.clock, self.ids)
        self.cache = Cache(store)
        # What judges the tokens of identity providers; None: the one that asks them.
        self.identities: Identities | None = None
        self.api: Stubs
        self._channels: list[grpc.aio.Channel] = []

    @classmethod
    def beside(cls, controller: Any, stubs: Stubs) -> World:
        """Return the surroundings of a controller that runs by itself."""
        world = cls(controller.store, Path())
        world.cache, world.api = controller.cache, stubs
        return world

    async def start(self) -> None:
        """Serve on a unix socket; enrolment on another."""
        self._following = asyncio.create_task(self.cache.run())
        await self.cache.ready.wait()
        self.feed = Feed(self.cache.view.revision)
        self._feeding = asyncio.create_task(self._feed())
        transport = self.transport(Identity("controller", "c1"))
        self.core = Core.build(
            self.store,
            self.cache,
            lambda: self.feed,
            self.clock,
            self.ids,
            transport,
            authority=self.authority,
            ca_pem=self.authority.cert_pem,
            enrolment_endpoints=lambda: [self.enrolment],
            seals=Seals([bytes(KEY_BYTES)]),
            archive=self.archive("c1", self._files) if self._files is not None else None,
            identities=self.identities,
        )
        await ensure_default_project(self.core, self.clock)
        await ensure_builtin_roles(self.core, self.clock)
        await ensure_quotas(self.core, self.clock)
        self.refusals = Refusals(self.core.mutations, self.cache, self.clock)
        gate = Gate(Admission(self.cache, self.core.mutations.freshen, self.clock), told=self.refusals.note)
        self.server = transport.server(interceptors=[gate])
        add_services(self.server, self.core)
        self.address = await transport.listen(self.server, f"unix:{self.folder}/api.sock")
        await self.server.start()
        self.enrolment_server = transport.server(interceptors=[gate])
        add_enrolment(self.enrolment_server, self.core)
        add_services(self.enrolment_server, self.core)
        self.enrolment = await transport.listen(self.enrolment_server, "127.0.0.1:0", mutual=False)
        await self.enrolment_server.start()
        self.api = self.stubs(Identity("user", "admin"))

    def archive(self, controller: str, files: AuditFiles) -> Archive:
        """Return the audit's files of a controller."""
        pair = self.authority.issue(Identity("controller", controller))
        return Archive(files, lambda: pair, self.authority.cert_pem, self.clock, controller)

    async def user(self, name: str, role: str = "", project: str = "", groups: Sequence[str] = ()) -> Stubs:
        """Make a user, with a role in a project (empty: everywhere) when one is named; return its stubs."""
        made = User(name=name, spec=UserSpec(groups=groups))
        await self.api.users.CreateUser(user_pb2.CreateUserRequest(user=made))
        if role:
            await self.bind(role, project, user=name)
        return self.stubs(Identity("user", name))

    async def bind(self, role: str, project: str = "", object: str = "", **subject: Any) -> Binding:
        """Bind a role."""
        spec = BindingSpec(role=role, object=object, subject=Subject(**subject))
        made = Binding(project=project, spec=spec)
        return await self.api.bindings.CreateBinding(CreateBindingRequest(binding=made))

    async def project(self, name: str) -> str:
        """Make a project; return its id."""
        project = Project(id=self.ids.new("prj"), name=name)
        claim = NameClaim(kind="project", project="-", name=name, id=project.id)
        txn = Txn("api").create(kinds.PROJECT, project.id, project).create(kinds.NAME, f"-/project/{name}", claim)
        await self.commit(txn)
        return project.id

    async def _feed(self) -> None:
        with self.cache.subscribe() as changes:
            async for change in changes:
                self.feed.push(self.cache.view, change.revision, change.records, change.gone)

    @asynccontextmanager
    async def behind(self) -> AsyncIterator[None]:
        """Let the controller hear nothing of the store meanwhile."""
        self._following.cancel()
        await asyncio.wait([self._following])
        yield
        self._following = asyncio.create_task(self.cache.run())

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.stop(0)
        await self.enrolment_server.stop(0)
        for task in (self._feeding, self._following):
            task.cancel()
        await asyncio.wait([self._feeding, self._following])
        await self.store.close()

    def transport(self, identity: Identity | None) -> GrpcTransport:
        pair = self.authority.issue(identity) if identity is not None else None
        return GrpcTransport(StaticCredentials(self.authority.cert_pem, pair))

    def by_token(self, token: str) -> Stubs:
        """Return the stubs of somebody who has a token and the CA, and no certificate."""
        transport = GrpcTransport(StaticCredentials(self.authority.cert_pem, token=token))
        channel = transport.channel([self.enrolment], server_name=CONTROLLER_SERVER_NAME)
        self._channels.append(channel)
        return Stubs(channel)

    def stubs(self, identity: Identity | None, address: str = "") -> Stubs:
        channel = self.transport(identity).channel([address or self.address], server_name=CONTROLLER_SERVER_NAME)
        self._channels.append(channel)
        return Stubs(channel)

    # --- the world around -------------------------------------------------------------------------------------------------

    async def commit(self, txn: Txn) -> None:
        await self.cache.wait_for(await self.store.commit(txn))

    async def spoil(self, kind: AnyKind, id: str) -> None:
        """Make a record one that nobody has ever been able to read."""
        await self.commit(Txn("test", deletes={kind.key(id)}))
        await self.commit(Txn("test", puts={kind.key(id): Put(b"\xff\xff\xff\xff")}))

    async def node(self, name: str, *, threads: int = 4, memory_bytes: int = 8 * GIB, disk_bytes: int = 100 * GIB) -> str:
        """Add a node that is connected."""
        view = self.cache.view
        node = Node(id=self.ids.new("node"), name=name)
        node.spec.index = len(list(view.ids(kinds.NODE))) + 1
        facts = NodeFacts(arch="x86_64", memory_bytes=memory_bytes)
        facts.cpu.threads = threads
        facts.hypervisor.accelerator = "tcg"
        facts.hypervisor.archs.append("x86_64")
        facts.pools.add(type="local", total_bytes=disk_bytes, free_bytes=disk_bytes)
        from cairn.proto.v1.cluster_pb2 import NameClaim

        claim = NameClaim(kind="node", project="-", name=name, id=node.id)
        await self.commit(Txn("api").create(kinds.NODE, node.id, node).create(kinds.NAME, f"-/node/{name}", claim))
        await self.commit(Txn("sync").create(kinds.NODE_FACTS, node.id, facts))
        await self.connect(node.id)
        return node.id

    async def connect(self, node: str, endpoint: str = "127.0.0.1:1") -> None:
        session = NodeSession(node=node, controller="c1", endpoint=endpoint)
        await self.commit(Txn("sync").put(kinds.NODE_SESSION, node, session))

    async def disconnect(self, node: str) -> None:
        await self.commit(Txn("sync").delete(kinds.NODE_SESSION, node))

    async def controller(self, name: str, endpoint: str) -> None:
        session = ControllerSession(name=name, endpoints=[endpoint])
        await self.commit(Txn("peers").put(kinds.CONTROLLER, name, session))

    async def report(self, node: str, key: str, report: Report) -> None:
        """Store what a node says about an object."""
        report.key = key
        observed = Observed(key=key, node=node, report=report)
        await self.commit(Txn("sync").put(kinds.OBSERVED, f"{node}/{key}", observed))

    async def image(self, name: str = "demo", *, virtual_size_bytes: int = 64 * MIB) -> str:
        """Create an image and play its import job: it is known and held by nobody in particular."""
        made = await self.api.images.CreateImage(CreateImageRequest(image=image(name)))
        content = ImageContent(image=made.id, virtual_size_bytes=virtual_size_bytes, format=IMAGE_FORMAT_QCOW2)
        await self.commit(Txn("jobs").put(kinds.IMAGE_CONTENT, made.id, content))
        return str(made.id)

    async def network(self) -> None:
        """Make VPC "home" with subnet "blue"."""
        vpc = Vpc(name="home", spec=VpcSpec(cidr="10.1.0.0/16"))
        await self.api.vpcs.CreateVpc(CreateVpcRequest(vpc=vpc))
        subnet = Subnet(name="blue", spec=SubnetSpec(vpc="home", cidr="10.1.1.0/24"))
        await self.api.subnets.CreateSubnet(CreateSubnetRequest(subnet=subnet))

    async def furnish(self) -> None:
        """Image, network and two nodes: all a VM needs."""
        await self.image()
        await self.network()
        await self.node("n1")
        await self.node("n2")

    async def vm(self, name: str = "web", **spec: Any) -> Vm:
        made: Vm = await self.api.vms.CreateVm(CreateVmRequest(vm=vm(name, **spec)))
        return made

    async def reconcile(self) -> None:
        """Run the reconcilers of addresses and places until they have nothing to do."""
        busy = True
        while busy:
            busy = False
            for reconciler in (Ports(), Placements(), Openings()):
                for key in sorted(reconciler.all_keys(self.cache.view)):
                    outcome = reconciler.reconcile(self.cache.view, key, self.clock.now())
                    if not outcome.txn:
                        continue
                    with suppress(Conflict):
                        await self.commit(outcome.txn)
                    busy = True

    async def count(self, kind: kinds.Kind[Any]) -> int:
        items, _ = await self.store.read(kind.prefix)
        return len(items)


def image(name: str = "demo", **spec: Any) -> Image:
    fields = {"digest": DIGEST, "size_bytes": 10 * MIB, "format": IMAGE_FORMAT_QCOW2, "arch": "x86_64"} | spec
    return Image(name=name, spec=ImageSpec(**fields))


def vm(name: str = "web", **spec: Any) -> Vm:
    fields: dict[str, Any] = {"cpus": 1, "memory_bytes": 128 * MIB, "image": "demo", "nics": [Nic(subnet="blue")]} | spec
    return Vm(name=name, spec=VmSpec(**fields))


@asynccontextmanager
async def world_on(store: Store, folder: Path, files: AuditFiles | None = None) -> AsyncIterator[World]:
    world = World(store, folder, files)
    await world.start()
    try:
        yield world
    finally:
        await world.stop()
