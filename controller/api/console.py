"""Relays a VM's serial console between a client and the agent of its node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from cairn.controller.api import nouns, resolution
from cairn.controller.api.core import Core
from cairn.controller.api.mutation import Act
from cairn.controller.api.objects import addressed
from cairn.controller.api.streams import while_allowed
from cairn.controller.model.permits import Caller, Verb, permits
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

    async def downwards() -> AsyncIterator[ConsoleVmResponse]:
        async with core.transport.channel([session.endpoint], server_name=node_server_name(node)) as channel:
            async for response in HostServiceStub(channel).Console(upwards()):
                yield ConsoleVmResponse(data=response.data)

    async def refuse() -> None:
        """Refuse who may see no console of this VM any longer; believed only of a view as fresh as the store."""
        held = core.cache.view.get(kinds.VM, vm.id)
        if held is None or not permits(core.cache.view, caller, Verb.CONSOLE, held):
            resolution.find(await core.mutations.freshen(), caller, nouns.VM, "", vm.id, verb=Verb.CONSOLE)

    async with aclosing(while_allowed(downwards(), refuse)) as allowed:
        async for response in allowed:
            yield response
