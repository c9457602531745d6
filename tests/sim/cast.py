"""Who plays: every module in workloads/, faults/ and checkers/, by file name. A new one is one file; nothing is registered."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Any

from tests.sim import checkers, faults, scenarios, workloads
from tests.sim.checkers.base import Checker

Act = Callable[..., Coroutine[Any, Any, None]]


def _modules(package: Any) -> list[Any]:
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [import_module(f"{package.__name__}.{name}") for name in names if name != "base"]


WORKLOADS = _modules(workloads)
FAULTS = _modules(faults)
SCENARIOS = _modules(scenarios)


def acts(modules: list[Any]) -> dict[str, Act]:
    """Return all acts by name. ValueError when two share one."""
    found: dict[str, Act] = {}
    for module in modules:
        for name, act in module.ACTS.items():
            if name in found:
                raise ValueError(f"{module.__name__}: the act {name} is another module's already")
            found[name] = act
    return found


def all_checkers() -> list[Checker]:
    """Return one new instance of each checker."""
    found: list[Checker] = []
    for module in _modules(checkers):
        kinds = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
        found += [kind() for kind in kinds if issubclass(kind, Checker)]
    return found
