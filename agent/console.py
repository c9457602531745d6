"""Relays a guest's serial console between the hypervisor and a stream of messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cairn.agent.hypervisor.base import ConsoleStream, Hypervisor, HypervisorError, NoSuchDomain
from cairn.proto.errors import BadState, Invalid, NotFound, TryAgain
from cairn.proto.log import logger
from cairn.proto.v1.agent_pb2 import ConsoleRequest, ConsoleResponse


async def relay(hypervisor: Hypervisor, requests: AsyncIterator[ConsoleRequest]) -> AsyncIterator[ConsoleResponse]:
    """Yield what the guest says until it or the caller ends; the first request names the VM. Raises Refused."""
    first = await anext(requests, None)
    if first is None or not first.vm:
        raise Invalid("vm", "the first message names the VM")
    console = await _open(hypervisor, first.vm)
    typing = asyncio.create_task(_type(console, first, requests), name=f"console {first.vm}")
    try:
        while data := await console.read():
            yield ConsoleResponse(data=data)
    except HypervisorError as error:
        raise TryAgain(f"the console of {first.vm} broke: {error}") from error
    finally:
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)
        await console.close()


async def _open(hypervisor: Hypervisor, vm: str) -> ConsoleStream:
    try:
        return await hypervisor.console(vm)
    except NoSuchDomain as error:
        raise NotFound("vm", vm, f"VM {vm} is not on this node") from error
    except HypervisorError as error:
        raise BadState("vm", vm, f"the console of {vm} cannot be opened: {error}") from error


async def _type(console: ConsoleStream, first: ConsoleRequest, requests: Any) -> None:
    """Pass key strokes on; when the caller ends, so does the console."""
    try:
        if first.data:
            await console.write(first.data)
        async for request in requests:
            await console.write(request.data)
    except HypervisorError as error:
        logger("console").info("write_failed", vm=first.vm, error=str(error))
    finally:
        await console.close()
