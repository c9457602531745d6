"""What a pool of Ceph keeps beside images, to say what they are: a small JSON object for each volume and each image's copies.

    held = Record.read(text, "cairn.volume.vol-00000001")       # None: Record()
    replace(held, generation=2).text()

rbd.py says how they are replaced.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from cairn.storage.base import NoSuchImage, StorageError
from cairn.storage.pool import DIGEST

IMAGE_DIGITS: Final = 32


class BadRecord(StorageError):
    """An object of ours that cannot be read. Permanent; nothing is done to it."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the pool knows of a volume, or of an image that volumes are cloned from."""

    # The newest one in whose name anything was done.
    generation: int = 0
    # The image it is, or is to be; empty: it is gone, or none is begun.
    image: str = ""
    # Whether `image` is whole.
    made: bool = False
    # Digest of what it is a copy of.
    origin: str = ""
    size_bytes: int = 0
    # Images to remove: of attempts that were given up, and of what it was.
    left: tuple[str, ...] = ()
    # Of copies of images: those that were whole, and are to go with the last that was cloned from them.
    old: tuple[str, ...] = ()
    # Of copies of images: when one was last cloned from, to the hour; seconds since the epoch.
    used_s: int = 0
    # Of volumes: the newest claim to open it that was shown, and the newest that was shut out.
    opened: int = 0
    shut_out: int = 0
    # What a newer release keeps besides.
    more: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, text: str | None, object: str) -> Self:
        """Return it of an object's text; None: that of nothing. BadRecord when it is not one of ours."""
        if text is None:
            return cls()
        try:
            said = json.loads(text)
            known = {"generation": said.pop("generation"), "left": tuple(said.pop("left")), "old": tuple(said.pop("old", ()))}
            known |= {each.name: said.pop(each.name) for each in fields(cls) if each.name in said and each.name != "more"}
            return cls(**known, more=tuple(said.items()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRecord(f"object {object} is no record of ours: {text[:200]!r}", retryable=False) from error

    def text(self) -> str:
        """Return it as it is kept."""
        known = asdict(self)
        return json.dumps({**dict(self.more), **{name: known[name] for name in known if name != "more"}}, sort_keys=True)


def object_of(id: str) -> str:
    """Return the object that has a volume's record."""
    return f"cairn.volume.{id}"


def source_object(digits: str) -> str:
    """Return the object that has the record of an image's copies, by `digits`."""
    return f"cairn.image.{digits}"


def digits(digest: str) -> str:
    """Return what names an image in a pool: the first digits of its digest. NoSuchImage: it is none."""
    match = DIGEST.fullmatch(digest)
    if not match:
        raise NoSuchImage(f"{digest!r} is not a digest (sha256: and 64 hex digits)")
    return match[1][:IMAGE_DIGITS]


def with_name(left: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return names with one more, unless it is empty or among them."""
    return (*left, name) if name and name not in left else left


def without_name(left: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return names without one."""
    return tuple(each for each in left if each != name)
