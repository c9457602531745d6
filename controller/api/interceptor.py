"""The gate every call passes: is this caller allowed, and is the store there.

It sits inside proto/rpc.py's ErrorInterceptor, which turns what is raised here into a gRPC status with google.rpc details,
and outsizes messages are refused by gRPC itself (RESOURCE_EXHAUSTED). A store that does not answer is a passing fault:
UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio
from cairn.controller.api.authorise import PACKAGE, authorise
from cairn.controller.model.permits import Caller
from cairn.controller.outage import refusal
from cairn.controller.store.base import StoreError
from cairn.proto.errors import Denied, Refused
from cairn.proto.permissions import METHODS

Handler = Any
# How often it is asked of an open stream whether its caller may still have it.
ASK_AGAIN_S: Final = 0.5
_SHAPES: Final[dict[tuple[bool, bool], tuple[str, Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


async def may_all(_caller: Caller, _permission: str) -> bool:
    """Everybody may ask anything."""
    return True


def always_ready(_method: str) -> Refused | None:
    """Nothing stands in the way."""
    return None


class Gate(grpc.aio.ServerInterceptor[Any, Any] if TYPE_CHECKING else grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Authorises every call of ours; health and reflection are for anybody with a certificate.

    unready: says why the controller cannot answer a method now, None when it can. may_ask: whether a caller has a method's
    permission for anything at all; which objects it has it for is asked where they are looked up.
    """

    def __init__(
        self,
        unready: Callable[[str], Refused | None] = always_ready,
        may_ask: Callable[[Caller, str], Awaitable[bool]] = may_all,
    ) -> None:
        self._unready, self._may_ask = unready, may_ask

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of one method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        attribute, make = _SHAPES[bool(handler.request_streaming), bool(handler.response_streaming)]
        behaviour = getattr(handler, attribute)
        gated = self._stream(method, behaviour) if handler.response_streaming else self._single(method, behaviour)
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        return make(gated, **codecs)

    def _single(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Any) -> Any:
            await self._admit(method, context)
            try:
                return await behaviour(request, context)
            except StoreError as error:
                raise refusal(error) from error

        return call

    def _stream(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            caller = await self._admit(method, context)
            try:
                result = behaviour(request, context)
                if not hasattr(result, "__aiter__"):
                    await result  # a handler in the style that writes to the context itself
                    return
                async with aclosing(self._while_allowed(caller, method, cast("Any", result))) as responses:
                    async for response in responses:
                        yield response
            except StoreError as error:
                raise refusal(error) from error

        return call

    async def _while_allowed(self, caller: Caller | None, method: str, responses: Any) -> AsyncGenerator[Any, None]:
        """Pass responses on until a user may not ask any longer, also while there are none. Raises Denied."""
        if caller is None or caller.kind != "user":
            async with aclosing(responses):
                async for response in responses:
                    yield response
            return
        following: asyncio.Future[Any] | None = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(responses, None))
                done, _ = await asyncio.wait([following], timeout=ASK_AGAIN_S)
                await self._refuse(caller, method)
                if done:
                    response, following = following.result(), None
                    if response is None:
                        return
                    yield response
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait([following])
            await responses.aclose()

    async def _refuse(self, caller: Caller, method: str) -> None:
        """Raises Denied."""
        if not await self._may_ask(caller, METHODS[method]):
            say = f"{caller.kind} {caller.id!r} may not do that to anything: no role bound to it has {METHODS[method]}"
            raise Denied(say)

    async def _admit(self, method: str, context: Any) -> Caller | None:
        """Return who calls a method of ours. Raises Denied, Unauthenticated, TryAgain, BadState."""
        identity = authorise(method, context)
        if not method.startswith(PACKAGE):
            return None
        if (why := self._unready(method)) is not None:
            raise why
        if identity is None:
            return None
        caller = Caller(identity.kind, identity.id)
        await self._refuse(caller, method)
        return caller
