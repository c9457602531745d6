"""The ways a node keeps volumes, by type: whoever has a volume asks here for its driver. Adding one is adding it to this list.

    drivers = Drivers([LocalVolumes(folder)])
    await drivers.of(desired.type).create(desired)      # StorageError, permanent, for a type this node does not know

A driver that cannot answer hides nothing of the others: see `observe`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cairn.proto.ids import LOCAL_POOL
from cairn.proto.v1.node_pb2 import StoragePool
from cairn.storage.base import OwnPool, StorageError, Sweeping, Volume, VolumeDriver


class Drivers:
    """Drivers by type."""

    def __init__(self, drivers: Iterable[VolumeDriver]) -> None:
        self._by_type = {driver.name: driver for driver in drivers}

    @property
    def types(self) -> list[str]:
        """The types of volumes this node knows, in the order they were given."""
        return list(self._by_type)

    def of(self, type: str) -> VolumeDriver:
        """Return the driver of a type; none named: local. StorageError, permanent, when this node does not know it."""
        driver = self._by_type.get(type or LOCAL_POOL)
        if driver is None:
            known = ", ".join(self.types)
            say = f"this node does not know volumes of type {type}, only {known}: give it that pool, or upgrade its agent"
            raise StorageError(say, retryable=False)
        return driver

    async def observe(self, wanted: Mapping[str, str]) -> tuple[dict[str, Volume], dict[str, StorageError]]:
        """Return those of the wanted volumes (id -> type) that are there, and why a type could not be looked at.

        Types this node does not know have no volumes here.
        """
        found: dict[str, Volume] = {}
        troubles: dict[str, StorageError] = {}
        for type, driver in self._by_type.items():
            ids = [id for id, its_type in wanted.items() if (its_type or LOCAL_POOL) == type]
            try:
                found |= {volume.id: volume for volume in await driver.observe(ids)} if ids else {}
            except StorageError as error:
                troubles[type] = error
        return found, troubles

    async def list_own(self) -> list[Volume]:
        """Return everything in this node's own pools. StorageError when one cannot be listed."""
        own = [driver for driver in self._by_type.values() if isinstance(driver, OwnPool)]
        return [volume for driver in own for volume in await driver.list()]

    async def facts(self) -> tuple[list[StoragePool], list[StorageError]]:
        """Return the pools that tell their figures, and why others do not."""
        pools: list[StoragePool] = []
        errors: list[StorageError] = []
        for driver in self._by_type.values():
            try:
                pools.append(await driver.facts())
            except StorageError as error:
                errors.append(error)
        return pools, errors

    async def recover(self) -> list[StorageError]:
        """Have each driver sweep what a killed predecessor left; return what failed."""
        errors: list[StorageError] = []
        for driver in self._by_type.values():
            try:
                await driver.recover()
            except StorageError as error:
                errors.append(error)
        return errors

    async def sweep(self) -> list[StorageError]:
        """Have each driver remove what nobody needs; return what failed."""
        errors: list[StorageError] = []
        for driver in self._by_type.values():
            try:
                if isinstance(driver, Sweeping):
                    await driver.sweep()
            except StorageError as error:
                errors.append(error)
        return errors
