"""How a command ends badly: exit code, what was attempted, why it failed, what to try next.

0 done · 1 refused or failed · 2 usage · 3 timed out, still going on · 4 not found · 5 no controller reached
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import grpc.aio


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    TIMED_OUT = 3
    NOT_FOUND = 4
    UNREACHABLE = 5


class Failure(Exception):
    """A command cannot go on. `say` is why; `attempted` is filled in by the command that was running."""

    def __init__(
        self,
        say: str,
        *,
        code: Exit = Exit.FAILED,
        next: str = "",
        lines: Sequence[str] = (),
        usage: bool = False,
        whole: bool = False,
    ) -> None:
        """whole: what was attempted was done, and `say` is its outcome."""
        super().__init__(say)
        self.say, self.next, self.lines = say, next, list(lines)
        self.code = Exit.USAGE if usage else code
        self.attempted = ""
        self.whole = whole or code is Exit.TIMED_OUT
        # Name of the gRPC status it came from, for example ABORTED; empty when it came from none.
        self.status = ""

    def text(self) -> str:
        """Return what the person sees."""
        head = f"cannot {self.attempted}: {self.say}" if self.attempted else self.say
        if self.whole:
            head = self.say
        return "\n".join([head, *(f"  - {line}" for line in self.lines), *([f"next: {self.next}"] if self.next else [])])


def unreachable(endpoints: Sequence[str], why: str) -> Failure:
    """Return the failure of a command that reached no controller."""
    return Failure(
        f"no controller answers at {', '.join(endpoints)}",
        code=Exit.UNREACHABLE,
        lines=[why] if why else [],
        next="see whether cairn-controller runs there, and whether the context names the right endpoints and certificates "
        "(tokens are taken at another port)",
    )


def refused(error: grpc.aio.AioRpcError, endpoints: Sequence[str]) -> Failure:
    """Return the failure a controller's answer means."""
    from cairn.proto.errors import status_of
    from grpc import StatusCode

    code = error.code()
    if code is StatusCode.UNAVAILABLE and not answered(error):
        return unreachable(endpoints, _short(error.details() or ""))
    status = status_of(error)
    exit = {StatusCode.NOT_FOUND: Exit.NOT_FOUND, StatusCode.DEADLINE_EXCEEDED: Exit.TIMED_OUT}.get(code, Exit.FAILED)
    lines: list[str] = []
    next = _NEXT.get(code.name, "")
    for detail in _details(status):
        name = detail.DESCRIPTOR.name
        if name == "BadRequest" and len(detail.field_violations) > 1:
            lines += [f"{each.field}: {each.description}" for each in detail.field_violations]
        next = _ADVICE.get((code.name, name), lambda _detail, otherwise=next: otherwise)(detail) or next
    failure = Failure(status.message or code.name, code=exit, lines=lines, next=next)
    failure.status = code.name
    return failure


def answered(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a controller said this itself, and not gRPC because it reached none."""
    from cairn.proto.errors import STATUS_DETAILS_KEY

    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    return any(key == STATUS_DETAILS_KEY for key, _ in metadata)


_NEXT = {
    "ABORTED": "something changed meanwhile: look at it again and repeat the command",
    "UNAUTHENTICATED": "the context's certificate or token is not accepted: see its cert and key, or the file its token is in",
    "PERMISSION_DENIED": "ask for a role that permits this (cairn auth can-i), or use another --context",
    "UNAVAILABLE": "try again in a moment; `cairn cluster status` tells how the cluster is",
    "DEADLINE_EXCEEDED": "it may still be going on: look before you repeat it",
    "UNIMPLEMENTED": "the controller is older than this command: update it",
}
# Nouns with `list` and `show`.
NOUNS = frozenset({"vm", "image", "volume", "vpc", "subnet", "port", "node", "job", "project"})
_ADVICE: dict[tuple[str, str], Callable[[Any], str]] = {
    ("NOT_FOUND", "ResourceInfo"): lambda info: f"cairn {info.resource_type} list" if info.resource_type in NOUNS else "",
    ("ALREADY_EXISTS", "ResourceInfo"): lambda info: _taken(info.resource_type, info.resource_name),
    ("FAILED_PRECONDITION", "PreconditionFailure"): lambda failure: _look_at(failure.violations[0].subject),
    ("RESOURCE_EXHAUSTED", "QuotaFailure"): lambda failure: _used_up(failure.violations[0].subject),
}


def _taken(kind: str, name: str) -> str:
    if kind == "image":
        return f"take another name, look at it (cairn image show {name}), or delete it first: cairn image delete {name}"
    return f"take another name, or look: cairn {kind} show {name}" if kind in NOUNS else "take another name"


def _look_at(subject: str) -> str:
    kind, _, name = subject.partition("/")
    if kind == "address":
        return f"see who has it: cairn port list --filter 'status.addresses:\"{name}\"'"
    return f"cairn {kind} show {name}" if name and kind in NOUNS else ""


def _used_up(subject: str) -> str:
    """Say where to look when something is used up: an address space is not in the list of nodes."""
    kind, _, rest = subject.partition("/")
    if kind == "subnet":
        name = rest.partition("/")[0]
        ports = f"see who has them: cairn port list --filter 'status.subnet_name = \"{name}\"'"
        return f"{ports}; deleted VMs keep theirs until they are erased: cairn vm list --deleted"
    if kind == "store":
        return '`cairn cluster status` shows the members; docs/operations/troubleshooting.md, "The store is full", makes room'
    if kind in ("cpus", "memory", "disk"):
        return "ask for less, or see what is free: cairn node list -o wide"
    return ""


def _details(status: Any) -> list[Any]:
    from google.rpc import error_details_pb2 as known

    found = []
    for packed in status.details:
        for kind in (known.BadRequest, known.ResourceInfo, known.PreconditionFailure, known.QuotaFailure):
            if packed.Is(kind.DESCRIPTOR):
                detail = kind()
                packed.Unpack(detail)
                found.append(detail)
    return found


def _short(details: str) -> str:
    """Return the last part of gRPC's long story."""
    last = details.rpartition("last error: ")[2]
    return re.sub(r"^(UNKNOWN|UNAVAILABLE|FAILED_PRECONDITION): ", "", last)[:300]
