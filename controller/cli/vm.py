"""cairn vm: the verbs. What they are about is in vm_noun.py, creating in vm_create.py, the console in console.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Exit, Failure
from cairn.controller.cli.noun import (
    add_delete,
    add_label,
    add_list,
    add_rename,
    add_show,
    add_simple,
    add_undelete,
    perform,
    settle,
)
from cairn.controller.cli.plan import decision_lines
from cairn.controller.cli.values import PAIR, SIZE
from cairn.controller.cli.vm_create import add_create
from cairn.controller.cli.vm_noun import GOALS, NOUN, REBOOTED, RUNNING, SETTLED, STOPPED

group = NounGroup("vm", "Virtual machines.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)
add_simple(group, NOUN, "start", "Start a stopped VM.", RUNNING)
add_delete(group, NOUN)
add_undelete(group, NOUN, SETTLED)


@group.verb("stop", changes=True)
@name_argument("vm")
@click.option("--force", is_flag=True, help="Cut the power instead of asking the guest.")
async def stop(session: Session, name: str, force: bool) -> None:
    """Stop a VM."""
    await perform(session, NOUN, NOUN.request("StopVm", id=name, force=force), STOPPED)


@group.verb("reboot", changes=True)
@name_argument("vm")
@click.option("--force", is_flag=True, help="Cut the power instead of asking the guest.")
async def reboot(session: Session, name: str, force: bool) -> None:
    """Reboot a VM and wait until its guest begins anew; exit code 1 when it lets the request pass."""
    await perform(session, NOUN, NOUN.request("RebootVm", id=name, force=force), REBOOTED)


@group.verb("resize", changes=True)
@name_argument("vm")
@click.option("--cpus", type=click.IntRange(1, 64), help="Virtual CPUs.")
@click.option("--memory", type=SIZE, metavar="2GiB", help="Memory.")
async def resize(session: Session, name: str, cpus: int | None, memory: int | None) -> None:
    """Change CPUs and memory of a VM; a running guest sees it after its next start."""
    mask = [path for path, value in (("spec.cpus", cpus), ("spec.memory_bytes", memory)) if value is not None]
    if not mask:
        raise Failure("nothing to change: give --cpus or --memory", usage=True)

    def change(vm: Any) -> None:
        if cpus is not None:
            vm.spec.cpus = cpus
        if memory is not None:
            vm.spec.memory_bytes = memory

    await NOUN.update(session, name, change, mask, SETTLED)


@group.verb("set", changes=True)
@name_argument("vm")
@click.option("--restart", type=click.Choice(["on-failure", "always", "never"]), help="When to start it again by itself.")
@click.option("--node-label", type=PAIR, multiple=True, help="Label its node must carry from its next placement on.")
@click.option("--no-node-labels", is_flag=True, help="Any node will do.")
async def set_policy(
    session: Session, name: str, restart: str | None, node_label: Sequence[tuple[str, str]], no_node_labels: bool
) -> None:
    """Change what is to happen to a VM: when it is started again, and which nodes it may be placed on."""
    from cairn.proto.v1.vm_pb2 import RestartPolicy

    mask = ["spec.restart_policy"] if restart else []
    mask += ["spec.node_selector"] if node_label or no_node_labels else []
    if not mask:
        raise Failure("nothing to change: give --restart, --node-label or --no-node-labels", usage=True)

    def change(vm: Any) -> None:
        if restart:
            vm.spec.restart_policy = RestartPolicy.Value(f"RESTART_POLICY_{restart.upper().replace('-', '_')}")
        if node_label or no_node_labels:
            vm.spec.node_selector.clear()
            vm.spec.node_selector.update(dict(node_label))

    await NOUN.update(session, name, change, mask, None)


@group.verb("wait")
@name_argument("vm")
@click.option("--for", "state", type=click.Choice(list(GOALS)), default="running", show_default=True, help="State to wait for.")
async def wait(session: Session, name: str, state: str) -> None:
    """Wait until a VM is in a state; exit code 3 when --timeout runs out first."""
    goal = GOALS[state]
    try:
        vm = await NOUN.get(session, name)
    except Failure as failure:
        if goal.gone and failure.code is Exit.NOT_FOUND:
            return
        raise
    session.settings.wait = True
    result = await settle(session, NOUN, vm, goal)
    if not goal.gone:
        session.output.made(NOUN.columns, [result])


@group.verb("explain")
@name_argument("vm")
async def explain(session: Session, name: str) -> None:
    """Tell why a VM is where it is, or why it is nowhere."""
    answer = await session.call("vm", NOUN.request("ExplainVm", id=name))
    if session.output.human:
        session.output.lines(explain_lines(answer))
    else:
        session.output.one(answer, lambda _answer: ())


def explain_lines(answer: Any) -> Iterator[str]:
    """Yield the answer to ExplainVm as text."""
    decision = answer.decision
    if not answer.HasField("decision"):
        yield f"{answer.vm_name} ({answer.vm}): where it goes has not been decided yet"
    elif not decision.considered:
        # Who may not see nodes is told no more.
        yield f"{answer.vm_name} ({answer.vm}): {decision.say}"
    elif decision.node:
        yield f"{answer.vm_name} ({answer.vm}) was placed on {decision.node_name} ({decision.node})"
    else:
        yield f"{answer.vm_name} ({answer.vm}) is on no node"
    if decision.considered:
        yield from decision_lines(decision)
    if answer.say:
        yield f"now: {answer.say}"


@group.verb("events")
@name_argument("vm")
@click.option("--follow", is_flag=True, help="Go on showing them until interrupted.")
async def events(session: Session, name: str, follow: bool) -> None:
    """List what happened to a VM in the last 24 hours."""
    from cairn.controller.cli.event import show_events

    vm = await NOUN.get(session, name)
    await show_events(session, f'object = "{vm.id}"', follow=follow)


@group.verb("history")
@name_argument("vm")
async def history(session: Session, name: str) -> None:
    """Tell who changed a VM, when, and what it was before; also of one that was erased."""
    from cairn.controller.cli.audit import all_of, history_lines
    from cairn.proto.v1.audit_pb2 import ListAuditsRequest

    try:
        ids = [(await NOUN.get(session, name)).id]
    except Failure as failure:
        if failure.status != "NOT_FOUND":
            raise
        # Of what is erased the audit alone knows: of all that had that name.
        named = await all_of(session, ListAuditsRequest(object=name, project=session.project, done=True))
        ids = list(dict.fromkeys(audit.object.partition("/")[2] for audit in named if audit.object.startswith("vm/")))
        if not ids:
            raise
        session.output.say(f"there is no VM {name} now; on record is {', '.join(ids)}")
    for id in ids:
        session.output.lines(history_lines(await all_of(session, ListAuditsRequest(object=id, done=True))))


@group.verb("console")
@name_argument("vm")
async def console(session: Session, name: str) -> None:
    """Talk to a VM over its serial console. Ctrl-] leaves."""
    from cairn.controller.cli.console import Console

    vm = await NOUN.get(session, name)
    await Console(session, vm).run()


add_create(group)
