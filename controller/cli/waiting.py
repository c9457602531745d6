"""Following objects: changes that survive the death of a controller, and waiting for a goal.

A watch that breaks is opened again, at whichever controller answers, from the last revision seen; when that one is too old the
current state is read again. What an object says of itself (`status.say`) is shown while waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cairn.controller.cli.failures import Exit, Failure, refused
from cairn.controller.cli.values import state_text

if TYPE_CHECKING:
    from cairn.controller.cli.client import Session
    from cairn.controller.cli.noun import Noun

TIMEOUT_S: Final = 300.0
REOPEN_EVERY_S: Final = 0.3


@dataclass(frozen=True)
class Goal:
    """What a command waits for. `words` completes "is not ... yet"."""

    words: str
    states: frozenset[str] = frozenset()
    # Its disappearance ends the waiting well.
    gone: bool = False
    timeout_s: float = TIMEOUT_S

    def reached(self, message: Any) -> bool:
        """Tell whether the object is there. A state counts once the world matches the spec."""
        return state_text(message.status) in self.states and not message.reconciling

    def failure(self, message: Any) -> str:
        """Return why it will not get there, or ""."""
        if state_text(message.status) != "FAILED" or message.reconciling or "FAILED" in self.states:
            return ""
        return str(message.status.say or "it failed")


@dataclass(frozen=True)
class Change:
    """One change of a followed object. begin: a new picture starts, what it lacks is gone. message None: a bookmark."""

    revision: int
    message: Any = None
    deleted: bool = False
    begin: bool = False


async def changes(
    session: Session,
    noun: Noun,
    *,
    filter: str = "",
    after_revision: int = 0,
    broken: Callable[[str], None] = lambda _say: None,
) -> AsyncIterator[Change]:
    """Yield the current objects that pass the filter, a bookmark, then every change; never ends by itself.

    Raises Failure when the controller refuses, for example a bad filter. broken: told when no controller answers.
    """
    from grpc import StatusCode
    from grpc.aio import AioRpcError

    revision = after_revision
    while True:
        request = noun.request(f"Watch{noun.messages}", project=session.project, filter=filter, after_revision=revision)
        try:
            if not revision:
                yield Change(0, begin=True)
            async for response in getattr(session.stub(noun.name), f"Watch{noun.messages}")(request):
                revision = max(revision, response.revision)
                if response.HasField(noun.name):
                    # CHANGE_TYPE_DELETE is 2; see proto/v1/common.proto.
                    yield Change(response.revision, getattr(response, noun.name), deleted=response.type == 2)
                else:
                    yield Change(response.revision)
            broken("the controller ended the watch")
        except AioRpcError as error:
            if error.code() is StatusCode.OUT_OF_RANGE:
                revision = 0
            elif error.code() not in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.UNKNOWN):
                raise refused(error, session.context.endpoints) from error
            broken("no controller answers; trying again")
        await asyncio.sleep(REOPEN_EVERY_S * (0.5 + session.ids.jitter()))


async def wait_for(session: Session, noun: Noun, message: Any, goal: Goal, show: Callable[[str], None]) -> Any:
    """Return the object once it reached the goal, None once it is gone (when that is the goal).

    message: the object as the mutation answered; older states are not believed. show: gets each sentence. Raises Failure:
    FAILED, TIMED_OUT, or gone when that is not the goal.
    """
    timeout_s = session.settings.timeout_s if session.settings.timeout_s is not None else goal.timeout_s
    said = [message.status.say if message.HasField("status") else ""]
    try:
        async with asyncio.timeout(timeout_s):
            return await _wait(session, noun, message, goal, show, said)
    except TimeoutError:
        title = f"{noun.title} {message.name or message.id}"
        raise Failure(
            f"{title} is not {goal.words} after {timeout_s:g} s; it is still going on: {said[-1] or 'nothing is known yet'}",
            code=Exit.TIMED_OUT,
            next=f"cairn {noun.name} show {message.name or message.id}",
        ) from None


async def _wait(session: Session, noun: Noun, message: Any, goal: Goal, show: Callable[[str], None], said: list[str]) -> Any:
    seen = False

    def tell(say: str) -> None:
        said.append(say)
        show(say)

    def gone() -> None:
        if not goal.gone:
            raise Failure(f"{noun.title} {message.name or message.id} is gone", code=Exit.NOT_FOUND)

    async for change in changes(session, noun, filter=f'id = "{message.id}"', broken=tell):
        if change.begin:
            seen = False
        elif change.deleted:
            gone()
            return None
        elif change.message is None:
            if not seen and change.revision >= message.revision:
                gone()
                return None
        elif change.message.revision >= message.revision:
            seen = True
            tell(change.message.status.say)
            if goal.reached(change.message):
                return change.message
            if failure := goal.failure(change.message):
                raise Failure(failure, next=f"cairn event list --filter 'object = \"{message.id}\"'")
        else:
            seen = True
    return None
