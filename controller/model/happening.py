"""Something worth telling people, before it is an Event."""

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
