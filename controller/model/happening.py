"""Something worth telling people, before it is an Event; and what a controller did by itself, before it is in the audit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventSpec:
    """Something worth telling people; the runtime gives it an id and a time, and writes it with the transaction it explains."""

    object: str
    name: str
    project: str
    # CamelCase, for example Placed.
    reason: str
    # One sentence.
    message: str
    # Node name, if one is involved.
    node: str = ""
    warning: bool = False


@dataclass(frozen=True, slots=True)
class ActSpec:
    """What a controller does by itself, for the audit: put on record in the transaction that does it, or not done (acts.py)."""

    # For example EraseVm.
    method: str
    # "<kind>/<id>"; of it the record tells what the transaction changes.
    object: str
    name: str = ""
    project: str = ""
    # Id of the request that led to it; empty: none did, or it is not known any more.
    cause: str = ""
    # What was found out besides: ("<kind>/<id>", field, value).
    found: tuple[tuple[str, str, str], ...] = ()
