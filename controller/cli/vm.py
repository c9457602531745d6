"""cairn vm: the verbs. Creating is in vm_create.py, the console in console.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Exit, Failure
from cairn.controller.cli.noun import Noun, add_delete, add_list, add_show, add_simple, perform, settle
from cairn.controller.cli.output import Column, Detail, Section
from cairn.controller.cli.plan import decision_lines
from cairn.controller.cli.values import SIZE, counted, size_text, state_text
from cairn.controller.cli.waiting import Goal

RUNNING = Goal("running", frozenset({"RUNNING"}))
STOPPED = Goal("stopped", frozenset({"STOPPED"}))
SETTLED = Goal("settled", frozenset({"RUNNING", "STOPPED"}))
GONE = Goal("gone", frozenset({"DELETED"}), gone=True)
GOALS = {"running": RUNNING, "stopped": STOPPED, "settled": SETTLED, "deleted": GONE}


def _addresses(vm: Any) -> str:
    return ",".join(nic.address for nic in vm.status.nics if nic.address)


def _details(vm: Any) -> Iterable[Detail]:
    spec, status = vm.spec, vm.status
    yield "Node", status.node
    yield "Size", f"{counted(spec.cpus, 'cpu')}, {size_text(spec.memory_bytes)} memory"
    yield "Image", f"{status.image_name} ({spec.image})" if status.image_name else spec.image
    yield "Architecture", spec.arch
    yield "Runs by", status.accelerator
    yield (
        "Root disk",
        " ".join(filter(None, [spec.root_volume, size_text(spec.root_disk_bytes) if spec.root_disk_bytes else ""])),
    )
    yield "Volumes", list(spec.volumes)
    rows = [(nic.subnet_name or nic.subnet, f"{nic.address or 'no address yet'}  {nic.mac}  {nic.port}") for nic in status.nics]
    yield Section("Network", rows)
    yield "Only on node", spec.node
    yield "Needs labels", [f"{key}={value}" for key, value in sorted(spec.node_selector.items())]
    yield "Highly available", "yes" if spec.high_availability else ""
    yield "Started", status.start_time


NOUN = Noun(
    "vm",
    "vms",
    "VM",
    columns=[
        Column("NAME", lambda vm: vm.name),
        Column("ID", lambda vm: vm.id),
        Column("STATE", lambda vm: state_text(vm.status)),
        Column("NODE", lambda vm: vm.status.node),
        Column("ADDRESS", _addresses),
        Column("CPUS", lambda vm: vm.spec.cpus, right=True),
        Column("MEMORY", lambda vm: size_text(vm.spec.memory_bytes), right=True),
        Column("AGE", lambda vm: vm.create_time),
        Column("IMAGE", lambda vm: vm.status.image_name, wide=True),
        Column("ARCH", lambda vm: vm.spec.arch, wide=True),
        Column("SAYS", lambda vm: vm.status.say, wide=True),
    ],
    details=_details,
    soft_delete=True,
)
group = NounGroup("vm", "Virtual machines.")
add_list(group, NOUN)
add_show(group, NOUN)
add_simple(group, NOUN, "start", "Start a stopped VM.", RUNNING)
add_delete(group, NOUN)
add_simple(group, NOUN, "undelete", "Bring a deleted VM back; take its id, the name may be used again.", SETTLED)


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
    """Reboot a VM."""
    await perform(session, NOUN, NOUN.request("RebootVm", id=name, force=force), RUNNING)


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
    elif decision.node:
        yield f"{answer.vm_name} ({answer.vm}) was placed on {decision.node_name} ({decision.node})"
    else:
        yield f"{answer.vm_name} ({answer.vm}) is on no node"
    if answer.HasField("decision"):
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


@group.verb("console")
@name_argument("vm")
async def console(session: Session, name: str) -> None:
    """Talk to a VM over its serial console. Ctrl-] leaves."""
    from cairn.controller.cli.console import Console

    vm = await NOUN.get(session, name)
    await Console(session, vm).run()


from cairn.controller.cli import vm_create  # noqa: E402, F401 - adds `create` to the group
