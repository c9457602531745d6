"""Every method asks `permits`: whom it permits nothing is told of nothing and changes nothing, whatever the gate would say."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from cairn.controller.api import images, nouns
from cairn.controller.api.services import SERVICES, add_services
from cairn.controller.model.permits import OWN, Caller, Verb, permission_of, permits
from cairn.controller.store.base import Txn, View
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.kinds import ROOT
from cairn.proto.permissions import METHODS
from cairn.proto.pki import Identity, make_csr
from cairn.proto.v1 import (
    binding_pb2,
    cluster_pb2,
    image_pb2,
    node_pb2,
    port_pb2,
    project_pb2,
    role_pb2,
    subnet_pb2,
    user_pb2,
    vm_pb2,
    volume_pb2,
)
from cairn.proto.v1.agent_pb2 import Desired, DesiredImage, DesiredVm, DesiredVolume, Unknown
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, CreateApiTokenRequest
from cairn.proto.v1.auth_pb2 import CheckPermissionRequest
from cairn.proto.v1.backup_pb2 import RestoreClusterRequest, RestoreOptions
from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, Subject
from cairn.proto.v1.common_pb2 import CHANGE_TYPE_BOOKMARK
from cairn.proto.v1.identity_provider_pb2 import CreateIdentityProviderRequest, IdentityProvider, IdentityProviderSpec
from cairn.proto.v1.image_pb2 import IMAGE_FORMAT_QCOW2
from cairn.proto.v1.port_pb2 import Port, PortSpec
from cairn.proto.v1.price_list_pb2 import CreatePriceListRequest, Price, PriceList, PriceListSpec, PriceTier
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.role_pb2 import Role, RoleSpec
from cairn.proto.v1.subnet_pb2 import Subnet, SubnetSpec
from cairn.proto.v1.user_pb2 import User
from cairn.proto.v1.volume_pb2 import Volume, VolumeSpec
from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, DeleteVpcRequest, GetVpcRequest, UpdateVpcRequest, Vpc, VpcSpec
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.conformance.api_world import MIB, World, image, vm, world_on

CALL_S = 10.0
# A kind of identity no rule of permits speaks of. Its certificate opens the port all the same.
STRANGER = Identity("etcd", "nobody")


class Method(NamedTuple):
    """One method of the API."""

    path: str
    name: str
    descriptor: Any


def methods() -> list[Method]:
    """All that services.py serves to those with a certificate."""
    services = [descriptor_pool.Default().FindServiceByName(name) for name, _, _ in SERVICES]
    return [Method(f"/{each.full_name}/{method.name}", method.name, method) for each in services for method in each.methods]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def made(world: World) -> dict[str, str]:
    """Make one object of each noun; return their ids by the noun's kind."""
    await world.api.ports.CreatePort(port_pb2.CreatePortRequest(port=Port(name="p", spec=PortSpec(subnet="blue"))))
    spec = VolumeSpec(size_bytes=MIB)
    await world.api.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(volume=Volume(name="data", spec=spec)))
    await world.vm("web")
    await world.user("ann", "cluster-admin")
    await world.user("bob", "viewer")
    await world.api.roles.CreateRole(CREATED_ROLE)
    await world.api.tokens.CreateApiToken(CREATED_TOKEN)
    await world.api.idps.CreateIdentityProvider(CreateIdentityProviderRequest(identity_provider=provider("first")))
    await world.api.prices.CreatePriceList(prices("first"))
    await unknowns(world)
    gone = cluster_pb2.ControllerMember(name="c9")
    await world.commit(Txn("members").put(kinds.CONTROLLER_MEMBER, gone.name, gone))
    view = world.cache.view
    objects = {noun.kind.name: min(view.ids(noun.kind)) for noun in nouns.ALL if view.count(noun.kind)}
    # Those that may be changed and deleted, whatever is deleted before.
    own = next(role for role in view.all(kinds.ROLE) if role.name == "own")
    ann = next(user for user in view.all(kinds.USER) if user.name == "ann")
    other = next(each for each in view.all(kinds.BINDING) if each.spec.subject.user != ann.id)
    return objects | {"role": own.id, "user": ann.id, "binding": other.id}


