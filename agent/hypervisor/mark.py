"""Our mark on a domain: a metadata element of the persistent configuration, in a namespace of our own.

It makes a domain ours (no mark: never listed, never touched) and remembers what libvirt does not: generations, that a start
is not finished or a stop was asked for, and why the guest ended, also after libvirtd was restarted. It holds no secret: any
user who may read a domain's XML sees it.

What we start carries a sign besides, in its live configuration alone: it goes with the process, so one that lacks it was
started by somebody else.
"""

from __future__ import annotations

import dataclasses
import enum
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Final

from cairn.agent.hypervisor.base import DomainSpec, ExitCause

NAMESPACE: Final = "https://cairn.cloud/xmlns/domain/1"
PREFIX: Final = "cairn"
TAG: Final = f"{{{NAMESPACE}}}vm"

SIGN_NAMESPACE: Final = "https://cairn.cloud/xmlns/process/1"
SIGN_PREFIX: Final = "cairn-process"
SIGN: Final = "<ours/>"

# Resets that follow one another as closely as this are one beginning of a guest.
ONE_BOOT_S: Final = 5.0
# So soon after a beginning no guest has heard a button and obeyed it: what resets is the firmware, once more.
DEAF_S: Final = 2.0

ET.register_namespace(PREFIX, NAMESPACE)


class Phase(enum.Enum):
    """What we have begun with a domain and not seen end."""

    NONE = ""
    STARTING = "starting"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Mark:
    """What we write on a domain."""

    id: str
    name: str = ""
    spec_revision: int = 0
    digest: str = ""
    power_generation: int = 0
    reboot_generation: int = 0
    phase: Phase = Phase.NONE
    exit: ExitCause = ExitCause.NONE
    # Wall-clock seconds since the epoch of the last start; 0: never.
    start_time: float = 0.0
    # See hypervisor/base.py, Domain.
    boots: int = 0
    boot_time: float = 0.0
    rebooted_generation: int = 0
    # The reboot asked for last is a reset, which no guest can ignore.
    forced: bool = False
    # See hypervisor/base.py, Domain.
    machine_digest: str = ""
    # Whoever started it last signs what it starts.
    signs: bool = False

    def redefined(self, spec: DomainSpec, digest: str) -> Mark:
        """Return the mark for a new configuration of the same VM: what the domain went through stays."""
        return dataclasses.replace(self, name=spec.vm.name, spec_revision=spec.vm.spec_revision, digest=digest)

    def started(self, power_generation: int, reboot_generation: int, machine_digest: str, now: float) -> Mark:
        """Return the mark of a domain that is being started at that wall-clock time."""
        return dataclasses.replace(
            self,
            power_generation=power_generation,
            reboot_generation=reboot_generation,
            rebooted_generation=reboot_generation,
            forced=False,
            machine_digest=machine_digest,
            signs=True,
            phase=Phase.STARTING,
            exit=ExitCause.NONE,
            start_time=now,
            boots=self.boots + 1,
            boot_time=now,
        )

    def rebooted(self, now: float) -> Mark:
        """Return the mark of a domain whose guest was seen to begin anew: what was asked of it is answered."""
        return dataclasses.replace(self, boots=self.boots + 1, boot_time=now, rebooted_generation=self.reboot_generation)

    def reset(self, now: float) -> Mark:
        """Return the mark of a domain that the hypervisor has reset; it may do so several times for one beginning.

        A reset that was asked for since the last is another beginning, however soon it comes; what a guest does that was only
        asked to reboot is one after DEAF_S.
        """
        asked = self.rebooted_generation != self.reboot_generation
        window_s = 0.0 if asked and self.forced else DEAF_S if asked else ONE_BOOT_S
        if self.boot_time > self.start_time and 0 <= now - self.boot_time < window_s:
            return self
        return self.rebooted(now)

    def element(self) -> ET.Element:
        """Return the XML element; what is not so is left out."""
        attributes = {
            "id": self.id,
            "name": self.name,
            "spec_revision": str(self.spec_revision),
            "digest": self.digest,
            "power_generation": str(self.power_generation),
            "reboot_generation": str(self.reboot_generation),
        }
        if self.phase is not Phase.NONE:
            attributes["phase"] = self.phase.value
        if self.exit is not ExitCause.NONE:
            attributes["exit"] = self.exit.name.lower()
        if self.start_time:
            attributes["start_time"] = f"{self.start_time:.3f}"
        if self.boots:
            attributes["boots"], attributes["boot_time"] = str(self.boots), f"{self.boot_time:.3f}"
            attributes["rebooted_generation"] = str(self.rebooted_generation)
        if self.forced:
            attributes["forced"] = "1"
        if self.machine_digest:
            attributes["machine_digest"] = self.machine_digest
        if self.signs:
            attributes["signs"] = "1"
        return ET.Element(TAG, attributes)

    def bare(self) -> str:
        """Return the element without namespace, the form virDomainSetMetadata takes (it adds prefix and namespace)."""
        element = self.element()
        element.tag = "vm"
        return ET.tostring(element, encoding="unicode")


def find_mark(domain: ET.Element) -> Mark | None:
    """Return the mark in a domain's XML; None when the domain is not ours."""
    element = domain.find(f"metadata/{TAG}")
    if element is None or element.get("id", "") != domain.findtext("name"):
        return None
    cause, phase = element.get("exit", "none").upper(), element.get("phase", "")
    start_time, reboot_generation = element.get("start_time", "0"), element.get("reboot_generation", "0")
    return Mark(
        id=element.get("id", ""),
        name=element.get("name", ""),
        spec_revision=int(element.get("spec_revision", "0")),
        digest=element.get("digest", ""),
        power_generation=int(element.get("power_generation", "0")),
        reboot_generation=int(reboot_generation),
        # What a newer release calls something is nothing we have begun.
        phase=Phase(phase) if phase in {each.value for each in Phase} else Phase.NONE,
        exit=ExitCause[cause] if cause in ExitCause.__members__ else ExitCause.NONE,
        start_time=float(start_time),
        # A domain started by a release that did not count was booted once, and did what it was asked.
        boots=int(element.get("boots", "1" if float(start_time) else "0")),
        boot_time=float(element.get("boot_time", start_time)),
        rebooted_generation=int(element.get("rebooted_generation", reboot_generation)),
        forced=element.get("forced") == "1",
        machine_digest=element.get("machine_digest", ""),
        signs=element.get("signs") == "1",
    )


def is_signed(live: ET.Element) -> bool:
    """Tell from a domain's live XML whether its process is one we let run."""
    return live.find(f"metadata/{{{SIGN_NAMESPACE}}}ours") is not None
