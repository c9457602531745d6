"""Whom a binding is about, as one word ("user/<id>", "group/<name>", "everyone"), and as whom a user logs in."""

from __future__ import annotations

from typing import Final

from cairn.proto.v1.api_token_pb2 import Login
from cairn.proto.v1.binding_pb2 import Subject
from cairn.proto.v1.user_pb2 import UserLogin

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


def login_key(login: UserLogin | Login) -> str:
    """Return whom a provider means, as one word."""
    return f"{login.provider}/{login.subject}"
