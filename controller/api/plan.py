"""Plans: what a mutation would do, found out by running the deciding code on a forked view.

    txn = decide(view)                         the API's own part
    view' = view.fork(txn)
    repeat: the reconcilers for the touched keys run on view' and their transactions are merged, until they have nothing to do
    store PlanRecord{merged transaction}       leased, 10 minutes

Applying a plan commits exactly the stored transaction with the checks it was decided on, so it either does what was shown
or is refused with ABORTED. A plan for several is one such record each, decided on what those before it leave: what these
write is checked by its value, since its revision is not known yet. Reconcilers are pure functions of a view, so planning
cannot touch anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from cairn.controller.api import nouns
from cairn.controller.api.decision import Decide, Decided, Views
from cairn.controller.model.permits import Caller
from cairn.controller.model.prices import about, held
from cairn.controller.model.quotas import amount_text, asked, limits, quota_id
from cairn.controller.model.usage_days import us_of
from cairn.controller.model.where import explained, where
from cairn.controller.reconcilers.base import Reconciler
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.retention import PLAN_KEEP_S, Retention
from cairn.controller.store.base import Gathering, Put, Store, Txn, View
from cairn.controller.store.view import Fork
from cairn.controller.words import several, size
from cairn.proto import kinds
from cairn.proto.addresses import addresses_of
from cairn.proto.errors import Invalid, Overtaken
from cairn.proto.seams import Clock, Ids, moment, timestamp
from cairn.proto.v1.cluster_pb2 import PlanRecord, StoredTxn
from cairn.proto.v1.common_pb2 import Plan, PlannedChange

# Key -> (its revision before, and after).
Touched: TypeAlias = Mapping[str, tuple[int, int]]
ROUNDS_MAX: Final = 8


def stored(txn: Txn) -> StoredTxn:
    """Return a transaction as a message."""
    result = StoredTxn(checks=txn.checks)
    for key, put in sorted(txn.puts.items()):
        result.writes.add(key=key, value=put.value, lease=put.lease, writer=txn.writers[key])
    for key in sorted(txn.deletes):
        result.writes.add(key=key, writer=txn.writers[key])
    return result


def restored(message: StoredTxn) -> Txn:
    """Return the transaction of a message."""
    txn = Txn("api", checks=dict(message.checks))
    for write in message.writes:
        if write.HasField("value"):
            txn.puts[write.key] = Put(write.value, write.lease)
        else:
            txn.deletes.add(write.key)
        txn.writers[write.key] = write.writer
    return txn


def consequences(view: View, txn: Txn, now: datetime, reconcilers: Sequence[Reconciler]) -> tuple[Txn, View]:
    """Return (txn merged with all the reconcilers would add, the view after it)."""
    after = view.fork(txn)
    concerned = _concerned(after, txn, reconcilers)
    for _ in range(ROUNDS_MAX):
        added = False
        for reconciler, key in concerned:
            outcome = reconciler.reconcile(after, key, now)
            if outcome.txn is not None and outcome.txn:
                after = after.fork(outcome.txn)
                txn.merge(outcome.txn)
                added = True
        if not added:
            break
    return txn, after


def _concerned(view: View, txn: Txn, reconcilers: Sequence[Reconciler]) -> list[tuple[Reconciler, str]]:
    """Return what reconcilers look at since a transaction's keys changed; what follows for others is not in the plan."""
    changed = [kinds.split(key) for key in (*txn.puts, *txn.deletes)]
    return [
        (reconciler, key)
        for reconciler in reconcilers
        for key in dict.fromkeys(
            key for kind, id in changed if kind in reconciler.reads for key in reconciler.keys(view, kind, id)
        )
    ]


