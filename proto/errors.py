"""Our few errors, and how each travels as a gRPC status.

    Refused                      the call cannot be done; carries what the caller needs to do next
      Invalid                    INVALID_ARGUMENT     + BadRequest.FieldViolation   a field and its bound
      NotFound                   NOT_FOUND            + ResourceInfo
      AlreadyExists              ALREADY_EXISTS       + ResourceInfo
      BadState                   FAILED_PRECONDITION  + PreconditionFailure         an object and its state
      Exhausted                  RESOURCE_EXHAUSTED   + QuotaFailure                what would make it fit
      Moved                      ABORTED              + ErrorInfo                   stale etag: read again
        Overtaken                ABORTED              + ErrorInfo                   a plan that is over: plan again
      Denied                     PERMISSION_DENIED    + ErrorInfo
      Unauthenticated            UNAUTHENTICATED      + ErrorInfo
      TryAgain                   UNAVAILABLE          + RetryInfo                   retryable
      OutOfRange                 OUT_OF_RANGE         + ErrorInfo                   compacted revision: list again

All but TryAgain and Moved are permanent: repeating the same call gives the same answer. For that, what hangs on the state of
other objects, or on whose clock says so (`lasting`), is remembered under the request's id (docs/decisions/0029).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "cairn.cloud"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


class Refused(Exception):
    """Base: `say` is the sentence the caller sees."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    # The same call would be spared it once other objects have changed, or by a controller with another clock.
    lasting = False

    def __init__(self, say: str) -> None:
        super().__init__(say)
        self.say = say

    def worded(self, word: Callable[[str], str]) -> None:
        """Say it in other words."""
        self.say = word(self.say)

    def details(self) -> list[Message]:
        """Return google.rpc detail messages."""
        return [error_details_pb2.ErrorInfo(reason=type(self).__name__.upper(), domain=DOMAIN)]

    def status(self) -> status_pb2.Status:
        """Return the google.rpc.Status of this error."""
        number, _ = self.code.value
        result = status_pb2.Status(code=int(number), message=self.say)
        for detail in self.details():
            result.details.add().Pack(detail)
        return result


class Invalid(Refused):
    """A field of the request is out of bounds; `field` is its path, for example "spec.cpus"."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, say: str) -> None:
        super().__init__(f"{field}: {say}")
        self.field, self.reason = field, say

    def worded(self, word: Callable[[str], str]) -> None:
        """Say it in other words; the field is the caller's own."""
        self.reason = word(self.reason)
        self.say = f"{self.field}: {self.reason}"

    def details(self) -> list[Message]:
        """Return the field violation."""
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=self.field, description=self.reason)
        return [bad]


class _About(Refused):
    """An error about one named object."""

    def __init__(self, kind: str, name: str, say: str) -> None:
        super().__init__(say)
        self.kind, self.name = kind, name

    def details(self) -> list[Message]:
        """Return which resource."""
        return [error_details_pb2.ResourceInfo(resource_type=self.kind, resource_name=self.name, description=self.say)]


class NotFound(_About):
    """No such object."""

    code = grpc.StatusCode.NOT_FOUND
    lasting = True

    def __init__(self, kind: str, name: str, say: str = "") -> None:
        super().__init__(kind, name, say or f"{kind} {name!r} does not exist")


class AlreadyExists(_About):
    """The name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    lasting = True

    def __init__(self, kind: str, name: str, say: str = "") -> None:
        super().__init__(kind, name, say or f"{kind} {name!r} exists already")


class BadState(_About):
    """The object is in a state that forbids this."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    lasting = True

    def details(self) -> list[Message]:
        """Return the violated precondition."""
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type="STATE", subject=f"{self.kind}/{self.name}", description=self.say)
        return [failure]


class Exhausted(Refused):
    """Quota or capacity is used up; `subject` names it and the sentence says what would make it fit."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    lasting = True

    def __init__(self, subject: str, say: str) -> None:
        super().__init__(say)
        self.subject = subject

    def details(self) -> list[Message]:
        """Return the quota violated."""
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=self.subject, description=self.say)
        return [failure]


class Moved(Refused):
    """The object changed since it was read."""

    code = grpc.StatusCode.ABORTED


class Overtaken(Moved):
    """The plan is over, for who decides here: what it was decided on has changed, or its time has come."""

    lasting = True


class Denied(Refused):
    """This identity may not do that."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(Refused):
    """The caller is not who it would have to be."""

    code = grpc.StatusCode.UNAUTHENTICATED


class OutOfRange(Refused):
    """The revision asked for is no longer kept."""

    code = grpc.StatusCode.OUT_OF_RANGE


class TryAgain(Refused):
    """A passing fault; the same call may succeed later."""

    code = grpc.StatusCode.UNAVAILABLE

    def details(self) -> list[Message]:
        """Return when to retry."""
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(500)
        return [info]


class Repeated(Refused):
    """A refusal told before, of the same request."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.code, self._status = _CODES.get(status.code, grpc.StatusCode.UNKNOWN), status

    def worded(self, word: Callable[[str], str]) -> None:
        """Say it in other words, in the details too."""
        super().worded(word)
        told = status_pb2.Status(code=self._status.code, message=self.say)
        for packed in self._status.details:
            for kind, inner in _DESCRIBED.items():
                detail = kind()
                if packed.Unpack(detail):
                    for each in getattr(detail, inner) if inner else (detail,):
                        each.description = word(each.description)
                    packed = any_pb2.Any()
                    packed.Pack(detail)
                    break
            told.details.append(packed)
        self._status = told

    def status(self) -> status_pb2.Status:
        """Return what was told."""
        return self._status


# Details that have sentences, and the field of theirs that holds the parts which have them; empty: themselves.
_DESCRIBED: Final[dict[type[Any], str]] = {
    error_details_pb2.BadRequest: "field_violations",
    error_details_pb2.PreconditionFailure: "violations",
    error_details_pb2.QuotaFailure: "violations",
    error_details_pb2.ResourceInfo: "",
}
_CODES: Final = {int(code.value[0]): code for code in grpc.StatusCode}


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """Return the google.rpc.Status a failed call carried; made from code and text when it carried none."""
    for key, value in cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()):
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    number, _ = error.code().value
    return status_pb2.Status(code=int(number), message=error.details() or code_pb2.Code.Name(int(number)))
