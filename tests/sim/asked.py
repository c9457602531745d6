"""What users asked for and were told would be: the measure of what the cloud must look like once it is at rest.

Written by the workloads' acts when an answer came, never by looking at the cloud. An object is owned by the user who made it;
what several users fight for is a Contest, decided by name: exactly one of them wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.sim.pictures import Picture


@dataclass
class AskedVm:
    """A VM that was asked for and not deleted since."""

    id: str
    name: str
    owner: str
    # Whether its guest must run once the cloud is at rest.
    running: bool = True
    # It may as well be off: what its guest and its node did leaves both open.
    may_be_off: bool = False
    # The power state its user asked for last, whatever the guest did since.
    power_on: bool = True
    # Its guest is not started again after a crash, or after its node was restarted.
    never_restarts: bool = False
    # Its guest is started again also after it shut itself down.
    always_restarts: bool = False
    cpus: int = 1
    memory_bytes: int = 0
    # Ids of data volumes attached to it.
    volumes: set[str] = field(default_factory=set)
    # Ids of the subnets it has a card in; empty: the one everybody has.
    subnets: tuple[str, ...] = ()
    # Id of the image it was made of; empty: the one everybody has.
    image: str = ""
    # What its guest is to be told at its first boot.
    user_data: bytes = b""
    ssh_keys: tuple[str, ...] = ()
    # Deleted, and may be brought back: must not run, keeps its disks.
    deleted: bool = False
    # Id, name and bytes of its own disk, when that is to stay although the VM goes.
    kept_root: tuple[str, str, int] | None = None
    # Somebody is giving it another name.
    renaming: bool = False
    # Its revision when its power was last asked for: an older picture does not know of that.
    revision: int = 0

    def switch(self, *, on: bool, revision: int = 0) -> None:
        """Its user asked for this power state, and was told that it will be."""
        self.power_on = self.running = on
        self.revision = max(self.revision, revision)
        self.may_be_off = on and self.never_restarts


@dataclass
class AskedVolume:
    """A data volume."""

    id: str
    name: str
    owner: str
    size_bytes: int
    deleted: bool = False


@dataclass
class AskedSubnet:
    """A subnet of a VPC of its own. used: a VM was ever made in it."""

    id: str
    name: str
    owner: str
    vpc: str
    used: bool = False


@dataclass
class AskedImage:
    """An image whose bytes were accepted. used: a VM was ever made from it."""

    id: str
    name: str
    owner: str
    used: bool = False


@dataclass
class Contest:
    """Something that only one of several users can get."""

    asked: int = 0
    won: list[str] = field(default_factory=list)
    lost: int = 0


@dataclass
class Asked:
    """All of it. Objects erased for good are in `erased`: no trace of them may be left."""

    vms: dict[str, AskedVm] = field(default_factory=dict)
    volumes: dict[str, AskedVolume] = field(default_factory=dict)
    subnets: dict[str, AskedSubnet] = field(default_factory=dict)
    images: dict[str, AskedImage] = field(default_factory=dict)
    erased: dict[str, None] = field(default_factory=dict)
    # Request id -> id of the object it was answered with: the same id must be answered the same.
    answers: dict[str, str] = field(default_factory=dict)
    # Request id -> why it was refused, for the state of things: it must not be carried out later.
    refused: dict[str, str] = field(default_factory=dict)
    contests: dict[str, Contest] = field(default_factory=dict)
    # Sentences about answers that contradicted each other.
    contradictions: list[str] = field(default_factory=list)
    # What those who watch believe.
    pictures: list[Picture] = field(default_factory=list)

    def vms_of(self, owner: str, *, deleted: bool = False) -> list[AskedVm]:
        """Return a user's VMs in the order they were asked for."""
        return [vm for vm in self.vms.values() if vm.owner == owner and vm.deleted == deleted]

    def volumes_of(self, owner: str, *, deleted: bool = False) -> list[AskedVolume]:
        """Return a user's data volumes."""
        return [volume for volume in self.volumes.values() if volume.owner == owner and volume.deleted == deleted]

    def subnets_of(self, owner: str) -> list[AskedSubnet]:
        """Return a user's subnets."""
        return [subnet for subnet in self.subnets.values() if subnet.owner == owner]

    def images_of(self, owner: str) -> list[AskedImage]:
        """Return a user's images."""
        return [image for image in self.images.values() if image.owner == owner]

    def erase_vm(self, id: str) -> None:
        """Its user was told that it will be erased; a disk that was to be kept is a data volume from then on."""
        vm = self.vms.pop(id)
        self.erased[id] = None
        if vm.kept_root is not None:
            disk, name, size_bytes = vm.kept_root
            self.volumes[disk] = AskedVolume(disk, name, vm.owner, size_bytes)

    def erase_volume(self, id: str) -> None:
        """The same of a volume."""
        del self.volumes[id]
        self.erased[id] = None

    def answered(self, request_id: str, object_id: str) -> None:
        """Note an answer."""
        before = self.answers.setdefault(request_id, object_id)
        if before != object_id:
            self.contradict(f"request {request_id} was answered with {before} and with {object_id}")

    def contest(self, name: str) -> Contest:
        """Return the contest of that name."""
        return self.contests.setdefault(name, Contest())

    def contradict(self, text: str) -> None:
        """An answer cannot be true."""
        self.contradictions.append(text)

    def undecided(self) -> Iterator[str]:
        """Once everybody was answered: what is said of contests that not exactly one has won."""
        for name, contest in self.contests.items():
            if len(contest.won) + contest.lost == contest.asked and len(contest.won) != 1:
                yield f"{name}: {contest.asked} asked, won by {contest.won or 'nobody'}"
