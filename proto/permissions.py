"""Which permission each method takes, as the .proto says: one line there, read by the server, docs and tests.

METHODS["/cairn.v1.VmService/CreateVm"]     # "vm.create"
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from cairn.proto import v1
from cairn.proto.v1 import access_pb2


def _methods() -> Mapping[str, str]:
    """Look at every file of the API, so that none can be forgotten."""
    found = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(v1.__path__) if each.name.endswith("_pb2")):
        for service in import_module(f"{v1.__name__}.{module}").DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                permission = method.GetOptions().Extensions[access_pb2.permission]
                found[f"/{service.full_name}/{method.name}"] = permission
    return MappingProxyType(found)


# "/package.Service/Method" -> "noun.verb".
METHODS: Final = _methods()
