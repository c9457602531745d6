"""A member of one project is told nothing of machines by any method, and finds nothing by them; an operator is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cairn.controller.api import images
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.v1 import vm_pb2
from cairn.proto.v1.agent_pb2 import Observed
from cairn.proto.v1.vm_pb2 import Placement
from google.protobuf import text_format

from tests.conformance.api_world import World, world_on
from tests.conformance.test_api_access import refused
from tests.conformance.test_api_permits import made, methods, request_for, told

Code = grpc.StatusCode
# Not in bytes, as they are printed: of the digests of audit records one may begin with a line feed and a digit.
N1 = re.compile(r"(?<![\w\\-])(n[1-3]|node-[0-9a-z]{8})(?![\w-])")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def placed(world: World) -> dict[str, str]:
    """Make one of everything, and have the VM and its disk be on n1."""
    objects = await made(world)
    view = world.cache.view
    node = min(each.id for each in view.all(kinds.NODE) if each.name == "n1")
    placement = Placement(vm=objects["vm"], node=node)
    placement.decision.node, placement.decision.node_name = node, "n1"
    placement.decision.say = "n1 has the most left: 12 GiB"
    placement.decision.top.add(node=node, node_name="n1", total=0.7)
    image = Observed(node=node, key=f"image/{objects['image']}")
    image.report.image.state = 2
    await world.commit(Txn("placement").put(kinds.PLACEMENT, objects["vm"], placement))
    await world.commit(Txn("sync").put(kinds.OBSERVED, f"{node}/image/{objects['image']}", image))
    return objects


async def test_no_method_tells_a_member_of_nodes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "RECEIVER_WAIT_S", 0.0)
    objects = await placed(world)
    bob = await world.user("dora", "project-admin", "default")
    told_of: list[str] = []
    asked = 0
    for method in sorted(methods(), key=lambda each: each.name.startswith(("Delete", "Undelete"))):
        request = request_for(method, objects)
        with contextlib.suppress(grpc.aio.AioRpcError):
            for answer in await told(bob.channel, method, request):
                asked += 1
                text = text_format.MessageToString(answer)
                told_of += [f"{method.name}: {found[0]}" for found in N1.finditer(text)]
    assert asked > 20, "he may do most of it"
    assert not told_of, "\n".join(told_of)


async def test_an_operator_is_told(world: World) -> None:
    objects = await placed(world)
    olga = await world.user("olga", "operator")
    shown = await olga.vms.GetVm(vm_pb2.GetVmRequest(id=objects["vm"]))
    assert shown.status.node == "n1"
    bob = await world.user("dora", "member", "default")
    shown = await bob.vms.GetVm(vm_pb2.GetVmRequest(id=objects["vm"]))
    assert (shown.status.node, "a node" in shown.status.say) == ("", True)
    why = await bob.vms.ExplainVm(vm_pb2.ExplainVmRequest(id=objects["vm"]))
    assert (why.decision.say, len(why.decision.top)) == ("placed on a node", 0)


async def test_nobody_finds_by_what_he_is_not_shown(world: World) -> None:
    await placed(world)
    bob = await world.user("dora", "member", "default")
    for filter in ('status.node = "n1"', 'status.say = "*n1*"'):
        code, say = await refused(bob.vms.ListVms(vm_pb2.ListVmsRequest(filter=filter)))
        assert (code, "takes node.see" in say) == (Code.INVALID_ARGUMENT, True)
    olga = await world.user("olga", "operator")
    assert (await olga.vms.ListVms(vm_pb2.ListVmsRequest(filter='status.node = "n1"'))).vms


async def test_a_refusal_names_no_node_to_him(world: World) -> None:
    bob = await world.user("dora", "member", "default")
    asked = vm_pb2.CreateVmRequest()
    asked.vm.CopyFrom(vm_pb2.Vm(name="huge", spec=vm_pb2.VmSpec(image="demo", cpus=1, memory_bytes=1 << 40)))
    _, for_him = await refused(bob.vms.CreateVm(asked))
    _, for_all = await refused(world.api.vms.CreateVm(asked))
    assert (N1.search(for_all) is not None, N1.search(for_him)) == (True, None), (for_all, for_him)