class Planner:
    """Makes and recalls plans."""

    def __init__(self, store: Store, views: Views, clock: Clock, ids: Ids) -> None:
        self._store, self._views, self._clock, self._ids = store, views, clock, ids
        # What a plan shows: addresses first, then places.
        self._reconcilers: tuple[Reconciler, ...] = (Ports(), Placements())
        self._retention = Retention(store, PLAN_KEEP_S)

    def plan(
        self, view: View, caller: Caller, method: str, digest: bytes, decided: Decided[Any], *, id: str = ""
    ) -> tuple[Any, PlanRecord]:
        """Return the object as it would be, with its plan, and the plan to keep. id: its own, when it is one of several."""
        now = self._clock.now()
        txn, after = consequences(view, decided.txn, now, self._reconcilers)
        id = id or self._ids.new(kinds.PLAN.id_prefix)
        plan = Plan(plan_id=id, expire_time=timestamp(now + timedelta(seconds=PLAN_KEEP_S)))
        self._describe(plan, view, after, txn, decided)
        record = PlanRecord(
            plan_id=plan.plan_id,
            method=method,
            fingerprint=digest,
            transaction=stored(txn).SerializeToString(deterministic=True),
            object=f"{decided.noun.kind.name}/{decided.id}",
            expire_time=plan.expire_time,
            caller=caller.uri,
            token=caller.token,
        )
        answer: Any = decided.erased
        if answer is None:
            answer = decided.noun.of(after, decided.id)
        else:
            record.answer = answer.SerializeToString(deterministic=True)
        answer.plan.CopyFrom(plan)
        return answer, record

    def several(
        self, view: View, caller: Caller, method: str, parts: Sequence[tuple[bytes, Decide[Any]]]
    ) -> tuple[Any, list[PlanRecord]]:
        """Plan one after the other, each (digest, decide) on what those before it leave, up to the first that fits nowhere.

        Return the first object, whose plan lists the parts, and the plans to keep: none when not even the first fits. Raises
        what deciding raises.
        """
        after, batch = view, self._ids.new(kinds.PLAN.id_prefix)
        left: dict[str, bytes] = {}
        first: Any = None
        records: list[PlanRecord] = []
        for number, (digest, decide) in enumerate(parts, 1):
            id = f"{batch}-{number}"
            answer, record = self.plan(after, caller, method, digest, decide(after, caller), id=id)
            first = answer if first is None else first
            if not answer.status.node:
                first.plan.say = _fitting(len(records), len(parts), answer)
                break
            txn = _chain(record, left)
            if isinstance(after, Fork):
                after.extend(txn)
            else:
                after = after.fork(txn)
            left |= {key: hashlib.sha256(put.value).digest() for key, put in txn.puts.items()}
            records.append(record)
            first.plan.parts.add(plan_id=id, id=answer.id, name=answer.name, node=answer.status.node)
        else:
            first.plan.say = _fitting(len(records), len(parts), first)
        first.plan.plan_id = batch if records else ""
        return first, records

    async def keep(self, *records: PlanRecord) -> None:
        """Store plans until they expire. Raises StoreError."""
        gathering = Gathering(Txn("api"))
        for record in records:
            lease = await self._retention.lease()
            part = Txn("api").create(kinds.PLAN, record.plan_id, record, lease=lease)
            if not gathering.add(part):
                await self._store.commit(gathering.txn)
                gathering = Gathering(Txn("api"))
                gathering.add(part)
        if gathering.txn:
            await self._views.wait_for(await self._store.commit(gathering.txn))

    def recall(self, view: View, caller: Caller, plan_id: str, digest: bytes, touched: Touched) -> Decided[Any]:
        """Return a stored plan as a decision. Raises Overtaken: it is over, or not his; Invalid: for another request."""
        record = view.record(kinds.PLAN, plan_id)
        if record is not None and (record.message.caller, record.message.token) != (caller.uri, caller.token):
            record = None
        if record is None or moment(record.message.expire_time) <= self._clock.now():
            raise Overtaken(f"plan {plan_id!r} is unknown, used or older than {PLAN_KEEP_S / 60:.0f} minutes: plan again")
        if record.message.fingerprint != digest:
            raise Invalid("plan_id", f"{plan_id} was made for another request; repeat that one, or plan again")
        txn = restored(StoredTxn.FromString(record.message.transaction))
        for key, (before, after) in touched.items():
            if txn.checks.get(key) == before:
                txn.checks[key] = after
        as_left = all(_digest(view, key) == digest for key, digest in record.message.left.items())
        txn.checks.update({key: view.revision_of(*kinds.split(key)) for key in record.message.left})
        if not as_left or not all(view.revision_of(*kinds.split(key)) == revision for key, revision in txn.checks.items()):
            raise Overtaken(f"plan {plan_id} no longer applies: something it was decided on has changed; plan again")
        txn.check(kinds.PLAN, plan_id, record.mod_revision).delete(kinds.PLAN, plan_id)
        kind, _, id = record.message.object.partition("/")
        noun = nouns.BY_KIND[kind]
        erased = noun.kind.message.FromString(record.message.answer) if record.message.HasField("answer") else None
        return Decided(txn, noun, id, erased=erased)

    def _describe(self, plan: Plan, view: View, after: View, txn: Txn, decided: Decided[Any]) -> None:
        """Fill in the changes, the decision and the sentence."""
        for key in sorted([*txn.puts, *txn.deletes], key=_order):
            kind, id = kinds.split(key)
            noun = nouns.BY_KIND.get(kind.name)
            if noun is None or noun is nouns.EVENT:
                continue
            was, will = view.get(kind, id), after.get(kind, id)
            shown: Any = will if will is not None else was
            gone = will is None or (will.HasField("delete_time") and not (was is not None and was.HasField("delete_time")))
            action = "delete" if gone else ("update" if was is not None else "create")
            plan.changes.add(action=action, kind=kind.name, id=id, name=shown.name, details=details(after, kind.name, shown))
        plan.changes.extend(_takes(view, decided.txn))
        plan.changes.extend(_costs(view, decided.txn, self._clock.now()))
        # The view after it has the whole decision, when the plan is what makes it.
        decision, node = explained(after, decided.id, after.get(kinds.DECISION, decided.id)), where(after, decided.id).owner
        if decision is not None and decision != explained(view, decided.id, None):
            plan.decision.CopyFrom(decision)
            if node:
                details_ = [f"on {decision.node_name or node}"]
                plan.changes.add(action="place", kind="vm", id=decided.id, name=decided.name, details=details_)
        plan.say = plan.decision.say or _summary(plan)