async def unknowns(world: World) -> None:
    """Have a node hold a VM and a volume that nobody knows, and a join token of a known id."""
    view = world.cache.view
    token = Txn("api").put(kinds.JOIN_TOKEN, "jt-00000000", node_pb2.JoinToken(id="jt-00000000"))
    await world.cache.wait_for(await world.store.commit(token))
    node = min(each.id for each in view.all(kinds.NODE) if each.name == "n1")
    held = {
        "vm/i-unknown0": Desired(vm=DesiredVm(id="i-unknown0", name="stray", cpus=1, memory_bytes=64 * MIB)),
        "image/img-unkn000": Desired(image=DesiredImage(id="img-unkn000", digest="sha256:00")),
        "image/img-unkn001": Desired(
            image=DesiredImage(id="img-unkn001", digest=f"sha256:{'11' * 32}", size_bytes=MIB, format=IMAGE_FORMAT_QCOW2)
        ),
        "volume/vol-unkn000": Desired(volume=DesiredVolume(id="vol-unkn000", size_bytes=MIB)),
    }
    for key, desired in held.items():
        txn = Txn("sync").put(kinds.UNKNOWN, f"{node}/{key}", Unknown(key=key, node=node, desired=desired))
        await world.cache.wait_for(await world.store.commit(txn))


def request_for(method: Method, objects: dict[str, str]) -> Any:
    """Return a request that a user would be answered; objects of another noun than its own it names by `id` too."""
    request: Any = GetMessageClass(method.descriptor.input_type)()
    for kind, id in objects.items():
        held = request.DESCRIPTOR.fields_by_name.get(kind)
        if held is not None and held.message_type is not None and method.name.startswith("Update"):
            getattr(request, kind).id = id
            getattr(request, kind).labels["a"] = "b"
            request.allow_stale = True
    if "id" in request.DESCRIPTOR.fields_by_name:
        service = method.descriptor.containing_service.name.removesuffix("Service")
        request.id = objects.get(re.sub("(?<!^)(?=[A-Z])", "_", service).lower(), "")
    given = CREATED.get(method.name)
    if given is not None:
        request.MergeFrom(given)
    return request


CREATED_ROLE = role_pb2.CreateRoleRequest(role=Role(name="own", spec=RoleSpec(permissions=["vm.*"])))


def provider(name: str) -> IdentityProvider:
    return IdentityProvider(name=name, spec=IdentityProviderSpec(issuer="https://id.example", client_id="cairn"))


CREATED_TOKEN = CreateApiTokenRequest(api_token=ApiToken(name="first", spec=ApiTokenSpec(user="bob")))


def prices(name: str) -> CreatePriceListRequest:
    """A list of one price, from a day to come."""
    spec = PriceListSpec(currency="CNY", prices=[Price(of="cpu", tiers=[PriceTier(per_second="0.1")])])
    spec.valid_from.FromSeconds(50_000 * 86_400)
    return CreatePriceListRequest(price_list=PriceList(name=name, spec=spec))


CREATED: dict[str, Any] = {
    "CreatePriceList": prices("second"),
    "CreateUser": user_pb2.CreateUserRequest(user=User(name="second")),
    "CreateRole": role_pb2.CreateRoleRequest(role=Role(name="second", spec=RoleSpec(permissions=["vm.see"]))),
    "CreateBinding": binding_pb2.CreateBindingRequest(
        binding=Binding(spec=BindingSpec(role="viewer", subject=Subject(user="ann")))
    ),
    "CreateApiToken": CreateApiTokenRequest(api_token=ApiToken(name="second", spec=ApiTokenSpec(user="bob"))),
    "CreateIdentityProvider": CreateIdentityProviderRequest(identity_provider=provider("second")),
    "CheckPermission": CheckPermissionRequest(permission="vm.see"),
    "CreateProject": project_pb2.CreateProjectRequest(project=Project(name="second")),
    "CreateImage": image_pb2.CreateImageRequest(image=image("second")),
    "UploadImage": image_pb2.UploadImageRequest(image="demo"),
    "CreateVpc": CreateVpcRequest(vpc=Vpc(name="second", spec=VpcSpec(cidr="10.2.0.0/16"))),
    "CreateSubnet": subnet_pb2.CreateSubnetRequest(
        subnet=Subnet(name="second", spec=SubnetSpec(vpc="home", cidr="10.1.2.0/24"))
    ),
    "CreatePort": port_pb2.CreatePortRequest(port=Port(name="second", spec=PortSpec(subnet="blue"))),
    "CreateVolume": volume_pb2.CreateVolumeRequest(volume=Volume(name="second", spec=VolumeSpec(size_bytes=MIB))),
    "CreateVm": vm_pb2.CreateVmRequest(vm=vm("second")),
    "CreateJoinToken": node_pb2.CreateJoinTokenRequest(),
    "DeleteJoinToken": node_pb2.DeleteJoinTokenRequest(id="jt-00000000"),
    "AdoptVm": cluster_pb2.AdoptVmRequest(node="n1", id="i-unknown0"),
    "RetireController": cluster_pb2.RetireControllerRequest(name="c9"),
    "ForgetUnknown": cluster_pb2.ForgetUnknownRequest(node="n1", key="image/img-unkn000"),
    "AdoptVolume": cluster_pb2.AdoptVolumeRequest(node="n1", id="vol-unkn000"),
    "AdoptImage": cluster_pb2.AdoptImageRequest(node="n1", id="img-unkn001"),
    "RestoreCluster": RestoreClusterRequest(options=RestoreOptions(validate_only=True)),
    "RenewCertificate": cluster_pb2.RenewCertificateRequest(csr_pem=make_csr("x").cert_pem),
}


