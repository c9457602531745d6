"""Get and List. A page walk is pinned to one revision of the store: it neither skips nor repeats, whatever is written
meanwhile.

The first page is read from the View, the following ones from the store at the revision the token names; both are in the
order of ids. Which objects a walk shows, and their specs, are those of that revision; their status is today's. A token is
opaque, bound to the list it was made for, and carries a checksum: a damaged or foreign one is refused, not misread. It is
no secret and grants nothing, so it is not signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cairn.controller.api import filter, resolution
from cairn.controller.api.decision import Views
from cairn.controller.api.nouns import Noun
from cairn.controller.model.permits import Caller, Verb, permits
from cairn.controller.store.base import Compacted, Record, Store, Unavailable, View
from cairn.proto.errors import Invalid, NotFound, OutOfRange, TryAgain
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
ALL_PROJECTS: Final = "-"
# Naming these in a filter asks for deleted objects.
_DELETED_PATHS: Final = ("delete_time", "purge_time", "status.state")


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

    async def list(self, caller: Caller, noun: Noun[Any], request: Any, response: type[R]) -> R:
        """Answer List. Raises Invalid, OutOfRange."""
        if request.page_size < 0:
            raise Invalid("page_size", f"{request.page_size} is negative")
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        view = await self.view(request.read_revision)
        passes = self.selection(view, caller, noun, request)
        scope = f"{noun.kind.name}\0{request.project}\0{request.filter}\0{getattr(request, 'show_deleted', False)}"
        if request.page_token:
            token = read_token(request.page_token, scope)
            records = self._stored(noun, token)
        else:
            token = Token(view.revision, "")
            records = _viewed(view, noun)
        answer: Any = response()
        answer.revision = token.revision
        shown = getattr(answer, noun.plural)
        last = ""
        async for record in records:
            projected = noun.project(view, record)
            if not passes(view, projected):
                continue
            if len(shown) == size:
                answer.next_page_token = write_token(Token(token.revision, last), scope)
                break
            shown.append(projected)
            last = projected.id
        page: R = answer
        return page

    @staticmethod
    def selection(
        view: View, caller: Caller, noun: Noun[Any], request: Any, *, watching: bool = False
    ) -> Callable[[View, Any], bool]:
        """Return which projected objects a List or Watch request asks for. Watches always show deleted ones."""
        test = filter.predicate(request.filter, noun.kind.message.DESCRIPTOR)
        project = ""
        if not noun.cluster_wide and request.project != ALL_PROJECTS:
            project = resolution.project_id(view, caller, request.project)
        hide = noun.soft_delete and not watching and not request.show_deleted
        hide = hide and not any(filter.mentions(request.filter, path) for path in _DELETED_PATHS)

        def passes(view: View, projected: Any) -> bool:
            # Cluster-wide objects of project nouns (jobs and events about nodes) have no project and are everybody's.
            mine = not project or not projected.project or projected.project == project
            mine = mine and permits(view, caller, Verb.SEE, projected)
            return mine and not (hide and projected.HasField("delete_time")) and test(projected)

        return passes

    async def _stored(self, noun: Noun[Any], token: Token) -> AsyncIterator[Record[Any]]:
        """Yield the records of a kind after an id, as they were at a revision."""
        start = noun.kind.key(token.after) + "\0"
        while True:
            try:
                items, _ = await self._store.read(noun.kind.prefix, start=start, limit=PAGE_SIZE_MAX, revision=token.revision)
            except Compacted as error:
                raise OutOfRange(f"revision {token.revision} is no longer kept: list again from the first page") from error
            except Unavailable as error:
                raise TryAgain(f"the store does not answer: {error}") from error
            for item in items:
                yield Record(noun.kind.message.FromString(item.value), item.mod_revision, item.create_revision)
            if len(items) < PAGE_SIZE_MAX:
                return
            start = items[-1].key + "\0"


async def _viewed(view: View, noun: Noun[Any]) -> AsyncIterator[Record[Any]]:
    """Yield the records of a kind from a view, in the order of ids."""
    for id in sorted(view.ids(noun.kind)):
        record: Record[Any] | None = view.record(noun.kind, id)
        if record is not None:
            yield record
