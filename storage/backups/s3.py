"""A store that is a bucket of S3: Amazon's, or any server that speaks its protocol (Ceph's radosgw, …).

aiobotocore speaks it: Amazon's own client made async, signing and streaming by the protocol's author. One request for an
object: parts are far below the 5 GiB that one put may have, so there are no multiparts to be left over. A put carries the MD5
of its bytes, which the server checks; the newer checksums are not asked for, as older servers refuse or ignore them. Retries
are the caller's (patience.py), so that there is one policy. Credentials are given to the client's session and to nothing else.

Rejected: obstore (takes no CA of its own), minio-py (threads), our own signing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from cairn.storage.backups.store import (
    ANSWER_S,
    CHUNK_BYTES,
    Gone,
    Object,
    StoreError,
    StoreFull,
    check_name,
    limit_s,
)

CONNECTIONS_MAX: Final = 8
CONNECT_S: Final = 10
_GONE: Final = ("NoSuchKey", "404")
_FULL: Final = ("QuotaExceeded", "EntityTooLarge", "StorageFull", "XMinioStorageFull", "507", "InsufficientStorage")
_BUSY: Final = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "BadDigest", "429")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where it is. endpoint: "https://s3.example.com"; prefix: of all names; ca: of its certificate, None: the system's."""

    endpoint: str
    name: str
    prefix: str = ""
    region: str = "us-east-1"
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are there. What is printed of it does not show the secret."""

    access_key: str
    secret_key: str = field(repr=False)


class S3Store:
    """Objects of a bucket that is there already."""

    def __init__(self, bucket: Bucket, credentials: Credentials, *, answer_s: float = ANSWER_S) -> None:
        self._bucket = bucket
        self._credentials = credentials
        self._answer_s = answer_s
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._opening = asyncio.Lock()

    @property
    def title(self) -> str:
        """Bucket, prefix and endpoint."""
        return f"bucket {self._bucket.name}/{self._bucket.prefix} at {self._bucket.endpoint}"

    async def put(self, name: str, content: bytes) -> None:
        """Write an object by one request."""
        key = self._key(name)
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        client = await self._connected()
        put = client.put_object(Bucket=self._bucket.name, Key=key, Body=content, ContentMD5=md5)
        await self._call(f"write {name}", put, len(content))

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield an object's bytes, streamed."""
        if length == 0:
            return
        key = self._key(name)
        client = await self._connected()
        asked = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        act = f"read {name}"
        try:
            found = await self._call(act, client.get_object(Bucket=self._bucket.name, Key=key, Range=asked), 0)
        except _PastItsEnd:
            return
        body = found["Body"]
        try:
            while chunk := await self._call(act, body.read(CHUNK_BYTES), CHUNK_BYTES):
                yield chunk
        finally:
            body.close()

    async def list(self, prefix: str) -> AsyncIterator[Object]:
        """Yield objects by prefix, a page of a thousand at a time."""
        client = await self._connected()
        more: dict[str, str] = {}
        while True:
            asked = client.list_objects_v2(Bucket=self._bucket.name, Prefix=self._bucket.prefix + prefix, **more)
            page = await self._call(f"list {prefix or 'all'}", asked, 0)
            for each in page.get("Contents", ()):
                yield Object(each["Key"].removeprefix(self._bucket.prefix), each["Size"])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def delete(self, name: str) -> None:
        """Remove an object."""
        key = self._key(name)
        client = await self._connected()
        await self._call(f"remove {name}", client.delete_object(Bucket=self._bucket.name, Key=key), 0)

    async def close(self) -> None:
        """Close its connections."""
        async with self._opening:
            self._client = None
            await self._stack.aclose()

    def _key(self, name: str) -> str:
        return self._bucket.prefix + check_name(name)

    async def _connected(self) -> Any:
        async with self._opening:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Any:
        config = AioConfig(
            connect_timeout=CONNECT_S,
            # Longer ones end by our own limits.
            read_timeout=self._answer_s,
            max_pool_connections=CONNECTIONS_MAX,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        )
        making = AioSession().create_client(
            "s3",
            endpoint_url=self._bucket.endpoint,
            region_name=self._bucket.region,
            aws_access_key_id=self._credentials.access_key,
            aws_secret_access_key=self._credentials.secret_key,
            verify=str(self._bucket.ca) if self._bucket.ca else True,
            config=config,
        )
        try:
            return await self._stack.enter_async_context(making)
        except (BotoCoreError, OSError, ValueError) as error:
            raise StoreError(f"cannot use {self.title}: {error}", retryable=False) from error

    async def _call(self, act: str, call: Awaitable[T], size_bytes: int) -> T:
        limit = self._answer_s + limit_s(size_bytes) - limit_s(0)
        say = f"could not {act} in {self.title}"
        try:
            async with asyncio.timeout(limit):
                return await call
        except ClientError as error:
            raise _explained(say, error) from error
        except ParamValidationError as error:
            raise StoreError(f"{say}: {error}", retryable=False) from error
        except TimeoutError as error:
            raise StoreError(f"{say}: no answer for {limit:.0f} s") from error
        except (BotoCoreError, HttpError, OSError) as error:
            raise StoreError(f"{say}: {error or type(error).__name__}") from error


class _PastItsEnd(Exception):
    """The range begins where the object has ended: no bytes, no error."""


def _explained(say: str, error: ClientError) -> Exception:
    known: dict[str, Any] = error.response.get("Error", {})
    code = str(known.get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "InvalidRange":
        return _PastItsEnd()
    say = f"{say}: {code} {known.get('Message') or ''}".rstrip()
    if code in _GONE:
        return Gone(say)
    if code in _FULL:
        return StoreFull(say)
    return StoreError(say, retryable=code in _BUSY or status >= 500)
