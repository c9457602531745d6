"""Whom a binding is about, as one word: "user/<id>", "group/<name>", "everyone"."""

from __future__ import annotations

from typing import Final

from cairn.proto.v1.binding_pb2 import Subject

EVERYONE: Final = "everyone"
# Name of the first administrator, who has no record.
ROOT: Final = "admin"


def subject_key(subject: Subject) -> str:
    """Return the word; empty of a subject that names nobody."""
    match subject.WhichOneof("who"):
        case "user":
            return f"user/{subject.user}"
        case "group":
            return f"group/{subject.group}"
        case "everyone":
            return EVERYONE
    return ""
