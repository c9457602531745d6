"""What a user was told stays true: one request has one answer, and what was made is there until its deletion is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit
from tests.sim.rules import deleted


class Answers(Checker):
    """Looks at request records as they are written, and at everybody's objects at rest."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """A request that was answered is not answered again."""
        for change in commit.changes:
            if change.kind == "request" and change.before is not None and change.after is not None:
                yield f"{change.key} was answered with {change.before.object}, then with {change.after.object}"

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """Each object is there, as deleted as it was asked to be; what was erased is gone."""
        yield from asked.contradictions
        for kind, table in (("vm", asked.vms), ("volume", asked.volumes)):
            for id, each in table.items():
                record = cloud.get(kind, id)
                if record is None:
                    yield f"{each.name} ({id}) was made, nobody erased it, and it is gone"
                elif record.name != each.name:
                    yield f"{each.name} ({id}) is called {record.name}"
                elif deleted(record) != each.deleted:
                    yield f"{each.name} ({id}) is {'deleted' if deleted(record) else 'there'}, which is not what was asked for"
        for id in asked.erased:
            if cloud.get("vm", id) is not None or cloud.get("volume", id) is not None:
                yield f"{id} was to be erased and is there"
        # A request's record is kept under who asked and the id.
        records = {key.rpartition("/")[2]: record for key, record in cloud.all("request").items()}
        for request, object in asked.answers.items():
            record = records.get(request)
            if record is not None and record.object.partition("/")[2] != object:
                yield f"request {request} was answered with {object}, its record says {record.object}"
        for request, why in asked.refused.items():
            record = records.get(request)
            if record is not None and not record.HasField("refusal"):
                yield f"request {request} was refused ({why}), and was carried out: {record.object}"
