"""Showing plans and placement decisions to people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cairn.controller.cli.failures import Failure
from cairn.controller.cli.output import Output
from cairn.controller.cli.values import counted


def show_plan(output: Output, answer: Any) -> None:
    """Print the plan in the answer to a validate_only call. Failure when it cannot be carried out as things are."""
    plan = answer.plan
    if output.human:
        output.lines(plan_lines(plan))
    else:
        output.one(plan, lambda _plan: ())
    if plan.HasField("decision") and not plan.decision.node:
        raise Failure(f"as things are it would run nowhere: {plan.decision.say or plan.say}")


def show_several(output: Output, answer: Any, wanted: int) -> None:
    """Print the plan for several VMs. Failure unless all of them fit."""
    plan = answer.plan
    if output.human:
        output.lines(several_lines(plan, wanted))
    else:
        output.one(plan, lambda _plan: ())
    if len(plan.parts) < wanted:
        raise Failure(f"as things are {len(plan.parts)} of {wanted} VMs would run")


def several_lines(plan: Any, wanted: int) -> Iterator[str]:
    """Yield where each would go, and how to carry it out."""
    yield plan.say
    width = max((len(part.name) for part in plan.parts), default=0)
    for part in plan.parts:
        yield f"  {part.name:<{width}}  on {part.node}"
    if plan.plan_id:
        count = f" and --count {len(plan.parts)}" if len(plan.parts) < wanted else ""
        again = f"--plan-id {plan.plan_id}{count}"
        yield f"plan {plan.plan_id}; repeat the command with {again} instead of --plan to do exactly this"


def plan_lines(plan: Any) -> Iterator[str]:
    """Yield a plan as text: the sentence, the changes with their details, the decision, and how to carry it out."""
    if plan.say:
        yield plan.say
    kinds = max((len(change.kind) for change in plan.changes), default=0)
    actions = max((len(change.action) for change in plan.changes), default=0)
    for change in plan.changes:
        named = f"{change.name} ({change.id})" if change.name and change.id != change.name else change.name or change.id
        yield f"  {change.action:<{actions}}  {change.kind:<{kinds}}  {named}".rstrip()
        yield from (f"  {'':<{actions}}  {'':<{kinds}}  - {detail}" for detail in change.details)
    if plan.HasField("decision"):
        yield from decision_lines(plan.decision, said=plan.say)
    if plan.plan_id:
        yield f"plan {plan.plan_id}; repeat the command with --plan-id {plan.plan_id} instead of --plan to do exactly this"


def decision_lines(decision: Any, *, said: str = "") -> Iterator[str]:
    """Yield a placement decision as text: the sentence, unless it was said; who was refused and why; the best scores."""
    if decision.say and decision.say not in said:
        yield decision.say
    refused = [count for count in decision.filters if count.refused]
    if decision.considered or not decision.node:
        yield f"considered {counted(decision.considered, 'node')}" + ("; refused:" if refused else ", refused none")
    width = max((len(count.name) for count in refused), default=0)
    for count in refused:
        example = f"  for example {count.example}" if count.example else ""
        yield f"  {count.name:<{width}}  {counted(count.refused, 'node')}{example}"
    if decision.top:
        yield "best scores:"
        yield from _scores(decision.top)


def _scores(top: Any) -> Iterator[str]:
    parts = sorted({name for score in top for name in score.parts})
    names = [score.node_name or score.node for score in top]
    width = max(4, *(len(name) for name in names))
    yield f"  {'NODE':<{width}}  {'TOTAL':>7}" + "".join(f"  {part:>{max(7, len(part))}}" for part in parts)
    for name, score in zip(names, top, strict=True):
        cells = "".join(f"  {score.parts.get(part, 0.0):>{max(7, len(part))}.3f}" for part in parts)
        yield f"  {name:<{width}}  {score.total:>7.3f}{cells}"
