"""No method of our API is left to the generated base class, which answers "not implemented"."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import cairn.agent
import cairn.controller
import cairn.proto.v1
import pytest


def bases() -> Iterator[type]:
    for module in pkgutil.iter_modules(cairn.proto.v1.__path__):
        if module.name.endswith("_pb2_grpc"):
            found = inspect.getmembers(importlib.import_module(f"cairn.proto.v1.{module.name}"), inspect.isclass)
            yield from (each for name, each in found if name.endswith("Servicer"))


@pytest.mark.parametrize("base", sorted(bases(), key=lambda each: each.__name__), ids=lambda each: each.__name__)
def test_every_method_is_served(base: type) -> None:
    for package in (cairn.controller, cairn.agent):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    ours = [each for each in base.__subclasses__() if each.__module__.startswith(("cairn.controller", "cairn.agent"))]
    assert ours, f"nobody serves {base.__name__}"
    methods = [name for name in vars(base) if not name.startswith("_")]
    left = [name for name in methods if all(getattr(each, name) is getattr(base, name) for each in ours)]
    assert not left
