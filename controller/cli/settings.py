"""What a command runs with: the global options, and the context that says where the cloud is.

Context file ($CAIRN_CONFIG, else ~/.config/cairn/config.toml):

    current = "lab"
    [contexts.lab]
    endpoints = ["unix:/run/cairn/controller.sock", "10.0.0.1:7443"]
    ca = "/path/ca.crt"
    cert = "/path/admin.crt"
    key = "/path/admin.key"

Who has an API token and no certificate says `token = "/path/of/a/file"` instead of cert and key, and names endpoints where
tokens are taken ("10.0.0.1:7444", each controller's `enrol_listen`).

CAIRN_ENDPOINT (several separated by commas), CAIRN_CA, CAIRN_CERT, CAIRN_KEY and CAIRN_TOKEN_FILE overrule it one by one, and
--token-file all of these. A token itself is never read from the environment or the command line, where others may see it.
"""

from __future__ import annotations

import asyncio
import json
import os
import tomllib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.controller.cli.failures import Failure

if TYPE_CHECKING:
    from cairn.proto.seams import Clock


@dataclass
class Settings:
    """The global options, wherever on the line they were given."""

    output: str = "table"
    project: str = ""
    plan: bool = False
    plan_id: str = ""
    wait: bool = True
    timeout_s: float | None = None
    quiet: bool = False
    context: str = ""
    token_file: str = ""
    # How the command's coroutine is run, and what time it is (None: the machine's); others put theirs here.
    run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run
    clock: Clock | None = None


@dataclass(frozen=True)
class Context:
    """Where the controllers are, and who we are: by a certificate and its key, or by the token in a file."""

    name: str
    endpoints: tuple[str, ...]
    ca: Path
    cert: Path | None = None
    key: Path | None = None
    token: Path | None = None
    project: str = ""


def config_path(environment: Mapping[str, str]) -> Path:
    """Return where the context file is."""
    if given := environment.get("CAIRN_CONFIG"):
        return Path(given).expanduser()
    home = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "cairn" / "config.toml"


def load_context(name: str = "", environment: Mapping[str, str] = os.environ, token_file: str = "") -> Context:
    """Return the context to use; Failure when there is none, or it is incomplete. token_file: ask by the token in it."""
    path = config_path(environment)
    document = _read(path)
    contexts = document.get("contexts", {})
    chosen = name or str(document.get("current", ""))
    if name and name not in contexts:
        known = ", ".join(sorted(contexts)) or "none"
        raise Failure(f"there is no context {name!r} in {path} (known: {known})", usage=True)
    found = dict(contexts.get(chosen, {}))
    if endpoint := environment.get("CAIRN_ENDPOINT"):
        found["endpoints"] = [each.strip() for each in endpoint.split(",") if each.strip()]
    for option in ("ca", "cert", "key"):
        if value := environment.get(f"CAIRN_{option.upper()}"):
            found[option] = value
    by = [option for option in ("cert", "key") if environment.get(f"CAIRN_{option.upper()}")]
    if given := token_file or environment.get("CAIRN_TOKEN_FILE"):
        if by and not token_file:
            raise Failure("CAIRN_TOKEN_FILE and CAIRN_CERT are both set: one of them says who you are", usage=True)
        found["token"] = str(Path(given).expanduser().absolute())
    elif by:
        found.pop("token", None)
    if not found:
        raise Failure(
            f"no cloud to talk to: {path} names none",
            next="bring up the lab (make up), or set CAIRN_ENDPOINT, CAIRN_CA, CAIRN_CERT and CAIRN_KEY (or CAIRN_TOKEN_FILE)",
            usage=True,
        )
    needed = ("endpoints", "ca") if found.get("token") else ("endpoints", "ca", "cert", "key")
    if missing := [option for option in needed if not found.get(option)]:
        raise Failure(f"context {chosen or 'from the environment'!r} lacks {', '.join(missing)}; see {path}", usage=True)
    endpoints, project, ca = tuple(found["endpoints"]), str(found.get("project", "")), _path(path, found["ca"])
    if found.get("token"):
        return Context(chosen, endpoints, ca, token=_path(path, found["token"]), project=project)
    return Context(chosen, endpoints, ca, _path(path, found["cert"]), _path(path, found["key"]), project=project)


def login_context(
    name: str, environment: Mapping[str, str], endpoints: Sequence[str], ca: Path | None, token_file: str
) -> Context:
    """Return the context to log in to: the one in use, or one of endpoints and a CA that are given; Failure when neither is.

    Its token need not be there yet.
    """
    path = config_path(environment)
    document = _read(path)
    chosen = name or str(document.get("current", "")) or "default"
    found = dict(document.get("contexts", {}).get(chosen, {}))
    if endpoint := environment.get("CAIRN_ENDPOINT"):
        found["endpoints"] = [each.strip() for each in endpoint.split(",") if each.strip()]
    found["ca"] = str(ca.expanduser().absolute()) if ca else environment.get("CAIRN_CA") or found.get("ca", "")
    found["endpoints"] = list(endpoints) or found.get("endpoints", [])
    if not found["endpoints"] or not found["ca"]:
        raise Failure(
            f"no cloud to log in to: {path} names none",
            next="cairn login HOST:PORT --ca FILE: the port where tokens are taken, and the CA that an administrator gives you",
            usage=True,
        )
    if environment.get("CAIRN_CERT"):
        raise Failure("CAIRN_CERT says who you are: unset it to log in", usage=True)
    if found.get("cert") and not found.get("token"):
        say = f"context {chosen!r} asks by a certificate"
        raise Failure(say, next="log in under another name: --context NAME, with HOST:PORT and --ca", usage=True)
    given, own = token_file or environment.get("CAIRN_TOKEN_FILE"), path.parent / f"{chosen}.token"
    token = Path(given).expanduser().absolute() if given else _path(path, found.get("token", own))
    if not given and token != own and token.exists():
        say = f"context {chosen!r} asks by the token in {token}, which was put there by somebody"
        raise Failure(say, next="log in under another name: --context NAME, with HOST:PORT and --ca", usage=True)
    return Context(
        chosen, tuple(found["endpoints"]), _path(path, found["ca"]), token=token, project=str(found.get("project", ""))
    )


def add_context(context: Context, environment: Mapping[str, str] = os.environ) -> str:
    """Write a context into the file, if none of its name is there; return what to say of it. Raises Failure."""
    path = config_path(environment)
    document = _read(path)
    if context.name in document.get("contexts", {}):
        return ""
    said = {"endpoints": list(context.endpoints), "ca": str(context.ca), "token": str(context.token)}
    lines = [f"[contexts.{json.dumps(context.name)}]", *(f"{key} = {json.dumps(value)}" for key, value in said.items())]
    before = path.read_text() if path.exists() else ""
    current = "" if document.get("current") else f"current = {json.dumps(context.name)}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.new")
        scratch.write_text(current + before + ("\n" if before else "") + "\n".join(lines) + "\n")
        scratch.replace(path)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from error
    return f", context {context.name!r} in {path}"


def _path(config: Path, value: Any) -> Path:
    """Return a path; a relative one is relative to the context file."""
    return config.parent / Path(str(value)).expanduser()


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Failure(f"cannot read {path}: {error}", usage=True) from error
