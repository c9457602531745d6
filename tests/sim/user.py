"""Somebody who uses the cloud: what the acts of workloads are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.sim.asked import Asked
from tests.sim.client import SimClient
from tests.sim.world import World

# What is there before a story begins.
IMAGE: Final = "demo"
SUBNET: Final = "demo"


@dataclass
class User:
    """A client, and what users were told. Everything a user does was decided when the story was drawn."""

    name: str
    world: World
    client: SimClient
    asked: Asked
