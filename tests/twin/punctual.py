"""What comes and goes on servers is reported soon, once nothing is broken any more: usage counts by what nodes report.

While there are faults a report is as late as they make it; how late, the checker metered takes into account. When they have
ended it may take what an agent needs to see it and to say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from cairn.proto.v1.agent_pb2 import VmReport

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud

# The load of the machine and two looks at it are in this.
LATE_S: Final = 20.0


class Punctual(Checker):
    """now_s: the time; calm: faults have ended; latest_s: how long a report took at most since."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s, self.calm, self.latest_s = now_s, False, 0.0
        # (node, VM) whose process and report differ -> since when.
        self._since: dict[tuple[str, str], float] = {}

    def host_changed(self, cloud: Cloud, node: str) -> Iterator[str]:
        """Compare the processes with what is said of them."""
        here, said, now_s = set(cloud.hosts[node].guests), _reported(cloud, node), self._now_s()
        for key in [key for key in self._since if key[0] == node and (key[1] in here) == (key[1] in said)]:
            self.latest_s = max(self.latest_s, now_s - self._since.pop(key))
        for vm in sorted(here ^ said) if self.calm else ():
            since_s = self._since.setdefault((node, vm), now_s)
            if now_s - since_s > LATE_S:
                what = "lives" if vm in here else "is gone"
                yield f"guest {vm} {what} on {cloud.name_of(node)}, and for more than {LATE_S:.0f} s its report says otherwise"


def _reported(cloud: Cloud, node: str) -> set[str]:
    """Return the VMs that a node says run."""
    prefix = f"{node}/vm/"
    found = {id: each.report.vm for id, each in cloud.all("observed").items() if id.startswith(prefix)}
    return {id.removeprefix(prefix) for id, vm in found.items() if vm.state == VmReport.STATE_RUNNING}
