"""Servers that do not exist: what a simulated node tells of its hardware. A shipped driver.

    inventory = FakeInventory(model_of(7), "n7")

Three models, dealt out by number: a cloud of ten has two architectures and three sizes, the same ones each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cairn.proto.v1.node_pb2 import CpuFacts, DiskFacts, FirmwareFacts, NicFacts, NodeFacts, NumaNode

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Model:
    """A kind of server. Cores and memory are a socket's, and a socket is a NUMA node."""

    name: str
    arch: str
    sockets: int
    cores: int
    threads_per_core: int
    memory_gib: int
    disk_gib: int

    @property
    def threads(self) -> int:
        """Return the logical CPUs of all sockets."""
        return self.sockets * self.cores * self.threads_per_core


SMALL: Final = Model("small", "x86_64", 1, 16, 2, 128, 2_000)
LARGE: Final = Model("large", "x86_64", 2, 32, 2, 256, 8_000)
ARM: Final = Model("arm", "aarch64", 1, 80, 1, 256, 4_000)


def model_of(number: int) -> Model:
    """Return what server number 1, 2, 3, ... is: of ten, seven are small, two large, one has ARM cores."""
    return ARM if number % 10 == 0 else LARGE if number % 5 == 3 else SMALL


class FakeInventory:
    """Implements Inventory for a model."""

    def __init__(self, model: Model, hostname: str, number: int = 1) -> None:
        self._model, self._hostname, self._number = model, hostname, number

    async def collect(self) -> NodeFacts:
        """Return its facts."""
        model, number = self._model, self._number
        per_socket = model.threads // model.sockets
        return NodeFacts(
            arch=model.arch,
            cpu=CpuFacts(
                model=f"Simulated {model.arch}",
                vendor="Cairn",
                sockets=model.sockets,
                cores=model.sockets * model.cores,
                threads=model.threads,
                virtualization="el2" if model.arch == "aarch64" else "vmx",
                mhz_max=3000,
            ),
            memory_bytes=model.sockets * model.memory_gib * GIB,
            numa=[
                NumaNode(id=id, memory_bytes=model.memory_gib * GIB, cpus=f"{id * per_socket}-{(id + 1) * per_socket - 1}")
                for id in range(model.sockets)
            ],
            disks=[DiskFacts(name="nvme0n1", model="Simulated", size_bytes=model.disk_gib * GIB, transport="nvme")],
            # A locally administered address (IEEE 802c) of the server's number.
            nics=[
                NicFacts(
                    name="eth0",
                    mac=":".join(f"{byte:02x}" for byte in b"\x02\x00" + number.to_bytes(4, "big")),
                    driver="fake",
                    speed_mbps=25_000,
                    mtu=9000,
                    link_up=True,
                )
            ],
            firmware=FirmwareFacts(vendor="Cairn", system_vendor="Cairn", system_product=f"Simulated {model.name}", uefi=True),
            kernel="simulated",
            os="Simulated",
            hostname=self._hostname,
        )