def _takes(view: View, txn: Txn) -> Iterator[PlannedChange]:
    """Yield what a plan takes of what is limited."""
    for project, more in sorted(asked(view, txn).items()):
        bounds, used = limits(view, project), view.amounts(project)
        taken = [
            f"{amount_text(name, amount)} {name}, then {amount_text(name, used.get(name, 0) + amount)}"
            f" of {amount_text(name, bounds[name])}"
            for name, amount in sorted(more.items())
            if amount > 0 and name in bounds
        ]
        if taken:
            found = view.get(kinds.PROJECT, project)
            name = found.name if found is not None else project
            yield PlannedChange(action="allocate", kind="quota", id=quota_id(project), name=name, details=taken)


def _costs(view: View, txn: Txn, now: datetime) -> Iterator[PlannedChange]:
    """Yield what a plan costs, or saves, where a price list holds."""
    for project, more in sorted(asked(view, txn).items()):
        prices = held(view).list_at(project, us_of(now))
        if prices is not None and (say := about(prices, more)):
            yield PlannedChange(action="cost", kind="price_list", id=prices.id, name=prices.name, details=[say])


def _chain(record: PlanRecord, left: Mapping[str, bytes]) -> Txn:
    """Return a plan's transaction; what it checks that the plans before it write is asked for by value, not by revision."""
    message = StoredTxn.FromString(record.transaction)
    for key in left.keys() & message.checks.keys():
        record.left[key] = left[key]
        del message.checks[key]
    record.transaction = message.SerializeToString(deterministic=True)
    return restored(message)


def _digest(view: View, key: str) -> bytes:
    kind, id = kinds.split(key)
    found = view.get(kind, id)
    return hashlib.sha256(found.SerializeToString(deterministic=True)).digest() if found is not None else b""


def _fitting(count: int, wanted: int, last: Any) -> str:
    if count == wanted:
        return f"all {wanted} fit"
    return f"{count} of {wanted} fit; {last.name}: {last.plan.say}"


def _order(key: str) -> tuple[int, str]:
    kind, id = kinds.split(key)
    order = [noun.kind.name for noun in (nouns.VPC, nouns.SUBNET, nouns.VM, nouns.VOLUME, nouns.PORT)]
    return (order.index(kind.name) if kind.name in order else len(order), id)


def _summary(plan: Plan) -> str:
    if not plan.changes:
        return "nothing would change"
    return "would " + ", ".join(f"{change.action} {change.kind} {change.name or change.id}" for change in plan.changes)


def details(view: View, kind: str, message: Any) -> list[str]:
    """Return what a planned object amounts to, in a few words each."""
    spec = message.spec
    if kind == "vm":
        return [f"{several(spec.cpus, 'CPU')}, {size(spec.memory_bytes)} of memory"]
    if kind == "volume":
        return [f"disk {size(spec.size_bytes)}"]
    if kind == "port":
        binding = view.get(kinds.PORT_BINDING, message.id)
        if binding is None:
            return []
        return [f"address {each}" for each in addresses_of(binding)] or [f"no address: {binding.error}"]
    if kind in ("vpc", "subnet"):
        return [f"cidr {spec.cidr}", f"vni {spec.vni}"]
    return []
