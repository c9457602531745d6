"""What the lab's processes logged and how they ended, as a reader that comes back now and then sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.lab.hosts import Host
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud

OURS: Final = ("agent", "controller")
_KILLED: Final = "-9"
# Of each end of a long line.
SHOWN: Final = 800


class Untroubled(Checker):
    """Nobody meets an error he did not expect."""

    def line(self, cloud: Cloud, text: str) -> Iterator[str]:
        """Look for what the interpreter says of an exception nobody caught, and for what we log of one."""
        if "Traceback" in text or '"level": "error"' in text or '"level": "critical"' in text:
            yield text if len(text) < 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}"


class Tail:
    """A file that grows: the lines added since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Return whole lines only."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        self._at += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines()


class Logs:
    """ended: (server, service, exit code or minus the signal) -> how often."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._ours = [(host.name, service, Tail(host.folder / "log" / f"{service}.log")) for host in hosts for service in OURS]
        self._inits = [(host.name, Tail(host.folder / "log" / "init.log")) for host in hosts]
        self.ended: Counter[tuple[str, str, str]] = Counter()

    def lines(self) -> Iterator[str]:
        """Yield what our processes logged since, and take in who ended."""
        for name, service, tail in self._ours:
            yield from (f"{service} on {name}: {line}" for line in tail.lines())
        for name, tail in self._inits:
            for line in tail.lines():
                words = line.split()
                if len(words) == 4 and words[2] == "ended:":
                    self.ended[name, words[0], words[3]] += 1

    def unexplained(self, killed: Counter[tuple[str, str]]) -> Iterator[str]:
        """Yield ends of processes that nobody caused. killed: (server, service) -> times it was killed on purpose."""
        for (name, service, code), count in sorted(self.ended.items()):
            if code != _KILLED:
                yield f"{service} on {name} ended by itself {count} times: {code}"
            elif count > killed[name, service]:
                yield f"{service} on {name} was killed {count} times, {killed[name, service]} of them by us"