async def told(channel: grpc.aio.Channel, method: Method, request: Any) -> list[Any]:
    """Call; return what it answers: of a watch, up to its first bookmark."""
    incoming, outgoing = method.descriptor.client_streaming, method.descriptor.server_streaming
    shape = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary"}
    make = getattr(channel, shape.get((incoming, outgoing), "stream_stream"))
    answer = GetMessageClass(method.descriptor.output_type).FromString
    call = make(method.path, request_serializer=type(request).SerializeToString, response_deserializer=answer)
    async with asyncio.timeout(CALL_S):
        begun = call(iter([request])) if incoming else call(request)
        if not outgoing:
            return [await begun]
        answers = []
        async for each in begun:
            if getattr(each, "type", None) == CHANGE_TYPE_BOOKMARK:
                break
            answers.append(each)
        begun.cancel()
        return answers


def shown(answer: Any) -> list[str]:
    """Return what fields of an answer tell of something; its revision is nobody's secret."""
    return [field.name for field, _ in answer.ListFields() if field.name != "revision"]


async def test_whom_permits_permits_nothing_is_told_nothing_and_changes_nothing(world: World) -> None:
    objects = await made(world)
    # Without the gate, which would not let such a one in.
    server = world.transport(Identity("controller", "c1")).server()
    add_services(server, world.core)
    address = await world.transport(Identity("controller", "c1")).listen(server, f"unix:{world.folder}/bare.sock")
    await server.start()
    channel = world.stubs(STRANGER, address).channel
    before, revision = await world.store.read(ROOT)
    told_of: list[str] = []
    for method in methods():
        try:
            answers = await told(channel, method, request_for(method, objects))
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
                told_of.append(f"{method.name}: {error.code().name} {error.details()}")
            continue
        told_of += [f"{method.name}: {shown(answer)}" for answer in answers if shown(answer)]
    after, later = await world.store.read(ROOT)
    await server.stop(0)
    assert not told_of, "\n".join(told_of)
    assert (after, later) == (before, revision)


async def test_each_method_asks_for_the_permission_its_proto_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "RECEIVER_WAIT_S", 0.0)
    objects = await made(world)
    asked: set[str] = set()

    def noting(view: View, caller: Caller, verb: Verb, record: Message) -> bool:
        asked.add(permission_of(verb, record))
        return permits(view, caller, verb, record)

    for module in [each for name, each in sorted(sys.modules.items()) if name.startswith("cairn.controller.")]:
        if getattr(module, "permits", None) is permits:
            monkeypatch.setattr(module, "permits", noting)
    wrong: list[str] = []
    for method in sorted(methods(), key=lambda each: each.name.startswith(("Delete", "Undelete"))):
        asked.clear()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await told(world.api.channel, method, request_for(method, objects))
        if METHODS[method.path] not in asked | OWN:
            wrong.append(f"{method.name} names {METHODS[method.path]} and asks for {', '.join(sorted(asked)) or 'nothing'}")
    assert not wrong, "\n".join(wrong)


