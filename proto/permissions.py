"""Which permission each method takes, as the .proto says: one line there, read by the server, docs and tests.

METHODS["/cairn.v1.VmService/CreateVm"]     # "vm.create"
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from cairn.proto.v1 import (
    access_pb2,
    agent_pb2,
    auth_pb2,
    binding_pb2,
    cluster_pb2,
    event_pb2,
    image_pb2,
    job_pb2,
    node_pb2,
    port_pb2,
    project_pb2,
    role_pb2,
    subnet_pb2,
    user_pb2,
    vm_pb2,
    volume_pb2,
    vpc_pb2,
)

_FILES: Final[tuple[Any, ...]] = (
    agent_pb2,
    auth_pb2,
    binding_pb2,
    cluster_pb2,
    event_pb2,
    image_pb2,
    job_pb2,
    node_pb2,
    port_pb2,
    project_pb2,
    role_pb2,
    subnet_pb2,
    user_pb2,
    vm_pb2,
    volume_pb2,
    vpc_pb2,
)


def _methods() -> Mapping[str, str]:
    found = {}
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                permission = method.GetOptions().Extensions[access_pb2.permission]
                found[f"/{service.full_name}/{method.name}"] = permission
    return MappingProxyType(found)


# "/package.Service/Method" -> "noun.verb".
METHODS: Final = _methods()
