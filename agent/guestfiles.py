"""Files made for guests besides volumes: the seed image a guest reads its name and keys from, and its serial console's log."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Protocol

from cairn.proto.v1.agent_pb2 import DesiredVm
from cairn.storage.owner import PRIVATE, Owner
from cairn.storage.pool import FULL_ERRNOS, attempt, in_thread
from cairn.storage.seed import remove_seed, write_seed

# A console log is cut when it is larger; so much of its end is kept beside it.
LOG_BYTES_MAX: Final = 4 << 20
KEPT_BYTES: Final = 1 << 20
# A guest's seed, being made or made, its log, and the end of the log before.
_FILE: Final = re.compile(r"\.?(i-[0-9a-z]+)\.(?:iso|iso\.new|log|log\.old)")


class GuestFiles(Protocol):
    """What the agent needs of them. Errors are storage.base.StorageError; every method is idempotent."""

    def seed(self, id: str) -> str:
        """Return where a guest's seed image is."""
        ...

    def console_log(self, id: str) -> str:
        """Return where the hypervisor logs a guest's serial console; empty: nowhere."""
        ...

    async def list(self) -> set[str]:
        """Return the ids of the guests that have files."""
        ...

    async def write_seed(self, vm: DesiredVm) -> None:
        """Make a guest's seed image as it must be; no change when it is so already."""
        ...

    async def remove(self, id: str) -> None:
        """Delete what was made for a guest; absent: no error."""
        ...

    async def trim(self) -> None:
        """Bound what grows by itself."""
        ...


class GuestFolders:
    """Two folders of the file system, whose files this process and guests' read. owner: whose the latter are."""

    def __init__(self, seeds: Path, consoles: Path, owner: Owner | None = None) -> None:
        self._seeds, self._consoles, self._owner = seeds, consoles, owner or Owner()
        for folder in (seeds, consoles):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._owner.enter(folder)

    def seed(self, id: str) -> str:
        """Return the path of the ISO."""
        return str(self._seeds / f"{id}.iso")

    def console_log(self, id: str) -> str:
        """Return the path of the log."""
        return str(self._consoles / f"{id}.log")

    async def list(self) -> set[str]:
        """Return whose files are there, also what a killed predecessor left half-made or half-removed. StorageError."""
        with attempt("listing the files of guests"):
            return await in_thread(self._list)

    def _list(self) -> set[str]:
        # Not glob: newer Pythons' takes a folder that cannot be read for an empty one.
        names = [path.name for folder in (self._seeds, self._consoles) if folder.exists() for path in folder.iterdir()]
        return {found[1] for name in names if (found := _FILE.fullmatch(name))}

    async def write_seed(self, vm: DesiredVm) -> None:
        """Make the ISO, and the log the hypervisor appends to, which it could not make in our folder."""
        log = Path(self.console_log(vm.id))
        with attempt(f"making the console log of {vm.id}"):
            await in_thread(self._make_log, log)
        await write_seed(Path(self.seed(vm.id)), vm, self._owner)

    def _make_log(self, path: Path) -> None:
        path.touch(mode=PRIVATE)
        self._owner.give(path)

    async def trim(self) -> None:
        """Cut what is too large: the hypervisor goes on at the new end."""
        with attempt("trimming console logs"):
            await in_thread(self._trim)

    def _trim(self) -> None:
        """Trim all; one that cannot be leaves the others no less bounded. Raises the first error."""
        errors: list[OSError] = []
        for path in self._consoles.glob("i-*.log"):
            try:
                trim_log(path)
            except FileNotFoundError:
                # Its guest was removed at this moment.
                continue
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    async def remove(self, id: str) -> None:
        """Delete ISO and log, and what was left half-made."""
        await remove_seed(Path(self.seed(id)))
        await remove_seed(Path(self.console_log(id)))
        await remove_seed(Path(f"{self.console_log(id)}.old"))


def trim_log(path: Path) -> bool:
    """Cut a log that has grown beyond LOG_BYTES_MAX: its end goes to "<log>.old"; return whether it was cut.

    What is written between copying and cutting is lost, a moment of output in some MiB. The writer must append (O_APPEND).
    """
    if path.stat().st_size <= LOG_BYTES_MAX:
        return False
    with path.open("r+b") as log:
        log.seek(-KEPT_BYTES, os.SEEK_END)
        old, end = Path(f"{path}.old"), log.read(KEPT_BYTES)
        is_kept = _kept(old, end)
        log.truncate(0)
        # Where there was no room, there is now.
        if not is_kept and not _kept(old, end):
            old.unlink(missing_ok=True)
    return True


def _kept(path: Path, content: bytes) -> bool:
    """Write a file; False: there was no room."""
    try:
        path.touch(mode=PRIVATE)
        path.write_bytes(content)
    except OSError as error:
        if error.errno not in FULL_ERRNOS:
            raise
        return False
    return True


class FakeGuestFiles:
    """In memory: a shipped driver. `held` is the disk's truth, shared by the agents that follow each other."""

    def __init__(self, held: dict[str, bytes] | None = None) -> None:
        self.held = held if held is not None else {}

    def seed(self, id: str) -> str:
        """Return a name."""
        return f"/fake/seeds/{id}.iso"

    def console_log(self, id: str) -> str:
        """Return a name."""
        return f"/fake/consoles/{id}.log"

    async def list(self) -> set[str]:
        """Return whose files are there."""
        return set(self.held)

    async def write_seed(self, vm: DesiredVm) -> None:
        """Keep what the seed is made from."""
        self.held[vm.id] = vm.SerializeToString(deterministic=True)

    async def remove(self, id: str) -> None:
        """Forget it."""
        self.held.pop(id, None)

    async def trim(self) -> None:
        """Nothing grows."""
