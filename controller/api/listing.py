"""Get and List. A page walk is pinned to one revision of the store: it neither skips nor repeats, whatever is written
meanwhile. A page ends after so many objects or so many bytes, whichever comes first.

The first page is read from the View as it is at one moment, also when answering takes long and others have their turn; the
following ones, and all of events, which no view has, from the store at the revision the token names (of the first: at least
what the store had when it was asked for); both are in the order of ids. Which objects a walk shows, and
their specs, are those of that revision; their status is today's. A token is opaque, bound to the list and the caller it was
made for, and carries a checksum: a damaged or foreign one is refused, not misread. It is no secret and grants nothing, so it
is not signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cairn.controller.api import resolution
from cairn.controller.api.decision import Views
from cairn.controller.api.nouns import Noun
from cairn.controller.api.selection import Selection, pictured
from cairn.controller.api.stored import selected
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Record, Store, View
from cairn.proto.errors import Invalid, NotFound
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
# An answer ends here, whatever page_size says: half of what a message may have (proto/rpc.py), since one object more fits too.
PAGE_BYTES_MAX: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Token:
    """Where a walk goes on: the revision it is pinned to and the last id shown."""

    revision: int
    after: str


def write_token(token: Token, scope: str) -> str:
    """Return the opaque form; scope: what was listed."""
    body = json.dumps([token.revision, token.after]).encode()
    return base64.urlsafe_b64encode(_checksum(body, scope) + body).decode().rstrip("=")


def read_token(text: str, scope: str) -> Token:
    """Return a token's content. Raises Invalid."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise Invalid("page_token", "is not one of ours; take it as it was given") from error
    if raw[:16] != _checksum(raw[16:], scope):
        raise Invalid("page_token", "is damaged, or was given for another list: project, filter and kind must stay the same")
    revision, after = json.loads(raw[16:])
    return Token(revision, after)


def _checksum(body: bytes, scope: str) -> bytes:
    return hashlib.blake2b(body, key=hashlib.sha256(scope.encode()).digest(), digest_size=16).digest()


def page_size_of(request: Any) -> int:
    """Return how many a page may have. Raises Invalid."""
    if request.page_size < 0:
        raise Invalid("page_size", f"{request.page_size} is negative")
    return min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


class Listings:
    """Answers Get and List for every noun."""

    def __init__(self, store: Store, cache: Views, freshen: Callable[[], Any]) -> None:
        self._store, self._cache, self._freshen = store, cache, freshen

    async def view(self, read_revision: int) -> View:
        """Return a view at least that fresh. Raises Invalid, TryAgain."""
        if read_revision < 0:
            raise Invalid("read_revision", f"{read_revision} is negative")
        if read_revision > self._cache.view.revision:
            newest = (await self._freshen()).revision
            if read_revision > newest:
                raise Invalid("read_revision", f"{read_revision} lies in the future: the newest is {newest}")
        return self._cache.view

    async def now(self) -> View:
        """Return a view whose revision the store still knows: one that has fallen behind names one that is forgotten."""
        fresh: View = await self._freshen()
        return fresh

    async def _beginning(self, noun: Noun[Any], request: Any) -> View:
        """Return the view that a page is of."""
        view = await self.view(request.read_revision)
        return view if noun.kind.cached or request.page_token else await self.now()

    async def get(self, caller: Caller, noun: Noun[M], request: Any) -> M:
        """Answer Get. Raises NotFound, Invalid."""
        view = await self.view(request.read_revision)
        try:
            record = self._find(view, caller, noun, request)
        except NotFound:
            view = await self._freshen()
            record = self._find(view, caller, noun, request)
        return noun.project(view, record)

    @staticmethod
    def _find(view: View, caller: Caller, noun: Noun[Any], request: Any) -> Record[Any]:
        project = "" if noun.cluster_wide else resolution.project_id(view, caller, request.project)
        return resolution.find(view, caller, noun, project, request.id, deleted=True)

    async def selection(
        self, view: View, caller: Caller, noun: Noun[Any], request: Any, *, watching: bool = False
    ) -> tuple[View, Selection]:
        """Return what a request asks for, and the view that is said of. Raises Invalid, NotFound.

        That its project does not exist is believed on a view as fresh as the store: it may have been made a moment ago.
        """
        try:
            return view, Selection.of(view, caller, noun, request, watching=watching)
        except NotFound:
            fresh = await self.now()
            return fresh, Selection.of(fresh, caller, noun, request, watching=watching)

    async def list(self, caller: Caller, noun: Noun[Any], request: Any, response: type[R]) -> R:
        """Answer List. Raises Invalid, OutOfRange."""
        size = page_size_of(request)
        view, selection = await self.selection(await self._beginning(noun, request), caller, noun, request)
        scope = "\0".join(
            (caller.uri, noun.kind.name, request.project, request.filter, str(getattr(request, "show_deleted", False)))
        )
        token = read_token(request.page_token, scope) if request.page_token else Token(view.revision, "")
        viewed = noun.kind.cached and not request.page_token
        records = pictured(view, selection) if viewed else selected(self._store, selection, token.revision, token.after)
        answer: Any = response(revision=token.revision)
        shown, size_bytes, last = getattr(answer, noun.plural), 0, ""
        async with aclosing(records):
            async for record in records:
                projected = selection.shown(self._cache.view, record)
                if projected is None:
                    continue
                size_bytes += projected.ByteSize()
                # An object alone may be larger: none is larger than a message may be.
                if len(shown) == size or (shown and size_bytes > PAGE_BYTES_MAX):
                    answer.next_page_token = write_token(Token(token.revision, last), scope)
                    break
                shown.append(projected)
                last = projected.id
        page: R = answer
        return page
