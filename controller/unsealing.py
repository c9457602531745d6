"""The last step before an object goes to a node: what is sealed in it is opened.

nodespec.py puts the sealed record into the object as it is stored, so that deciding needs no key and differences are seen
without opening anything. What arrives at the agent has no `sealed`, but its content.
"""

from __future__ import annotations

from cairn.proto.sealing import Seals
from cairn.proto.v1.agent_pb2 import Desired
from cairn.proto.v1.secret_pb2 import VmData


def opened(object: Desired, seals: Seals) -> Desired:
    """Return the object as the node is to get it. Raises SealError."""
    if not object.vm.HasField("sealed"):
        return object
    data = VmData.FromString(seals.open(object.vm.sealed))
    result = Desired()
    result.CopyFrom(object)
    result.vm.ClearField("sealed")
    result.vm.ssh_keys[:] = data.ssh_keys
    result.vm.user_data = data.user_data
    return result
