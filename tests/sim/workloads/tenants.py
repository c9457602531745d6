"""Tenants: projects with users of their own, who see nothing of others but what is shared with them.

A tenant's user (named w...) has a client of its own, which asks any controller. A project is deleted while its user makes
something in it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, CreateBindingRequest, Subject
from cairn.proto.v1.binding_pb2_grpc import BindingServiceStub
from cairn.proto.v1.project_pb2 import CreateProjectRequest, DeleteProjectRequest, Project, Sharing
from cairn.proto.v1.project_pb2_grpc import ProjectServiceStub
from cairn.proto.v1.subnet_pb2 import ListSubnetsRequest
from cairn.proto.v1.subnet_pb2_grpc import SubnetServiceStub
from cairn.proto.v1.user_pb2 import CreateUserRequest, DeleteUserRequest
from cairn.proto.v1.user_pb2 import User as UserRecord
from cairn.proto.v1.user_pb2_grpc import UserServiceStub
from cairn.proto.v1.vm_pb2 import ListVmsRequest
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub
from cairn.proto.v1.vpc_pb2 import (
    CreateVpcRequest,
    DeleteVpcRequest,
    GetVpcRequest,
    ListVpcsRequest,
    ShareVpcRequest,
    Vpc,
    VpcSpec,
)
from cairn.proto.v1.vpc_pb2_grpc import VpcServiceStub

from tests.sim.client import SimClient
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

_LISTS = (
    (VmServiceStub, "ListVms", ListVmsRequest, "vms"),
    (VpcServiceStub, "ListVpcs", ListVpcsRequest, "vpcs"),
    (SubnetServiceStub, "ListSubnets", ListSubnetsRequest, "subnets"),
)
_UNSEEN = (Code.NOT_FOUND, Code.PERMISSION_DENIED)
# Made while a project is deleted, how far apart, and how often that is tried.
WHILE = 8
APART_S = 0.0005
TURNS = 3


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """A few tenants; what is shared with them, with single ones or all, is taken back some time later."""
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        yield Event(at_s, draw.choice(size.user_names), "tenant", (number, draw.random() < 0.4, draw.choice((0.1, 2.0, 10.0))))


async def tenant(user: User, number: int, all_: bool, for_s: float) -> None:
    """Make a project with a user; share a network with it, take that back; have all removed again."""
    name = f"p{number}-{user.name}"
    project = await user.client.call(ProjectServiceStub, "CreateProject", CreateProjectRequest(project=Project(name=name)))
    who = f"w{number}-{user.name}"
    made = await user.client.call(UserServiceStub, "CreateUser", CreateUserRequest(user=UserRecord(name=who)))
    binding = Binding(project=name, spec=BindingSpec(role="member", subject=Subject(user=made.id)))
    await user.client.call(BindingServiceStub, "CreateBinding", CreateBindingRequest(binding=binding))
    his = user.world.connect(who)
    own = await _make_vpc(his, f"own-{number}", name)
    ours = await user.client.create_vpc(f"shared-{number}-{user.name}", "10.8.0.0/16")
    subnet = await user.client.create_subnet_in(ours.name, f"{ours.name}-a", "10.8.1.0/24")
    await _sees(user, his, who, project.id, {own.id}, ours.id, revision=own.revision)
    sharing = Sharing(all=True) if all_ else Sharing(projects=[name])
    await user.client.call(VpcServiceStub, "ShareVpc", ShareVpcRequest(id=ours.id, sharing=sharing))
    found = await user.attempt(his.call(VpcServiceStub, "GetVpc", GetVpcRequest(id=ours.name, project=name)), Code.NOT_FOUND)
    if found is None or found.id != ours.id:
        user.asked.contradict(f"VPC {ours.name} is shared with {name}, and {who} does not find it")
    if await user.attempt(_make_vpc(his, ours.name, name), Code.ALREADY_EXISTS) is not None:
        user.asked.contradict(f"{name} has a VPC {ours.name}, and another one is shared with it")
    if await user.attempt(his.delete_vpc(ours.id), *_UNSEEN, Code.FAILED_PRECONDITION) is not None:
        user.asked.contradict(f"{who} has removed {ours.name}, which is only shared with him")
    await asyncio.sleep(for_s)
    back = await user.client.call(VpcServiceStub, "ShareVpc", ShareVpcRequest(id=ours.id))
    await _sees(user, his, who, project.id, {own.id}, ours.id, revision=back.revision)
    await user.client.delete_subnet(subnet.id)
    await user.client.delete_vpc(ours.id)
    await _end(user, his, name, own.id)
    await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=made.id))


async def _make_vpc(his: SimClient, name: str, project: str) -> Any:
    vpc = Vpc(name=name, project=project, spec=VpcSpec(cidr="10.9.0.0/16"))
    return await his.call(VpcServiceStub, "CreateVpc", CreateVpcRequest(vpc=vpc))


async def _sees(user: User, his: SimClient, who: str, project: str, own: set[str], others: str, *, revision: int = 0) -> None:
    """What he is shown is of his project, or shared with all; `others` is a VPC that he must not see. revision: not before."""
    # One whose record cannot be read is in no list.
    unreadable = _spoiled(user)
    for stub, method, request, plural in _LISTS:
        asked = request(project="-", read_revision=revision)
        for each in getattr(await his.call(stub, method, asked), plural):
            if each.project != project and not (plural == "vpcs" and each.spec.sharing.all) and plural != "subnets":
                user.asked.contradict(f"{who} is shown {each.name}, which is not of his project")
            if others in (each.id, getattr(each.spec, "vpc", "")):
                user.asked.contradict(f"{who} is shown {each.name} of a VPC that is not shared with him")
            own.discard(each.id)
    if left := own - unreadable - _spoiled(user):
        user.asked.contradict(f"{who} is not shown {sorted(left)}")


def _spoiled(user: User) -> set[str]:
    return {key.rpartition("/")[2] for key in user.world.spoiled}


async def _end(user: User, his: SimClient, name: str, vpc: str) -> None:
    """Delete a project: refused while anything is in it, and what is made in it meanwhile is in it or is not."""
    if await _delete(user, name):
        user.asked.contradict(f"project {name} was deleted with VPC {vpc} in it")
        return
    await his.call(VpcServiceStub, "DeleteVpc", DeleteVpcRequest(id=vpc))
    for turn in range(TURNS):
        gone, *made = await asyncio.gather(_delete(user, name), *(_late(user, his, name, turn, each) for each in range(WHILE)))
        left = [each for each in made if each is not None]
        if gone and left:
            user.asked.contradict(f"project {name} was deleted with {[each.name for each in left]} in it")
        if gone:
            return
        for each in left:
            await his.call(VpcServiceStub, "DeleteVpc", DeleteVpcRequest(id=each.id))
    if not await _delete(user, name):
        user.asked.contradict(f"nothing is in project {name}, and it is not deleted")


async def _delete(user: User, name: str) -> bool:
    call = user.client.call(ProjectServiceStub, "DeleteProject", DeleteProjectRequest(id=name))
    return await user.attempt(call, Code.FAILED_PRECONDITION) is not None


async def _late(user: User, his: SimClient, name: str, turn: int, number: int) -> Any:
    """Make something at about the moment at which the project is removed: he, or one whose right to it stands on no binding."""
    await asyncio.sleep((3 + turn + number) * APART_S)
    return await user.attempt(
        _make_vpc(his if number % 2 else user.client, f"late-{turn}-{number}", name), *_UNSEEN, Code.FAILED_PRECONDITION
    )


ACTS = {"tenant": tenant}