async def test_the_same_requests_of_a_user_find_what_they_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above asks of each method exists: it was refused since it was not permitted."""
    monkeypatch.setattr(images, "RECEIVER_WAIT_S", 0.0)
    objects = await made(world)
    channel = world.api.channel
    unfound: list[str] = []
    for method in sorted(methods(), key=lambda each: each.name.startswith(("Delete", "Undelete"))):
        try:
            await told(channel, method, request_for(method, objects))
        except grpc.aio.AioRpcError as error:
            if method.name == "RestoreCluster" and "not a backup" in (error.details() or ""):
                continue  # no file follows the one message
            if error.code() not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE):
                unfound.append(f"{method.name}: {error.code().name} {error.details()}")
    assert not unfound, "\n".join(unfound)


async def test_a_node_sees_nothing_but_itself(world: World) -> None:
    objects = await made(world)
    server = world.transport(Identity("controller", "c1")).server()
    add_services(server, world.core)
    address = await world.transport(Identity("controller", "c1")).listen(server, f"unix:{world.folder}/bare.sock")
    await server.start()
    mine = world.stubs(Identity("node", objects["node"]), address)
    listed = await mine.nodes.ListNodes(node_pb2.ListNodesRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mine.vms.GetVm(vm_pb2.GetVmRequest(id=objects["vm"]))
    await server.stop(0)
    assert [each.id for each in listed.nodes] == [objects["node"]]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_request_id_is_its_callers_own(world: World) -> None:
    id = world.ids.uuid()
    bob = await world.user("bob", "cluster-admin")
    mine = CreateVpcRequest(vpc=Vpc(name="mine", spec=VpcSpec(cidr="10.2.0.0/16")), request_id=id)
    his = CreateVpcRequest(vpc=Vpc(name="his", spec=VpcSpec(cidr="10.2.0.0/16")), request_id=id)
    first = await world.api.vpcs.CreateVpc(mine)
    second = await bob.vpcs.CreateVpc(his)
    assert first.id != second.id
    assert (await world.api.vpcs.CreateVpc(mine)).id == first.id
    assert (await bob.vpcs.CreateVpc(his)).id == second.id


async def test_a_plan_is_its_callers_own(world: World) -> None:
    asked = CreateVpcRequest(vpc=Vpc(name="mine", spec=VpcSpec(cidr="10.2.0.0/16")), validate_only=True)
    plan = (await world.api.vpcs.CreateVpc(asked)).plan.plan_id
    asked.validate_only, asked.plan_id = False, plan
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await world.user("bob", "cluster-admin")).vpcs.CreateVpc(asked)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert (await world.api.vpcs.CreateVpc(asked)).name == "mine"


async def test_a_join_token_is_asked_for_again_by_who_asked_for_it(world: World) -> None:
    await world.controller("c1", "10.0.0.1:7443")
    asked = node_pb2.CreateJoinTokenRequest(node_name="n7", request_id=world.ids.uuid())
    await world.api.nodes.CreateJoinToken(asked)
    await (await world.user("bob", "cluster-admin")).nodes.CreateJoinToken(asked)
    assert await world.count(kinds.JOIN_TOKEN) == 2
    asked.node_name = "n8"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.api.nodes.CreateJoinToken(asked)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_id_of_another_project_works_without_naming_it(world: World) -> None:
    """Today's users see all projects; names are looked up in the project of the request, ids in all a caller may see."""
    project = Project(id="prj-other000", name="other")
    claim = cluster_pb2.NameClaim(kind="project", project="-", name="other", id=project.id)
    await world.commit(Txn("api").create(kinds.PROJECT, project.id, project).create(kinds.NAME, "-/project/other", claim))
    there = Vpc(name="there", project="other", spec=VpcSpec(cidr="10.3.0.0/16"))
    id = (await world.api.vpcs.CreateVpc(CreateVpcRequest(vpc=there))).id
    assert (await world.api.vpcs.GetVpc(GetVpcRequest(id=id))).name == "there"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.api.vpcs.GetVpc(GetVpcRequest(id="there"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    changed = UpdateVpcRequest(vpc=Vpc(id=id, labels={"a": "b"}), allow_stale=True)
    assert (await world.api.vpcs.UpdateVpc(changed)).labels == {"a": "b"}
    await world.api.vpcs.DeleteVpc(DeleteVpcRequest(id=id))
