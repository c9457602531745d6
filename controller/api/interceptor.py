"""The gate every call passes: is this caller allowed, and is the store there.

It sits inside proto/rpc.py's ErrorInterceptor, which turns what is raised here into a gRPC status with google.rpc details,
and outsizes messages are refused by gRPC itself (RESOURCE_EXHAUSTED). A store that does not answer is a passing fault:
UNAVAILABLE.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio
from cairn.controller.api.authorise import PACKAGE, Admission, Admitted
from cairn.controller.api.bearer import sent, source_of
from cairn.controller.api.streams import while_allowed
from cairn.controller.model.permits import Caller
from cairn.controller.outage import refusal
from cairn.controller.store.base import StoreError
from cairn.proto.errors import Refused
from cairn.proto.permissions import METHODS

Handler = Any
_SHAPES: Final[dict[tuple[bool, bool], tuple[str, Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def always_ready(_method: str) -> Refused | None:
    """Nothing stands in the way."""
    return None


# (caller if he is known, address he asks from, method, request, why)
Told = Callable[[Caller | None, str, str, Any, Refused], None]


def nobody_told(_caller: Caller | None, _address: str, _method: str, _request: Any, _why: Refused) -> None:
    """Nobody hears of it."""


class Gate(grpc.aio.ServerInterceptor[Any, Any] if TYPE_CHECKING else grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Authorises every call of ours; health and reflection are for anybody with a certificate or a token.

    admission: says who calls, and whether he has a method's permission for anything at all; which objects he has it for is
    asked where they are looked up; and what of what he is answered is not for him. unready: says why the controller cannot
    answer a method now, None when it can. told: hears of each call that is refused.
    """

    def __init__(
        self, admission: Admission, unready: Callable[[str], Refused | None] = always_ready, told: Told = nobody_told
    ) -> None:
        self._admission, self._unready, self._told = admission, unready, told

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
            caller: Caller | None = None
            try:
                caller = await self._who(method, context)
                behind = await self._admit(caller, method, context)
                with self._worded(caller):
                    return self._shown(caller, await behaviour(request, behind))
            except Refused as why:
                self._tell(caller, method, request, context, why)
                raise

        return call

    def _stream(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            caller: Caller | None = None
            try:
                caller = await self._who(method, context)
                behind = await self._admit(caller, method, context)
                with self._worded(caller):
                    result = behaviour(request, behind)
                    if not hasattr(result, "__aiter__"):
                        await result  # a handler in the style that writes to the context itself
                        return
                    async with aclosing(self._while_allowed(caller, method, cast("Any", result))) as responses:
                        async for response in responses:
                            yield self._shown(caller, response)
            except Refused as why:
                self._tell(caller, method, request, context, why)
                raise

        return call

    def _shown(self, caller: Caller | None, message: Any) -> Any:
        covers = self._admission.veil(caller) if caller is not None else None
        return message if covers is None else covers.over(message)

    @contextmanager
    def _worded(self, caller: Caller | None) -> Iterator[None]:
        """Refuse in words for the caller; a store that does not answer is a refusal as well."""
        try:
            yield
        except StoreError as error:
            raise refusal(error) from error
        except Refused as error:
            covers = self._admission.veil(caller) if caller is not None else None
            if covers is not None:
                error.worded(covers.sentence)
            raise

    async def _while_allowed(self, caller: Caller | None, method: str, responses: Any) -> AsyncGenerator[Any, None]:
        """Pass responses on until a user may not ask any longer, also while there are none. Raises Denied, Unauthenticated."""
        if caller is None or caller.kind != "user":
            async with aclosing(responses):
                async for response in responses:
                    yield response
            return
        still = partial(self._admission.refuse_unless, caller, METHODS[method])
        async with aclosing(while_allowed(responses, still)) as allowed:
            async for response in allowed:
                yield response

    async def _who(self, method: str, context: Any) -> Caller | None:
        """Return who calls a method; None: anybody. Raises what the gate refuses by."""
        ours = method.startswith(PACKAGE)
        # What tokens there are is read off the view, which is not there at once.
        if (ours or sent(context.invocation_metadata()) is not None) and (why := self._unready(method)) is not None:
            raise why
        caller = await self._admission.who(method, context)
        return caller if ours else None

    async def _admit(self, caller: Caller | None, method: str, context: Any) -> Any:
        """Return the context that a method of ours is given. Raises what the gate refuses by."""
        if caller is None:
            return context
        await self._admission.refuse_unless(caller, METHODS[method])
        return Admitted(context, caller)

    def _tell(self, caller: Caller | None, method: str, request: Any, context: Any, why: Refused) -> None:
        if method.startswith(PACKAGE):
            self._told(caller, caller.address if caller is not None else source_of(context.peer()), method, request, why)
