"""Roles: permissions that are given together; those that come with each release, and what patterns mean.

A permission is "noun.verb". A role names patterns ("vm.*", "*.see"); what they stand for is what the .proto files name, so that
a method of a release to come is in "vm.*" by being there. Built-in roles have records, made by whichever controller starts
first, to be listed and bound like others; what they allow is said here and not in the record, so that it is of the release
that decides. Rejected: hierarchies of roles (what somebody may do is then nowhere to be read), deny rules (their order matters,
and a forgotten one opens what was closed).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from cairn.proto.permissions import METHODS
from cairn.proto.v1.role_pb2 import Role

# Nouns that live in a project. What else there is belongs to the cluster.
_PROJECT_NOUNS: Final = ("vm", "volume", "image", "vpc", "subnet", "port", "job")
# No method is called that: to make another object refer to one, and to take up what a node says of one.
_USED: Final = ("vm", "volume", "image", "vpc", "subnet", "port", "node", "project", "role", "user", "identity_provider")
_ADOPTED: Final = ("vm", "volume", "image", "vpc", "subnet")
PERMISSIONS: Final = frozenset({*METHODS.values(), *(f"{noun}.use" for noun in _USED), *(f"{noun}.adopt" for noun in _ADOPTED)})

BUILTIN: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "viewer": ("sees, and changes nothing", ("*.see",)),
        "member": (
            "makes, changes and deletes VMs and what they need",
            ("*.see", *(f"{noun}.*" for noun in _PROJECT_NOUNS)),
        ),
        "project-admin": (
            "does what a member does, and says who else may do what",
            (
                "*.see",
                *(f"{noun}.*" for noun in _PROJECT_NOUNS),
                "project.update",
                "binding.*",
                "role.use",
                "user.use",
                "audit.read",
                "usage.read",
            ),
        ),
        "operator": (
            "looks after nodes and what they hold; changes nothing of a project's",
            ("*.see", "node.*", "join_token.*", "unknown.*", "*.adopt", "job.cancel", "cluster.backup", "cluster.retire"),
        ),
        "auditor": ("sees all, and who did what; changes nothing", ("*.see", "audit.*", "usage.read")),
        "cluster-admin": ("may do everything", ("*.*",)),
    }
)
ADMINISTRATOR: Final = "cluster-admin"


def builtin_id(name: str) -> str:
    """Return the id of a built-in role's record: the same on every controller."""
    return f"role-{name.replace('-', '')[:8]:0<8}"


@lru_cache(maxsize=1024)
def expanded(patterns: tuple[str, ...]) -> frozenset[str]:
    """Return the permissions that patterns stand for."""
    return frozenset(each for each in PERMISSIONS if any(fnmatchcase(each, pattern) for pattern in patterns))


def unknown_patterns(patterns: Iterable[str]) -> list[str]:
    """Return those that stand for nothing."""
    return [each for each in patterns if not expanded((each,))]


def allowed_by(role: Role) -> frozenset[str]:
    """Return what a role permits. Of one that came with a release to come what its record says."""
    if role.spec.builtin and role.name in BUILTIN:
        return expanded(BUILTIN[role.name][1])
    return expanded(tuple(role.spec.permissions))
