"""Encryption of parts by age (age-encryption.org/v1), which a person opens with `age --decrypt`.

Whoever writes backups has only the public half, a recipient; the secret half, an identity, is needed to restore and is kept by
people, never in the repository. Each part is a file of its own, so that any of them can be checked and fetched alone. It hides
what was backed up, and finds every changed byte; it does not prove who wrote it, as anybody can encrypt for a recipient.

age was chosen over GPG (keyrings, agents, a format with room for mistakes), openssl enc (nothing tells that bytes were changed)
and LUKS within qcow2 (a passphrase where the writer is). pyrage is rage, its implementation in Rust. It holds the interpreter's
lock: given a file in Python it lets go of it every 64 KiB, which is why parts go through `_Bytes`, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import pyrage
from pyrage import x25519


class BadKey(ValueError):
    """It is no recipient, or no identity. Never shows a secret."""


class Sealed(Exception):
    """It cannot be decrypted: by none of these identities, or it is damaged."""


class _Bytes:
    """Bytes as a file, to read and to write."""

    def __init__(self, content: bytes = b"") -> None:
        self._rest = memoryview(content)
        self.written = bytearray()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)

    def write(self, content: bytes) -> int:
        """Add bytes."""
        self.written += content
        return len(content)

    def flush(self) -> None:
        """All is written already."""


@dataclass(frozen=True, slots=True)
class Identities:
    """Secret keys, by which what is encrypted is read. None: only what is not encrypted."""

    keys: Sequence[x25519.Identity] = field(default=(), repr=False)

    @classmethod
    def of_file(cls, text: str) -> Self:
        """Read a file as age-keygen writes it: a key on each line, and comments. Raises BadKey."""
        lines = [line.strip() for line in text.splitlines()]
        keys = []
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                try:
                    keys.append(x25519.Identity.from_str(line))
                except pyrage.IdentityError as error:
                    raise BadKey(f"line {number} is no secret key of age (AGE-SECRET-KEY-1…)") from error
        return cls(tuple(keys))

    async def opened(self, content: bytes) -> bytes:
        """Return what was encrypted. Raises Sealed."""
        return await asyncio.to_thread(self._opened, content)

    def _opened(self, content: bytes) -> bytes:
        plain = _Bytes()
        try:
            pyrage.decrypt_io(_Bytes(content), plain, list(self.keys))  # type: ignore[arg-type]
        except (pyrage.DecryptError, OSError) as error:
            raise Sealed(str(error)) from error
        return bytes(plain.written)


@dataclass(frozen=True, slots=True)
class Recipients:
    """Public keys, for which something is encrypted."""

    keys: Sequence[x25519.Recipient]

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """Read keys (age1…). Raises BadKey."""
        keys = []
        for name in names:
            try:
                keys.append(x25519.Recipient.from_str(name))
            except pyrage.RecipientError as error:
                raise BadKey(f"{name[:80]!r} is no public key of age (age1…)") from error
        return cls(tuple(keys))

    async def sealed(self, content: bytes) -> bytes:
        """Return it encrypted; each time other bytes."""
        return await asyncio.to_thread(self._sealed, content)

    def _sealed(self, content: bytes) -> bytes:
        hidden = _Bytes()
        pyrage.encrypt_io(_Bytes(content), hidden, list(self.keys))  # type: ignore[arg-type]
        return bytes(hidden.written)
