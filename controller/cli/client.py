"""The way to the controllers: stubs by noun, requests completed with what the settings say, calls repeated safely.

A mutation carries a request_id, so a call whose outcome is unknown (the controller died, the answer was lost) is simply sent
again, to whichever controller answers: the same id gets the first answer, never a second object.
"""

from __future__ import annotations

import asyncio
import importlib
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from cairn.controller.cli.failures import Failure, answered, refused
from cairn.controller.cli.output import Output
from cairn.controller.cli.settings import Context, Settings, load_context

if TYPE_CHECKING:
    import grpc.aio

# One attempt; then the call is sent again.
CALL_S: Final = 20.0
# How long to go on when no controller can be reached, and when one says "try again" (an election of the store, say).
NO_ANSWER_S: Final = 6.0
TRY_AGAIN_S: Final = 30.0
RETRY_EVERY_S: Final = 0.25
# A person who sees nothing for longer thinks that it hangs.
SAY_AFTER_S: Final = 2.0


class Session:
    """One command's conversation with the cloud. Connects at the first call."""

    def __init__(self, settings: Settings, context: Context | None = None) -> None:
        """context: where the cloud is, when the settings are not to be asked."""
        from cairn.proto.seams import SystemClock, SystemIds

        self.settings = settings
        self.clock, self.ids = settings.clock or SystemClock(), SystemIds()
        self.output = Output(settings, self.now)
        # What to say when the person interrupts now.
        self.interrupted = "interrupted"
        # The request that all calls from now on are a part of, for the audit; empty: of none.
        self.cause = ""
        self._context = context
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}

    def now(self) -> datetime:
        """Return the time, for ages."""
        return self.clock.now()

    @property
    def context(self) -> Context:
        """Return where the cloud is; Failure when nothing says so."""
        if self._context is None:
            self._context = load_context(self.settings.context, token_file=self.settings.token_file)
        return self._context

    def ask_as_nobody(self, context: Context) -> None:
        """Talk to the cloud of a context from now on, by neither a certificate nor a token."""
        self._context = replace(context, cert=None, key=None, token=None)

    @property
    def project(self) -> str:
        """Return the project to work in; empty: the default one."""
        return self.settings.project or self.context.project

    async def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            await self._channel.close(None)

    def stub(self, noun: str) -> Any:
        """Return the stub of a noun's service."""
        if noun not in self._stubs:
            module = importlib.import_module(f"cairn.proto.v1.{noun}_pb2_grpc")
            self._stubs[noun] = getattr(module, f"{camel(noun)}ServiceStub")(self._connect())
        return self._stubs[noun]

    def _connect(self) -> grpc.aio.Channel:
        if self._channel is None:
            import structlog
            from cairn.proto import log
            from cairn.proto.pki import CONTROLLER_SERVER_NAME, PkiError
            from cairn.proto.rpc import FileCredentials, GrpcTransport

            if not structlog.is_configured():
                # Unconfigured, it would write to stdout, among the data.
                log.configure("error")
            context = self.context
            try:
                transport = GrpcTransport(FileCredentials(context.ca, context.cert, context.key, token=context.token))
                self._channel = transport.channel(context.endpoints, server_name=CONTROLLER_SERVER_NAME)
            except (OSError, PkiError, ValueError) as error:
                raise Failure(f"context {context.name or 'from the environment'!r}: {error}", usage=True) from error
        return self._channel

    async def call(self, noun: str, request: Any) -> Any:
        """Make the call a request is named after ("CreateVmRequest": CreateVm), until it is answered.

        Raises Failure: refused, not found, or no controller reached.
        """
        self._complete(request)
        method = type(request).__name__.removesuffix("Request")
        stub = self.stub(noun)
        patience = Patience(self)
        while True:
            try:
                more: Any = {"metadata": (("cairn-cause", self.cause),)} if self.cause else {}
                return await getattr(stub, method)(request, timeout=patience.attempt_s(), **more)
            except _rpc_error() as error:
                await patience.wait_after(error)

    def _complete(self, request: Any) -> None:
        """Fill in project, request id and plan, where the request has them and the caller left them empty."""
        fields = request.DESCRIPTOR.fields_by_name
        if "project" in fields and not request.project:
            request.project = self.project
        if "request_id" not in fields:
            return
        if not request.request_id:
            request.request_id = self.ids.uuid()
        if "validate_only" in fields:
            request.validate_only, request.plan_id = self.settings.plan, request.plan_id or self.settings.plan_id
        elif self.settings.plan or self.settings.plan_id:
            raise Failure("this cannot be planned: the API has no plan for it; leave --plan out", usage=True)


class Patience:
    """How long a call that failed is repeated."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self._said = False

    def attempt_s(self) -> float:
        """Return how long one attempt may take: never longer than the person wants to wait."""
        limit_s = self._session.settings.timeout_s
        return CALL_S if limit_s is None else min(CALL_S, max(0.1, limit_s - (self._loop.time() - self._start_s)))

    async def wait_after(self, error: grpc.aio.AioRpcError) -> None:
        """Wait until the call may be repeated; raise Failure when it must not be, or no longer."""
        from grpc import StatusCode

        if error.code() not in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
            raise refused(error, self._session.context.endpoints) from error
        limit_s = TRY_AGAIN_S if answered(error) or error.code() is StatusCode.DEADLINE_EXCEEDED else NO_ANSWER_S
        limit_s = min(limit_s, self._session.settings.timeout_s or limit_s)
        past_s = self._loop.time() - self._start_s
        if past_s >= limit_s:
            raise refused(error, self._session.context.endpoints) from error
        if past_s >= SAY_AFTER_S and not self._said:
            self._said = True
            why = refused(error, self._session.context.endpoints).say
            self._session.output.say(f"{why}; trying again for {limit_s - past_s:.0f} s")
        await asyncio.sleep(RETRY_EVERY_S * (0.5 + self._session.ids.jitter()))


def camel(noun: str) -> str:
    """Return a noun as messages and services spell it: "SecurityGroup" of "security_group"."""
    return "".join(part.capitalize() for part in noun.split("_"))


def _rpc_error() -> type[grpc.aio.AioRpcError]:
    """Return the class, imported only once something is called."""
    from grpc.aio import AioRpcError

    return AioRpcError
