"""Names change, ids stay: one transaction moves the claim, for every noun that has a name of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.api import nouns, resolution
from cairn.controller.api.nouns import Noun
from cairn.proto import kinds
from cairn.proto.v1 import image_pb2, node_pb2, port_pb2, subnet_pb2, vm_pb2, volume_pb2, vpc_pb2
from cairn.proto.v1.event_pb2 import ListEventsRequest
from cairn.proto.v1.port_pb2 import Port, PortSpec
from cairn.proto.v1.volume_pb2 import Volume, VolumeSpec
from google.protobuf.field_mask_pb2 import FieldMask

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import MIB, World, vm, world_on
from tests.conformance.test_api_refusals import refused

PROTOS = {
    "image": image_pb2, "vpc": vpc_pb2, "subnet": subnet_pb2, "port": port_pb2, "volume": volume_pb2, "vm": vm_pb2,
    "node": node_pb2,
}  # fmt: skip
RENAMED = [nouns.BY_KIND[kind] for kind in PROTOS]


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(store, tmp_path) as world:
        await world.furnish()
        await world.api.ports.CreatePort(port_pb2.CreatePortRequest(port=Port(name="vip", spec=PortSpec(subnet="blue"))))
        data = Volume(name="data", spec=VolumeSpec(size_bytes=MIB))
        await world.api.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(volume=data))
        await world.vm("web")
        yield world


NAMES = {"image": "demo", "vpc": "home", "subnet": "blue", "port": "vip", "volume": "data", "vm": "web", "node": "n1"}


def call(world: World, noun: Noun[Any], verb: str, **fields: Any) -> Any:
    """Call a noun's method."""
    title = noun.kind.message.DESCRIPTOR.name
    request = getattr(PROTOS[noun.kind.name], f"{verb}{title}Request")(**fields)
    return getattr(getattr(world.api, noun.plural), f"{verb}{title}")(request)


def rename(world: World, noun: Noun[Any], id: str, name: str, *, etag: str = "", **fields: Any) -> Any:
    given = noun.kind.message(id=id, name=name, etag=etag)
    fields.setdefault("allow_stale", not etag)
    return call(world, noun, "Update", **{noun.kind.name: given, "update_mask": FieldMask(paths=["name"])}, **fields)


@pytest.mark.parametrize("noun", RENAMED, ids=lambda noun: noun.kind.name)
async def test_a_name_moves_and_the_object_stays(world: World, noun: Noun[Any]) -> None:
    old = NAMES[noun.kind.name]
    before = await call(world, noun, "Get", id=old)
    after = await rename(world, noun, old, "other", etag=before.etag)
    assert (after.id, after.name, after.spec) == (before.id, "other", before.spec)
    assert (await call(world, noun, "Get", id="other")).id == before.id
    await refused(call(world, noun, "Get", id=old), grpc.StatusCode.NOT_FOUND, f"{old!r} does not exist")
    project = world.cache.view.get(noun.kind, before.id).project  # type: ignore[union-attr]
    held = world.cache.view.get(kinds.NAME, resolution.claim_id(noun, project, "other"))
    assert held is not None
    assert held.id == before.id
    assert world.cache.view.get(kinds.NAME, resolution.claim_id(noun, project, old)) is None
    listed = await world.api.events.ListEvents(ListEventsRequest(filter=f'object = "{before.id}"', project="-"))
    said = [event.message for event in listed.events]
    assert f"{noun.title} {old} is called other now" in said
    assert (await rename(world, noun, before.id, old)).name == old, "and back, by id"


@pytest.mark.parametrize("noun", RENAMED, ids=lambda noun: noun.kind.name)
async def test_what_cannot_be_a_name_is_refused(world: World, noun: Noun[Any]) -> None:
    old = NAMES[noun.kind.name]
    await refused(rename(world, noun, old, ""), grpc.StatusCode.INVALID_ARGUMENT, field=f"{noun.kind.name}.name")
    await refused(rename(world, noun, old, "UPPER_case"), grpc.StatusCode.INVALID_ARGUMENT, field=f"{noun.kind.name}.name")
    stale = rename(world, noun, old, "other", etag="1")
    await refused(stale, grpc.StatusCode.ABORTED, "has changed since you read it")
    assert (await call(world, noun, "Get", id=old)).name == old


async def test_a_name_that_is_taken_is_not_given_and_one_of_many_gets_it(world: World) -> None:
    vms = [await world.vm(f"vm-{number}") for number in range(6)]
    await refused(rename(world, nouns.VM, "vm-0", "web"), grpc.StatusCode.ALREADY_EXISTS, "VM 'web' exists already")
    answers = await asyncio.gather(*(rename(world, nouns.VM, each.id, "the-one") for each in vms), return_exceptions=True)
    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(won) == 1
    lost = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert lost == [grpc.StatusCode.ALREADY_EXISTS] * 5
    made = await world.vm(next(f"vm-{number}" for number, each in enumerate(vms) if each.id == won[0].id))
    assert made.id != won[0].id, "the old name is free for others"


async def test_a_rename_is_planned_and_repeated_like_every_change(world: World) -> None:
    planned = await rename(world, nouns.VM, "web", "shop", validate_only=True)
    assert planned.name == "shop"
    assert (await call(world, nouns.VM, "Get", id="web")).name == "web"
    request_id = world.ids.uuid()
    first = await rename(world, nouns.VM, "web", "shop", plan_id=planned.plan.plan_id, request_id=request_id)
    again = await rename(world, nouns.VM, "web", "shop", plan_id=planned.plan.plan_id, request_id=request_id)
    assert (first.id, again.id) == (planned.id, planned.id)


async def test_others_show_the_new_name(world: World) -> None:
    await rename(world, nouns.VM, "web", "shop")
    root = await call(world, nouns.VOLUME, "Get", id="web-root")
    assert root.status.vm_name == "shop"
    await rename(world, nouns.VOLUME, "web-root", "shop-root")
    shown = await call(world, nouns.VM, "Get", id="shop")
    assert [volume.name for volume in shown.status.volumes] == ["shop-root"]


async def test_a_disk_that_is_deleted_with_its_vm_has_no_name_to_change(world: World) -> None:
    root = (await call(world, nouns.VM, "Get", id="web")).spec.root_volume
    await call(world, nouns.VM, "Delete", id="web")
    why = "volume 'web-root' is deleted with its VM"
    await refused(rename(world, nouns.VOLUME, root, "kept"), grpc.StatusCode.FAILED_PRECONDITION, why)
    await world.api.vms.CreateVm(vm_pb2.CreateVmRequest(vm=vm("web")))
