"""cairn vm create: one VM or several alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_option
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import perform
from cairn.controller.cli.output import Progress
from cairn.controller.cli.plan import show_several
from cairn.controller.cli.values import PAIR, SIZE
from cairn.controller.cli.vm_noun import NOUN, RUNNING, STOPPED
from cairn.controller.cli.waiting import wait_for

if TYPE_CHECKING:
    from cairn.proto.v1.vm_pb2 import VmSpec

USER_DATA_BYTES_MAX: Final = 64 << 10
COUNT_MAX: Final = 1000
CREATING_AT_ONCE: Final = 32


@click.argument("name")
@click.option("--cpus", type=click.IntRange(1, 64), default=1, show_default=True, help="Virtual CPUs.")
@click.option("--memory", type=SIZE, default="1GiB", show_default=True, help="Memory.")
@name_option("--image", "image", required=True, help="What its root disk starts from.")
@click.option("--disk", type=SIZE, metavar="20GiB", help="Size of its root disk; the image's unless given.")
@name_option("--subnet", "subnet", multiple=True, metavar="S[=IP]", help="Plug it into a subnet; may be repeated.")
@name_option("--volume", "volume", multiple=True, help="Attach a data volume; may be repeated.")
@click.option("--ssh-key", multiple=True, metavar="FILE|KEY", help="OpenSSH public key for its user; may be repeated.")
@click.option("--user-data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="cloud-init user data.")
@name_option("--node", "node", default="", help="Place it on this node or nowhere.")
@click.option("--node-label", type=PAIR, multiple=True, help="Label its node must carry; may be repeated.")
@click.option("--volume-type", default="", metavar="T", help="Type of pool its root disk goes in; local unless given.")
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), help="Architecture; the image's unless given.")
@click.option("--restart", type=click.Choice(["on-failure", "always", "never"]), help="When to start it again by itself.")
@click.option("--ha", is_flag=True, hidden=True, help="Refused: nothing restarts a VM on another node by itself yet.")
@click.option("--stopped", is_flag=True, help="Do not start it.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
@click.option("--count", type=click.IntRange(1, COUNT_MAX), default=1, help="Make NAME-1 to NAME-N, all alike.")
async def create(session: Session, name: str, count: int, label: Sequence[tuple[str, str]], **options: Any) -> None:
    """Make a VM and wait until it runs."""
    spec = spec_of(**options)
    names = [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
    goal = STOPPED if options["stopped"] else RUNNING
    if count == 1:
        await perform(session, NOUN, _request(session, name, label, spec), goal)
        return
    if session.settings.plan:
        show_several(session.output, await session.call("vm", _request(session, name, label, spec, count=count)), count)
        return
    batch = session.settings.plan_id
    # The parts of a plan are applied in their order: each stands on what those before it left.
    gate = asyncio.Semaphore(1 if batch else CREATING_AT_ONCE)

    async def one(each: str, progress: Progress) -> Any:
        async with gate:
            request = _request(session, each, label, spec)
            request.plan_id = f"{batch}-{each.rpartition('-')[2]}" if batch else ""
            vm = await session.call("vm", request)
        if not session.settings.wait:
            return vm
        return await wait_for(session, NOUN, vm, goal, lambda say: progress.update(f"VM {each}: {say}"))

    with session.output.progress() as progress:
        results = await asyncio.gather(*(one(each, progress) for each in names), return_exceptions=True)
    made, failures = _sorted_out(names, results)
    if made:
        session.output.made(NOUN.columns, made)
    if failures:
        raise _together(failures, count)


def add_create(group: NounGroup) -> None:
    """Add the verb."""
    group.verb("create", changes=True)(create)


def _request(session: Session, name: str, label: Sequence[tuple[str, str]], spec: VmSpec, *, count: int = 0) -> Any:
    from cairn.proto.v1.vm_pb2 import CreateVmRequest, Vm

    return CreateVmRequest(vm=Vm(name=name, project=session.project, labels=dict(label), spec=spec), count=count)


def spec_of(
    *,
    cpus: int,
    memory: int,
    image: str,
    disk: int | None,
    subnet: Sequence[str],
    volume: Sequence[str],
    ssh_key: Sequence[str],
    user_data: Path | None,
    node: str,
    node_label: Sequence[tuple[str, str]],
    volume_type: str,
    arch: str | None,
    restart: str | None,
    ha: bool,
    stopped: bool,
) -> VmSpec:
    """Return the spec the options ask for."""
    from cairn.proto.v1 import vm_pb2

    policy = f"RESTART_POLICY_{(restart or 'unspecified').upper().replace('-', '_')}"
    power = vm_pb2.POWER_STATE_STOPPED if stopped else vm_pb2.POWER_STATE_RUNNING
    spec = vm_pb2.VmSpec(
        cpus=cpus, memory_bytes=memory, image=image, arch=arch or "", volumes=volume, node=node, volume_type=volume_type,
        ssh_keys=[_ssh_key(each) for each in ssh_key], node_selector=dict(node_label), high_availability=ha, power_state=power,
        restart_policy=vm_pb2.RestartPolicy.Value(policy), user_data=_user_data(user_data),
    )  # fmt: skip
    if disk is not None:
        spec.root_disk_bytes = disk
    for each in subnet:
        where, _, address = each.partition("=")
        # Both fields: controllers of the release before know the first.
        spec.nics.add(subnet=where, address=address, addresses=[address] if address else [])
    return spec


def _ssh_key(value: str) -> str:
    """Return a public key given as such, or as a file."""
    if value.startswith(("ssh-", "ecdsa-", "sk-")):
        return value.strip()
    try:
        text = Path(value).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"--ssh-key {value}: neither an OpenSSH public key nor a readable file", usage=True) from error
    if "PRIVATE KEY" in text:
        raise Failure(f"--ssh-key {value} is a private key; give the public one, {value}.pub", usage=True)
    return text


def _user_data(path: Path | None) -> bytes:
    if path is None:
        return b""
    if path.stat().st_size > USER_DATA_BYTES_MAX:
        raise Failure(f"--user-data {path} is larger than {USER_DATA_BYTES_MAX >> 10} KiB", usage=True)
    return path.read_bytes()


def _sorted_out(names: Sequence[str], results: Sequence[Any]) -> tuple[list[Any], list[tuple[str, Failure]]]:
    """Return (VMs, failures by name); anything else that was raised is raised."""
    made: list[Any] = []
    failures: list[tuple[str, Failure]] = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, Failure):
            failures.append((name, result))
        elif isinstance(result, BaseException):
            raise result
        else:
            made.append(result)
    return made, failures


def _together(failures: Sequence[tuple[str, Failure]], count: int) -> Failure:
    """Return one failure for many; its code is theirs when they agree."""
    codes = {failure.code for _, failure in failures}
    lines = [f"{name}: {failure.say}" for name, failure in failures]
    first = failures[0][1]
    whole = Failure(f"{len(failures)} of {count} VMs did not get there", lines=lines, next=first.next)
    if len(codes) == 1:
        whole.code = first.code
    return whole
