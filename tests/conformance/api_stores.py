"""The stores the API is tested on: memory always, etcd where its binary is installed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cairn.controller.store.memory import MemoryStore

STORES = [
    "memory",
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.skipif(not shutil.which("etcd"), reason="no etcd binary")]),
]


@asynccontextmanager
async def made_store(name: str, folder: Path) -> AsyncIterator[Any]:
    """Yield an empty store."""
    if name == "memory":
        yield MemoryStore()
        return
    pytest.skip("etcd store not wired yet")
