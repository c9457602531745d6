"""Who may do what: each built-in role, bound in one project or in the cluster, against each method on what is his project's,
another project's, and nobody's. What is let through equals the table that docs/permissions.md is made of."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api import images
from cairn.controller.model.permits import OWN
from cairn.controller.model.roles import BUILTIN, expanded
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.permissions import METHODS
from cairn.proto.v1 import (
    cluster_pb2,
    image_pb2,
    port_pb2,
    project_pb2,
    subnet_pb2,
    vm_pb2,
    volume_pb2,
)
from cairn.proto.v1.port_pb2 import Port, PortSpec
from cairn.proto.v1.project_pb2 import Project, Sharing
from cairn.proto.v1.subnet_pb2 import Subnet, SubnetSpec
from cairn.proto.v1.volume_pb2 import Volume, VolumeSpec
from google.protobuf import text_format

from tests.conformance.api_world import MIB, World, image, vm, world_on
from tests.conformance.test_api_access import new_vpc
from tests.conformance.test_api_permits import Method, made, methods, request_for, told, unknowns

Code = grpc.StatusCode
OF_PROJECTS = ("vm", "volume", "image", "vpc", "subnet", "port", "job", "quota", "event", "audit", "usage")
OWN_PROJECT, OTHER_PROJECT, NO_PROJECT = "red", "green", ""
# Whoever may do that anywhere may do it to all: what roles there are, and what users are called, whoever binds them must find.
OF_ALL = {"role.see"}
REFUSED = (Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)
# What is in what lists no objects of a noun.
SHOWN_BY = {"ListUnknown": "i-unknown0", "ListJoinTokens": "jt-00000000"}
# Never an answer.
FAULTS = (Code.INTERNAL, Code.UNKNOWN)
# Of what a node has and nobody else knows: gone when it was done once.
ONCE = ("ListUnknown", "Adopt", "ForgetUnknown", "RetireController", "ListJoinTokens", "DeleteJoinToken")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def project(world: World, name: str) -> dict[str, str]:
    """Make a project with one of each noun in it, called as in the default project but for the image; return ids by kind."""
    red = await world.api.projects.CreateProject(project_pb2.CreateProjectRequest(project=Project(name=name)))
    picture = image("picture")
    picture.project = name
    held = await world.api.images.CreateImage(image_pb2.CreateImageRequest(image=picture))
    vpc = await world.api.vpcs.CreateVpc(new_vpc("home", name))
    subnet = Subnet(name="blue", project=name, spec=SubnetSpec(vpc="home", cidr=vpc.spec.cidr.replace("/16", "/24")))
    blue = await world.api.subnets.CreateSubnet(subnet_pb2.CreateSubnetRequest(subnet=subnet))
    card = Port(name="p", project=name, spec=PortSpec(subnet="blue"))
    port = await world.api.ports.CreatePort(port_pb2.CreatePortRequest(port=card))
    disk = Volume(name="data", project=name, spec=VolumeSpec(size_bytes=MIB))
    volume = await world.api.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(volume=disk))
    asked = vm("web")
    asked.project = name
    web = await world.api.vms.CreateVm(vm_pb2.CreateVmRequest(vm=asked))
    view = world.cache.view
    job = next(each.id for each in view.all(kinds.JOB) if each.spec.target == held.id)
    quota = next(each.id for each in view.all(kinds.QUOTA) if each.project == red.id)
    found = {"image": held, "vpc": vpc, "subnet": blue, "port": port, "volume": volume, "vm": web}
    return {kind: each.id for kind, each in found.items()} | {
        "project": red.id,
        "job": job,
        "quota": quota,
        "event": web.id,
        "audit": web.id,
    }


def noun_of(method: Method) -> str:
    """What a method is about, as its service says."""
    service = str(method.descriptor.containing_service.name.removesuffix("Service"))
    return re.sub("(?<!^)(?=[A-Z])", "_", service).lower()


def asked(method: Method, objects: dict[str, str], where: str) -> Any:
    """A request about what is in a project; a plan where the method has plans."""
    request = request_for(method, objects)
    fields = request.DESCRIPTOR.fields_by_name
    if "validate_only" in fields:
        request.validate_only = True
    if "project" in fields and fields["project"].message_type is None and where:
        request.project = where
    if method.name == "UploadImage":
        request.image = objects["image"]
    inner = getattr(request, noun_of(method), None)
    if method.name.startswith("Create") and where and inner is not None and hasattr(inner, "project"):
        inner.project = where
    return request


async def let_through(channel: Any, method: Method, request: Any, target: str) -> bool:
    """Tell whether it is carried out, or refused for another reason than that he may not; lists must show what it is about."""
    try:
        answers = await told(channel, method, request)
    except grpc.aio.AioRpcError as error:
        if error.code() in FAULTS:
            raise
        return error.code() not in REFUSED
    if method.name.startswith(("List", "Watch")):
        return any(target in text_format.MessageToString(answer) for answer in answers)
    return True


def expected(role: str, within: str, method: Method, where: str, objects: dict[str, str]) -> bool:
    """What docs/permissions.md says. within: the project the role is bound in, empty: the cluster."""
    permission = METHODS[method.path]
    if permission in OWN and noun_of(method) != "api_token":
        # The token that is asked about is somebody else's.
        return True
    allowed = permission in expanded(BUILTIN[role][1]) if role else False
    if permission == "project.see":
        return bool(role) and (not within or where == within)
    if not within or (allowed and permission in OF_ALL):
        return allowed
    return allowed and where == within and (is_of_projects(method) or permission.split(".")[0] == "project")


def is_of_projects(method: Method) -> bool:
    """Tell whether it is about something in a project. A chain of the audit is of all of them."""
    return noun_of(method) in OF_PROJECTS and method.name != "VerifyAudits"


def places(method: Method) -> tuple[str, ...]:
    """Where there is something that a method can be about."""
    own = is_of_projects(method) or (noun_of(method) == "project" and method.name != "CreateProject")
    return (OWN_PROJECT, OTHER_PROJECT) if own else (NO_PROJECT,)


async def test_what_is_let_through_equals_the_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "RECEIVER_WAIT_S", 0.0)
    objects = {NO_PROJECT: await made(world)}
    everybody = image_pb2.ShareImageRequest(id="demo", sharing=Sharing(all=True))
    await world.api.images.ShareImage(everybody)
    for name in (OWN_PROJECT, OTHER_PROJECT):
        objects[name] = objects[NO_PROJECT] | await project(world, name)
    callers = {("", NO_PROJECT): await world.user("nobody")}
    for role in BUILTIN:
        callers[role, OWN_PROJECT] = await world.user(f"{role}-in-red", role, OWN_PROJECT)
        callers[role, ""] = await world.user(f"{role}-everywhere", role)
    wrong: list[str] = []
    seen: set[str] = set()
    for method in methods():
        for where in places(method):
            for (role, within), caller in callers.items():
                if method.name.startswith(ONCE):
                    await again(world)
                request = asked(method, objects[where], where)
                target = SHOWN_BY.get(method.name) or objects[where].get(noun_of(method), "")
                got = await let_through(caller.channel, method, request, target)
                seen.add(method.path)
                if got != expected(role, within, method, where, objects[where]):
                    by = f"{role or 'nobody'} {'in ' + within if within else 'everywhere'}"
                    wrong.append(f"{method.name} in {where or 'the cluster'} by {by}: {'let through' if got else 'refused'}")
    assert not wrong, "\n".join(wrong)
    assert seen == {method.path for method in methods()}, "every method is in it"


async def again(world: World) -> None:
    """Have what can be done once be there to be done."""
    await unknowns(world)
    gone = cluster_pb2.ControllerMember(name="c9")
    await world.commit(Txn("members").put(kinds.CONTROLLER_MEMBER, gone.name, gone))
