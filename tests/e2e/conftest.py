"""One lab for all end-to-end tests: three servers, an image, a subnet. Ends by proving that nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import libvirtd
from tests.lab.demo import CACHE
from tests.lab.guest import build as build_guest
from tests.lab.hosts import wait_until
from tests.lab.lab import Lab

MISSING = libvirtd.missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with furnished(Lab(f"e{os.getpid()}", nodes=3)) as lab:
        yield lab


@contextmanager
def furnished(lab: Lab) -> Iterator[Lab]:
    """Bring a lab up, with an image and a subnet; take it down in the end."""
    try:
        lab.up()
        build_guest(CACHE / "demo.qcow2")
        lab.cairn("image", "import", "demo", "--file", str(CACHE / "demo.qcow2"))
        lab.cairn("vpc", "create", "demo", "--cidr", "10.1.0.0/16")
        lab.cairn("subnet", "create", "blue", "--vpc", "demo", "--cidr", "10.1.1.0/24")
        yield lab
    finally:
        lab.down()


@pytest.fixture
def vms(lab: Lab) -> Iterator[list[str]]:
    """Names of VMs to erase after the test, whatever became of them."""
    names: list[str] = []
    yield names
    for name in names:
        lab.cairn("vm", "delete", name, "--purge", check=False)


def status(lab: Lab, vm: str) -> dict[str, object]:
    document: dict[str, dict[str, object]] = lab.json("vm", "show", vm)
    return document["status"]


def wait_state(lab: Lab, vm: str, state: str, timeout_s: float = 60.0) -> dict[str, object]:
    wait_until(f"{vm} to be {state}", lambda: status(lab, vm)["state"] == f"STATE_{state}", timeout_s, every_s=0.3)
    return status(lab, vm)


def create(lab: Lab, vms: list[str], name: str, *options: str, subnet: str = "blue") -> dict[str, object]:
    """Create a small VM, wait until it runs, return its status."""
    vms.append(name)
    lab.cairn("vm", "create", name, "--cpus", "1", "--memory", "128MiB", "--image", "demo", "--subnet", subnet, *options)
    return status(lab, name)
