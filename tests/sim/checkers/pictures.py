"""At rest, who watches believes what a list shows: no more, no less, and each object as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cairn.proto.v1.event_pb2 import Event

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud
from tests.sim.pictures import FILTERS


class Pictures(Checker):
    """Compares each picture with each controller's list of that kind."""

    def __init__(self) -> None:
        self._asked = Asked()

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Who watches is known from now on."""
        self._asked = asked
        yield from ()

    def listed(self, cloud: Cloud, who: str, kind: str, objects: Sequence[Any]) -> Iterator[str]:
        """The same objects, each the same."""
        for picture in self._asked.pictures:
            if picture.kind != kind:
                continue
            passes = FILTERS[kind, picture.filter]
            wanted = {each.id: each for each in objects if passes(each)}
            what = f"who watches {kind}s with {picture.filter!r}"
            missing, more = sorted(wanted.keys() - picture.shown.keys()), sorted(picture.shown.keys() - wanted.keys())
            if not picture.complete:
                yield f"{what} has not been told of the state it began with"
            if missing or more:
                yield f"{what} misses {missing} and believes in {more}, by {who}'s list"
            for id in sorted(wanted.keys() & picture.shown.keys()):
                if _known(wanted[id]) != _known(picture.shown[id]):
                    yield f"{what} believes {_said(picture.shown[id])!r} of {id}, {who} says {_said(wanted[id])!r}"


def _known(object: Any) -> Any:
    """Return an object as this release knows it: what a newer one adds as it writes a record, its writer has not seen."""
    known = type(object)()
    known.CopyFrom(object)
    known.DiscardUnknownFields()
    return known


def _said(object: Any) -> str:
    """Return the sentence of an object, or of an event."""
    return str(object.message if isinstance(object, Event) else object.status.say)
