"""What the twin knows of usage: what was there at first was not made then, and reports are due once faults have ended."""

from __future__ import annotations

from datetime import UTC, datetime

from cairn.controller.store.base import Batch, Change
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import Observed, Report, VmReport
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.usage_pb2 import UsageClock

from tests.sim.checkers.metered import Metered
from tests.twin.punctual import LATE_S, Punctual
from tests.twin.test_patience import GUEST, batch, host, referee

NODE = "node-1"


def said(state: VmReport.State.ValueType) -> Observed:
    key = f"vm/{GUEST.id}"
    return Observed(key=key, node=NODE, report=Report(key=key, vm=VmReport(state=state)))


def test_what_was_there_when_one_began_to_look_was_not_made_then() -> None:
    found: list[str] = []
    metered = Metered()
    judge = referee(found, metered)
    clock = UsageClock()
    clock.time.FromDatetime(datetime(2030, 1, 1, tzinfo=UTC))
    records = {kinds.IMAGE.key("img-1"): Image(id="img-1"), kinds.USAGE_CLOCK.key("self"): clock}
    judge.begin_anew([metered], 5, [(key, record.SerializeToString()) for key, record in records.items()])
    assert (found, judge.unemptied()) == ([], [])
    judge.batch(batch(6, kinds.IMAGE, "img-2", Image(id="img-2")), None)
    assert found == ["metered: image/img-2 was changed and nothing says when"]
    changes = (Change(kinds.IMAGE.key("img-3"), b""), Change(kinds.USAGE_CLOCK.key("self"), clock.SerializeToString()))
    judge.batch(Batch(7, changes), None)
    assert judge.unemptied() == ["metered: image/img-3 is there and does not count"]


def test_a_report_may_be_late_while_there_are_faults_and_not_for_long_afterwards() -> None:
    found: list[str] = []
    now_s = 0.0
    punctual = Punctual(lambda: now_s)
    judge = referee(found, punctual)
    judge.host(host(NODE, GUEST))
    now_s = 1000.0
    judge.host(host(NODE, GUEST))
    punctual.calm = True
    judge.host(host(NODE, GUEST))
    now_s += LATE_S
    judge.host(host(NODE, GUEST))
    assert found == []
    judge.batch(batch(5, kinds.OBSERVED, f"{NODE}/vm/{GUEST.id}", said(VmReport.STATE_RUNNING)), None)
    judge.host(host(NODE, GUEST))
    assert (found, punctual.latest_s) == ([], LATE_S)
    judge.host(host(NODE))
    now_s += LATE_S + 1
    judge.host(host(NODE))
    assert found == [], "the next picture has to say so, too"
    judge.host(host(NODE))
    assert found == [
        f"punctual: guest {GUEST.id} is gone on {NODE}, and for more than {LATE_S:.0f} s its report says otherwise"
    ]
