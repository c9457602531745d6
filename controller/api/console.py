"""Relays a VM's serial console between a client and the agent of its node."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cairn.controller.api import nouns
from cairn.controller.api.core import Core
from cairn.controller.api.mutation import Act
from cairn.controller.api.objects import addressed
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.model.where import where
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid
from cairn.proto.pki import node_server_name
from cairn.proto.v1.agent_pb2 import ConsoleRequest
from cairn.proto.v1.agent_pb2_grpc import HostServiceStub
from cairn.proto.v1.vm_pb2 import ConsoleVmRequest, ConsoleVmResponse


async def relay_console(
    core: Core, caller: Caller, requests: AsyncIterator[ConsoleVmRequest]
) -> AsyncIterator[ConsoleVmResponse]:
    """Yield what the console prints; requests carry the key strokes. Raises Invalid, NotFound, Denied, BadState."""
    first = await anext(aiter(requests), None)
    if first is None:
        raise Invalid("id", "the first message must say which VM")
    view = await core.mutations.freshen()
    vm = addressed(view, caller, nouns.VM, first, verb=Verb.CONSOLE).message
    node = where(view, vm.id).owner
    if not node:
        raise BadState("vm", vm.name, f"VM {vm.name!r} has no console: it is on no node yet")
    session = view.get(kinds.NODE_SESSION, node)
    if session is None:
        shown = nouns.VM.of(view, vm.id)
        raise BadState("vm", vm.name, f"the console of VM {vm.name!r} cannot be reached: {shown.status.say if shown else ''}")

    await core.mutations.note(caller, Act("ConsoleVm", f"{kinds.VM.name}/{vm.id}", vm.name, vm.project))

    async def upwards() -> AsyncIterator[ConsoleRequest]:
        yield ConsoleRequest(vm=vm.id, data=first.data)
        async for request in requests:
            yield ConsoleRequest(data=request.data)

    async with core.transport.channel([session.endpoint], server_name=node_server_name(node)) as channel:
        async for response in HostServiceStub(channel).Console(upwards()):
            yield ConsoleVmResponse(data=response.data)
