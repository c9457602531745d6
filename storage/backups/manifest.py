"""What is written beside a backup: all that a cloud which knows nothing but the repository needs, and that a person can read.

The manifest is small JSON. The list of parts is another object, in the form of `sha256sum`: a line for each part. Both come
from places that strangers may write to, so nothing in them is believed: names are those that we would make ourselves, sizes
have bounds, and what is not as it should be is refused by a sentence that names it (BadManifest).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cairn.storage.backups.layout import l1_entries
from cairn.storage.qcow2 import CLUSTER_BYTES, VIRTUAL_BYTES_MAX

FORMAT: Final = 1
PART_BYTES: Final = 32 << 20
MANIFEST_BYTES_MAX: Final = 64 << 10
LIST_BYTES_MAX: Final = 512 << 20
PART_BYTES_MAX: Final = 1 << 30
PARTS_MAX: Final = 4_000_000
# What encryption may add to a part: its header, a stanza for each recipient, 16 bytes for each 64 KiB.
SEALED_EXTRA_BYTES: Final = 64 << 10
TEXT_MAX: Final = 1000
LABELS_MAX: Final = 64
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA = re.compile(r"[0-9a-f]{64}")


class BadManifest(Exception):
    """What was read is no manifest, or no list of parts, that this release can use. Says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What was backed up: what it takes to make the volume again."""

    id: str
    size_bytes: int
    name: str = ""
    project: str = ""
    image: str = ""
    arch: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parent:
    """The backup that an incremental one begins with: its id and the SHA-256 of its manifest."""

    backup: str
    manifest: str


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of the file, as its list tells: the SHA-256 and the name of its object."""

    sha256: str
    name: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup. Times are UTC; sizes are bytes."""

    backup: str
    volume: VolumeFacts
    # The moment whose bytes these are.
    time: datetime
    # The source's name for these very bytes; empty: it has none.
    point: str
    # None: a full one.
    parent: Parent | None
    # Why it is a full one though an incremental one was wanted; empty: it was not.
    full_because: str
    # Of the joined file, before it is encrypted.
    file_bytes: int
    part_bytes: int
    # SHA-256 of the list of parts.
    parts_sha256: str
    # Of all parts as they are stored.
    stored_bytes: int
    # Those who can read it, as age names them; none: anybody.
    recipients: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of the joined file."""
        return file_name(self.backup)

    @property
    def backing(self) -> str:
        """The name of its parent's file; empty: a full one."""
        return file_name(self.parent.backup) if self.parent else ""

    @property
    def parts_count(self) -> int:
        """How many parts it has."""
        return -(-self.file_bytes // self.part_bytes)

    @property
    def part_bytes_max(self) -> int:
        """The largest that one of its objects may be."""
        return self.part_bytes + (self.part_bytes // 4096 + SEALED_EXTRA_BYTES if self.recipients else 0)

    @property
    def folder(self) -> str:
        """What the names of its objects start with."""
        return folder_of(self.volume.id, self.backup)

    @property
    def list_name(self) -> str:
        """The object that lists its parts."""
        return f"{self.folder}{self.backup}.{self.parts_sha256}.parts"

    def part_bytes_of(self, index: int) -> int:
        """Return the size of a part before it is encrypted."""
        return min(self.part_bytes, self.file_bytes - index * self.part_bytes)


def folder_of(volume: str, backup: str) -> str:
    """Return what the names of a backup's objects start with."""
    return f"volumes/{volume}/{backup}/"


def file_name(backup: str) -> str:
    """Return the name of a backup's joined file, which its children name as theirs to begin with."""
    return f"{backup}.qcow2"


def part_name(backup: str, index: int, sha256: str, *, is_sealed: bool) -> str:
    """Return the name of a part's object within its backup's folder; it sorts as the parts are joined."""
    return f"{file_name(backup)}.{index:06d}.{sha256}{'.age' * is_sealed}"


def manifest_name(manifest: bytes, volume: str, backup: str) -> str:
    """Return the name of the object of a manifest: it holds the checksum of its bytes."""
    return f"{folder_of(volume, backup)}{backup}.{hashlib.sha256(manifest).hexdigest()}.json"


def check_id(id: str, what: str) -> str:
    """Return an id that may be part of a name; ValueError for any other."""
    if not _ID.fullmatch(id):
        raise ValueError(f"no id of a {what}: {id[:80]!r}; it has lower case letters, digits and dashes")
    return id


def written(manifest: Manifest) -> bytes:
    """Return a manifest's bytes."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "backup": manifest.backup,
        "volume": asdict(manifest.volume),
        "time": manifest.time.astimezone(UTC).isoformat(),
        "point": manifest.point,
        "parent": asdict(manifest.parent) if manifest.parent else None,
        "full_because": manifest.full_because,
        "file": {"name": manifest.file, "size_bytes": manifest.file_bytes, "backing": manifest.backing},
        "parts": {
            "list": manifest.list_name.rpartition("/")[2],
            "sha256": manifest.parts_sha256,
            "count": manifest.parts_count,
            "part_bytes": manifest.part_bytes,
            "stored_bytes": manifest.stored_bytes,
        },
        "encryption": {"kind": "age", "recipients": list(manifest.recipients)} if manifest.recipients else None,
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def parsed(content: bytes) -> Manifest:
    """Read a manifest's bytes. Raises BadManifest."""
    if len(content) > MANIFEST_BYTES_MAX:
        raise BadManifest(f"it has {len(content)} bytes, more than the {MANIFEST_BYTES_MAX} of any manifest")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"it is not JSON: {error}") from error
    fields = _Fields(said, "it")
    if (format := fields.whole("format", 1 << 31)) != FORMAT:
        raise BadManifest(f"it is of format {format}; this release reads format {FORMAT}")
    volume, file, parts = fields.inner("volume"), fields.inner("file"), fields.inner("parts")
    manifest = Manifest(
        backup=fields.id("backup"),
        volume=VolumeFacts(
            id=volume.id("id"),
            size_bytes=volume.whole("size_bytes", VIRTUAL_BYTES_MAX),
            **{name: volume.text(name) for name in ("name", "project", "image", "arch")},
            labels=volume.texts("labels"),
        ),
        time=fields.time("time"),
        point=fields.text("point"),
        parent=_parent(fields),
        full_because=fields.text("full_because"),
        file_bytes=file.whole("size_bytes", 2 * VIRTUAL_BYTES_MAX),
        part_bytes=parts.whole("part_bytes", PART_BYTES_MAX),
        parts_sha256=parts.sha256("sha256"),
        stored_bytes=parts.whole("stored_bytes", 4 * VIRTUAL_BYTES_MAX),
        recipients=_recipients(fields),
    )
    _check_sizes(manifest)
    for named, meant, where in (
        (file.text("name"), manifest.file, "file.name"),
        (file.text("backing"), manifest.backing, "file.backing"),
        (parts.text("list"), manifest.list_name.rpartition("/")[2], "parts.list"),
        (parts.whole("count", PARTS_MAX), manifest.parts_count, "parts.count"),
    ):
        if named != meant:
            raise BadManifest(f"{where} is {named!r}; of this backup it must be {meant!r}")
    return manifest


def _check_sizes(manifest: Manifest) -> None:
    try:
        l1_entries(manifest.volume.size_bytes)
    except ValueError as error:
        raise BadManifest(str(error)) from error
    if manifest.part_bytes < CLUSTER_BYTES or manifest.part_bytes % CLUSTER_BYTES:
        raise BadManifest(f"parts.part_bytes is {manifest.part_bytes}; it is a multiple of {CLUSTER_BYTES}")
    if not manifest.file_bytes or manifest.file_bytes % CLUSTER_BYTES or manifest.parts_count > PARTS_MAX:
        raise BadManifest(f"file.size_bytes is {manifest.file_bytes}: not whole clusters, or more than {PARTS_MAX} parts")
    if not manifest.recipients and manifest.stored_bytes != manifest.file_bytes:
        raise BadManifest(f"parts.stored_bytes is {manifest.stored_bytes}, the file has {manifest.file_bytes} bytes")


def _parent(fields: _Fields) -> Parent | None:
    if fields.said.get("parent") is None:
        return None
    inner = fields.inner("parent")
    return Parent(inner.id("backup"), inner.sha256("manifest"))


def _recipients(fields: _Fields) -> tuple[str, ...]:
    if fields.said.get("encryption") is None:
        return ()
    inner = fields.inner("encryption")
    recipients = inner.said.get("recipients")
    if (kind := inner.text("kind")) != "age":
        raise BadManifest(f"it is encrypted by {kind!r}, which this release does not know")
    if not isinstance(recipients, list) or not 0 < len(recipients) <= LABELS_MAX:
        raise BadManifest("it is encrypted, and does not say for whom")
    if not all(isinstance(each, str) and len(each) <= 4 * TEXT_MAX for each in recipients):
        raise BadManifest("it is encrypted for what are no recipients")
    return tuple(recipients)


def list_of(parts: Sequence[Part]) -> bytes:
    """Return the bytes of a list of parts."""
    return b"".join(f"{part.sha256}  {part.name}\n".encode() for part in parts)


def parts_of(manifest: Manifest, content: bytes) -> list[Part]:
    """Read the list of a backup's parts. Raises BadManifest: it is another's, or names what is no part of this backup."""
    if hashlib.sha256(content).hexdigest() != manifest.parts_sha256:
        raise BadManifest("the list of its parts is damaged: its checksum is not the one in the manifest")
    parts: list[Part] = []
    for line in content.decode(errors="replace").splitlines():
        sha256, _, name = line.partition("  ")
        meant = part_name(manifest.backup, len(parts), sha256, is_sealed=bool(manifest.recipients))
        if not _SHA.fullmatch(sha256) or name != meant:
            raise BadManifest(f"line {len(parts) + 1} of the list of its parts is no part of it: {line[:120]!r}")
        parts.append(Part(sha256, name))
    if len(parts) != manifest.parts_count:
        raise BadManifest(f"the list of its parts has {len(parts)}; the manifest says {manifest.parts_count}")
    return parts


@dataclass(frozen=True, slots=True)
class _Fields:
    """Reads the fields of an object of JSON; each is what it should be, or BadManifest."""

    said: dict[str, Any]
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.said, dict):
            raise BadManifest(f"{self.where} is no object of JSON")

    def inner(self, name: str) -> _Fields:
        """Return the fields of an object within."""
        return _Fields(self.said.get(name, {}), name)

    def text(self, name: str) -> str:
        """Return a short text; a field that is not there is empty."""
        value = self.said.get(name, "")
        if not isinstance(value, str) or len(value) > TEXT_MAX or not value.isprintable():
            raise self._wrong(name, "a short text")
        return value

    def texts(self, name: str) -> dict[str, str]:
        """Return texts by their names."""
        fields = _Fields(self.said.get(name, {}), name)
        if len(fields.said) > LABELS_MAX or not all(len(each) <= TEXT_MAX for each in fields.said):
            raise self._wrong(name, f"at most {LABELS_MAX} texts")
        return {each: fields.text(each) for each in fields.said}

    def whole(self, name: str, most: int) -> int:
        """Return a number of 0 to most."""
        value = self.said.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise self._wrong(name, f"a whole number of 0 to {most}")
        return value

    def id(self, name: str) -> str:
        """Return an id."""
        if not _ID.fullmatch(value := self.text(name)):
            raise self._wrong(name, "an id")
        return value

    def sha256(self, name: str) -> str:
        """Return a SHA-256 in hexadecimal."""
        if not _SHA.fullmatch(value := self.text(name)):
            raise self._wrong(name, "a SHA-256")
        return value

    def time(self, name: str) -> datetime:
        """Return a moment."""
        try:
            value = datetime.fromisoformat(self.text(name))
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise self._wrong(name, "a moment (ISO 8601)") from error

    def _wrong(self, name: str, wanted: str) -> BadManifest:
        here = "" if self.where == "it" else f"{self.where}."
        return BadManifest(f"{here}{name} is {str(self.said.get(name))[:80]!r}, not {wanted}")
