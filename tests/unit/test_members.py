"""Which controllers are expected, and who is missed: reconcilers/members.py, and what `cairn cluster status` makes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cairn.controller.api.cluster import missing_controllers, sentence
from cairn.controller.reconcilers.members import BACK, MISSING, MISSING_AFTER, Members
from cairn.controller.store.base import Txn
from cairn.controller.store.view import LiveView
from cairn.proto import kinds
from cairn.proto.v1.cluster_pb2 import ControllerMember, ControllerSession, GetClusterStatusResponse

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SESSION = ControllerSession(name="c1", endpoints=["192.0.2.1:7443"], version="1.2")


class Site:
    """A view that what is decided is put into."""

    def __init__(self) -> None:
        self.view, self.members = LiveView(), Members()

    def there(self, *, there: bool = True, version: str = "1.2") -> None:
        session = ControllerSession()
        session.CopyFrom(SESSION)
        session.version = version
        txn = Txn("peers")
        self.view = self.view.fork(txn.put(kinds.CONTROLLER, "c1", session) if there else txn.delete(kinds.CONTROLLER, "c1"))

    def look(self, after: timedelta = timedelta()) -> object:
        outcome = self.members.reconcile(self.view, "c1", NOW + after)
        if outcome.txn is not None:
            self.view = self.view.fork(outcome.txn)
        return outcome

    @property
    def member(self) -> ControllerMember | None:
        return self.view.get(kinds.CONTROLLER_MEMBER, "c1")


def test_who_was_there_is_expected_and_missed_after_a_while() -> None:
    site = Site()
    site.there()
    site.look()
    assert site.member == ControllerMember(name="c1", endpoints=["192.0.2.1:7443"], version="1.2")
    assert site.look().txn is None, "nothing to write again"
    site.there(there=False)
    away = site.look(timedelta(seconds=100))
    assert away.txn is None
    assert away.again_after_s == MISSING_AFTER.total_seconds()
    gone = site.look(timedelta(seconds=100) + MISSING_AFTER)
    assert [event.reason for event in gone.events] == [MISSING]
    assert site.member.missing_time.ToDatetime(UTC) == NOW + timedelta(seconds=100)
    assert site.look(timedelta(hours=1)).txn is None, "told once"
    site.there(version="1.3")
    assert [event.reason for event in site.look(timedelta(hours=2)).events] == [BACK]
    assert site.member == ControllerMember(name="c1", endpoints=["192.0.2.1:7443"], version="1.3")


def test_a_restart_writes_nothing() -> None:
    site = Site()
    site.there()
    site.look()
    site.there(there=False)
    site.look()
    site.there()
    assert site.look(timedelta(seconds=10)).txn is None
    site.there(there=False)
    assert site.look(timedelta(seconds=20)).again_after_s == MISSING_AFTER.total_seconds(), "counted anew"


def test_a_clock_that_jumps_back_does_not_keep_it_waiting() -> None:
    site = Site()
    site.there()
    site.look()
    site.there(there=False)
    site.look(timedelta(hours=5))
    assert site.look().again_after_s == MISSING_AFTER.total_seconds()
    assert site.look(MISSING_AFTER).txn is not None


def test_status_says_who_is_missing_since_when_and_what_to_do() -> None:
    site = Site()
    site.there()
    site.look()
    assert list(missing_controllers(site.view)) == []
    site.there(there=False)
    (just,) = missing_controllers(site.view)
    assert not just.HasField("since_time"), "known at once, the time follows"
    site.look()
    site.look(MISSING_AFTER)
    answer = GetClusterStatusResponse(nodes_ready=1, controllers_missing=missing_controllers(site.view))
    assert "controller c1 is missing since 2026-01-01 00:00 UTC" in sentence(answer)
    assert "`cairn cluster retire c1`" in sentence(answer)
