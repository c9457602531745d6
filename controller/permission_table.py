"""docs/permissions.md: every method, its permission, and the built-in roles that have it. `make docs` writes it anew."""

from __future__ import annotations

import sys

from cairn.controller.model.permits import OWN
from cairn.controller.model.roles import BUILTIN, PERMISSIONS, expanded
from cairn.proto.permissions import METHODS

_BETWEEN_PROGRAMS = ("node.sync", "host.", "join_token.join")


def table() -> str:
    """Return the page."""
    roles = {name: expanded(patterns) for name, (_, patterns) in BUILTIN.items()}
    methods: dict[str, list[str]] = {permission: [] for permission in sorted(PERMISSIONS)}
    for path, permission in METHODS.items():
        methods[permission].append(path.rpartition("/")[2])
    lines = [
        "# Permissions",
        "",
        "Made from the .proto files and the built-in roles by `make docs`. A permission is asked for each object a call is",
        "about; what one may not see is not found. How they are given: [access.md](operations/access.md).",
        "",
        "## Built-in roles",
        "",
        "| role | what it is for |",
        "|---|---|",
        *(f"| {name} | {description} |" for name, (description, _) in BUILTIN.items()),
        "",
        "## All permissions",
        "",
        f"| permission | methods | {' | '.join(roles)} |",
        f"|---|---|{'---|' * len(roles)}",
    ]
    for permission, called in methods.items():
        if permission.startswith(_BETWEEN_PROGRAMS):
            continue
        own = "own" if permission in OWN else ""
        having = ["x" if permission in allowed else own for allowed in roles.values()]
        lines.append(f"| {permission} | {', '.join(sorted(called))} | {' | '.join(having)} |")
    lines += [
        "",
        "own: every user has that of himself, of his certificate and of his API tokens. `use` is asked of what a new object",
        "refers to, `adopt` of what is taken up after a restore; no method is called that. Nodes and controllers speak to each",
        "other by permissions that no role has: node.sync, host.*, join_token.join.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table())
