"""What users asked for and were told would be: the measure of what the cloud must look like once it is at rest.

Written by the workloads' acts when an answer came, never by looking at the cloud. An object is owned by the user who made it;
what several users fight for is checked by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AskedVm:
    """A VM that was asked for and not deleted since."""

    id: str
    name: str
    owner: str
    running: bool = True
    cpus: int = 1
    memory_bytes: int = 0
    # Ids of data volumes attached to it.
    volumes: set[str] = field(default_factory=set)
    # Deleted, and may be brought back: must not run, keeps its disks.
    deleted: bool = False


@dataclass
class AskedVolume:
    """A data volume."""

    id: str
    name: str
    owner: str
    size_bytes: int
    deleted: bool = False


@dataclass
class Asked:
    """All of it. Objects erased for good are in `erased`: no trace of them may be left."""

    vms: dict[str, AskedVm] = field(default_factory=dict)
    volumes: dict[str, AskedVolume] = field(default_factory=dict)
    erased: dict[str, None] = field(default_factory=dict)
    # Request id -> id of the object it was answered with: the same id must be answered the same.
    answers: dict[str, str] = field(default_factory=dict)
    # Sentences about answers that contradicted each other.
    contradictions: list[str] = field(default_factory=list)

    def vms_of(self, owner: str, *, deleted: bool = False) -> list[AskedVm]:
        """Return a user's VMs in the order they were asked for."""
        return [vm for vm in self.vms.values() if vm.owner == owner and vm.deleted == deleted]

    def volumes_of(self, owner: str) -> list[AskedVolume]:
        """Return a user's data volumes."""
        return [volume for volume in self.volumes.values() if volume.owner == owner and not volume.deleted]

    def answered(self, request_id: str, object_id: str) -> None:
        """Note an answer."""
        before = self.answers.setdefault(request_id, object_id)
        if before != object_id:
            self.contradictions.append(f"request {request_id} was answered with {before} and with {object_id}")
