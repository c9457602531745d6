"""What controllers say to a node when they have lost sight of its guests, by a fault of ours or of the store."""

from __future__ import annotations

from cairn.proto.v1.agent_pb2 import Bookmark, Changes, SyncResponse, Upsert


def without_guests(data: bytes) -> bytes:
    """Return a message of the Sync stream without the guests in it, but for those that are to be absent."""
    message = SyncResponse.FromString(data)
    if message.WhichOneof("message") == "upsert" and _is_guest(message.upsert):
        return SyncResponse(bookmark=Bookmark(version=message.upsert.version)).SerializeToString()
    if message.WhichOneof("message") == "changes":
        said = message.changes
        kept = [content for content in said.upserts if not _is_guest(Upsert.FromString(content))]
        less = Changes(version=said.version, upserts=kept, removes=said.removes, complete=said.complete)
        return SyncResponse(changes=less).SerializeToString()
    return data


def _is_guest(upsert: Upsert) -> bool:
    return upsert.object.HasField("vm") and not upsert.object.vm.absent
