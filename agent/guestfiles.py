"""Files made for guests besides volumes: the seed image a guest reads its name and keys from, and its serial console's log."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cairn.proto.v1.agent_pb2 import DesiredVm
from cairn.storage.seed import remove_seed, write_seed


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


class GuestFolders:
    """Two folders of the file system, readable by their owner only."""

    def __init__(self, seeds: Path, consoles: Path) -> None:
        self._seeds, self._consoles = seeds, consoles
        for folder in (seeds, consoles):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def seed(self, id: str) -> str:
        """Return the path of the ISO."""
        return str(self._seeds / f"{id}.iso")

    def console_log(self, id: str) -> str:
        """Return the path of the log."""
        return str(self._consoles / f"{id}.log")

    async def list(self) -> set[str]:
        """Return whose files are there."""
        found = {path.stem for path in self._seeds.glob("i-*.iso")}
        return found | {path.stem for path in self._consoles.glob("i-*.log")}

    async def write_seed(self, vm: DesiredVm) -> None:
        """Make the ISO."""
        await write_seed(Path(self.seed(vm.id)), vm)

    async def remove(self, id: str) -> None:
        """Delete ISO and log."""
        await remove_seed(Path(self.seed(id)))
        await remove_seed(Path(self.console_log(id)))


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
