"""Sealing secrets: what is in the store or in a backup can be read only by who holds the key, and only controllers do.

    seals = Seals.load(Path("/etc/cairn/pki/secrets.key"))
    record = seals.seal("vm/i-1234abcd", VmData(...).SerializeToString(), now)
    content = seals.open(record)                            # SealError: another key's, or not what was sealed under that id

AES-SIV (RFC 5297, 256-bit keys) with the record's id as associated data: a sealed record moved to another id does not open. It
is deterministic, so a repeated request writes the same bytes, and no nonce can be used twice. The file holds a key a line,
base64; the first seals, all open, so a key is replaced by putting a new one before it. Rejected: Fernet (random, with a clock:
not replayable), one nonce-based key over three controllers that count apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from cairn.proto.seams import timestamp
from cairn.proto.v1.secret_pb2 import Secret
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

KEY_BYTES: Final = 64


class SealError(Exception):
    """A secret cannot be sealed or opened; the text says why, never what is in it."""


class Seals:
    """Keys that seal and open. Without any, nothing can be sealed."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {key_id(key): AESSIV(key) for key in keys}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file. Raises SealError, OSError."""
        try:
            keys = [base64.b64decode(line, validate=True) for line in path.read_bytes().split()]
        except binascii.Error as error:
            raise SealError(f"{path}: a line is not base64") from error
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise SealError(f"{path} is not a list of keys of {KEY_BYTES} bytes each; `cairn cluster init` makes one")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def seal(self, id: str, content: bytes, now: datetime) -> Secret:
        """Return the record that keeps a content. Raises SealError without a key."""
        if not self._keys:
            raise SealError("this controller has no secrets.key, and keeps no secret without one")
        key, cipher = next(iter(self._keys.items()))
        sealed = cipher.encrypt(content, [id.encode()]) if content else b""
        return Secret(id=id, key_id=key, sealed=sealed, create_time=timestamp(now))

    def open(self, secret: Secret) -> bytes:
        """Return a content. Raises SealError."""
        if not secret.sealed:
            return b""
        cipher = self._keys.get(secret.key_id)
        if cipher is None:
            raise SealError(f"secret {secret.id} is sealed with key {secret.key_id}, which this controller does not hold")
        try:
            return cipher.decrypt(secret.sealed, [secret.id.encode()])
        except InvalidTag as error:
            raise SealError(f"secret {secret.id} is not what was sealed with key {secret.key_id}") from error


def key_id(key: bytes) -> str:
    """Return the name of a key: 8 hexadecimal digits of its hash."""
    return hashlib.blake2b(key, digest_size=4, person=b"cairn seal").hexdigest()


def new_key() -> bytes:
    """Return the content of a key file with one fresh key."""
    return base64.b64encode(AESSIV.generate_key(KEY_BYTES * 8)) + b"\n"
