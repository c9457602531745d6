"""Moving an image's bytes: fetching from a URL, the checksum, the upload. Each shows how far it is."""

from __future__ import annotations

import asyncio
import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cairn.controller.cli.client import Patience, Session
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.values import size_text

CHUNK_BYTES: Final = 1 << 20
CONNECT_S: Final = 30.0
Show = Callable[[str], None]


class _OnlySafe(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Refuse anything but https."""
        if urlsplit(newurl).scheme != "https":
            raise Failure(f"{req.full_url} leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, path: Path, show: Show) -> None:
    """Download a file; https: and file: only, certificates checked. Failure says what went wrong."""
    scheme = urlsplit(url).scheme
    if scheme not in ("https", "file"):
        raise Failure(f"--url {url}: only https:// and file:// are taken", usage=True)
    opener = urllib.request.build_opener(_OnlySafe())
    try:
        with opener.open(url, timeout=CONNECT_S) as source, path.open("wb") as target:
            whole = int(source.headers.get("Content-Length") or 0)
            done = 0
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                done += len(chunk)
                show(progress_text("fetching", done, whole))
    except urllib.error.HTTPError as error:
        raise Failure(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:
        raise Failure(f"cannot fetch {url}: {getattr(error, 'reason', None) or error}") from error
    if whole and done != whole:
        raise Failure(f"{url} broke off after {size_text(done)} of {size_text(whole)}", next="try again")


def progress_text(doing: str, done: int, whole: int) -> str:
    """Return how far something is: "uploading: 3 of 12 MiB (25 %)"."""
    if not whole:
        return f"{doing}: {size_text(done)}"
    return f"{doing}: {size_text(done)} of {size_text(whole)} ({done * 100 // whole} %)"


def checked_digest(path: Path, checksum: str | None, show: Show) -> str:
    """Return "sha256:..." of a file; Failure when it is not the one asked for."""
    wanted = (checksum or "").lower().removeprefix("sha256:")
    if checksum is not None and not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise Failure(f"--checksum {checksum}: not sha256: and 64 hex digits", usage=True)
    whole, done = path.stat().st_size, 0
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            show(progress_text("computing the checksum", done, whole))
    if wanted and digest.hexdigest() != wanted:
        raise Failure(
            f"the checksum is wrong: the file has sha256:{digest.hexdigest()}, wanted was sha256:{wanted}",
            next="fetch the file again: it was changed or cut on its way",
        )
    return f"sha256:{digest.hexdigest()}"


async def upload(session: Session, image: Any, path: Path, show: Show) -> Any:
    """Send the bytes of an image; from the start again when the connection breaks. Return the answer."""
    from cairn.proto.v1.image_pb2 import UploadImageRequest
    from grpc.aio import AioRpcError

    whole = image.spec.size_bytes
    sent = 0
    unread: list[OSError] = []

    async def parts() -> AsyncIterator[UploadImageRequest]:
        nonlocal sent
        sent = 0
        yield UploadImageRequest(image=image.id)
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield UploadImageRequest(chunk=chunk)
                    sent += len(chunk)
                    show(progress_text("uploading", sent, whole))
        except OSError as error:
            unread.append(error)
            raise

    patience = Patience(session)
    furthest = 0
    while True:
        try:
            return await session.stub("image").UploadImage(parts())
        except asyncio.CancelledError as error:
            # gRPC gives a call up on this side when what is to be sent cannot be made.
            if not unread:
                raise
            say = f"cannot read {path}: {unread[0].strerror}"
            raise Failure(say, next="the same command goes on with it once it can be read") from error
        except AioRpcError as error:
            if sent > furthest:
                patience, furthest = Patience(session), sent
            await patience.wait_after(error)
            show("the connection broke; sending again")
