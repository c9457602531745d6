"""cairn volume."""

from __future__ import annotations

from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument, name_option
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_rename, add_show, add_undelete, perform
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import PAIR, SIZE, size_text, state_text
from cairn.controller.cli.waiting import Goal

SETTLED = frozenset({"AVAILABLE", "ATTACHED"})
NOUN = Noun(
    "volume",
    "volumes",
    "volume",
    columns=[
        Column("NAME", lambda volume: volume.name),
        Column("ID", lambda volume: volume.id),
        Column("STATE", lambda volume: state_text(volume.status)),
        Column("SIZE", lambda volume: size_text(volume.spec.size_bytes), right=True),
        Column("VM", lambda volume: volume.status.vm_name or volume.spec.vm),
        Column("NODE", lambda volume: volume.status.node),
        Column("AGE", lambda volume: volume.create_time),
        Column("TYPE", lambda volume: volume.spec.type, wide=True),
        Column("POOL", lambda volume: volume.status.pool, wide=True),
        Column("USED", lambda volume: size_text(volume.status.used_bytes), wide=True, right=True),
        Column("BOOT", lambda volume: "yes" if volume.spec.boot else "no", wide=True),
        Column("SAYS", lambda volume: volume.status.say, wide=True),
    ],
    details=lambda volume: [
        ("Size", size_text(volume.spec.size_bytes)),
        ("Takes", size_text(volume.status.used_bytes) if volume.status.used_bytes else ""),
        ("Type", volume.spec.type),
        ("Pool", volume.status.pool),
        ("VM", f"{volume.status.vm_name} ({volume.spec.vm})" if volume.spec.vm else ""),
        ("Node", volume.status.node),
        ("Image", volume.spec.image),
        ("With its VM", "erased together" if volume.spec.delete_with_vm else ""),
    ],
    soft_delete=True,
)
group = NounGroup("volume", "Block devices that outlive the VM they are attached to.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)
add_delete(group, NOUN)
add_undelete(group, NOUN, Goal("back", SETTLED))


@group.verb("create", changes=True)
@click.argument("name")
@click.option("--size", type=SIZE, required=True, metavar="10GiB", help="How large.")
@click.option("--type", "type_", default="", metavar="T", help="Type of pool it goes in; local unless given.")
@name_option("--from-image", "image", default="", help="Start as a copy of an image.")
@name_option("--vm", "vm", default="", help="Attach it to this VM at once.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def create(
    session: Session, name: str, size: int, type_: str, from_image: str, vm: str, label: tuple[tuple[str, str], ...]
) -> None:
    """Make a volume."""
    from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, Volume, VolumeSpec

    spec = VolumeSpec(size_bytes=size, type=type_, image=from_image, vm=vm)
    volume = Volume(name=name, project=session.project, labels=dict(label), spec=spec)
    await perform(session, NOUN, CreateVolumeRequest(volume=volume), Goal("ready", SETTLED))


@group.verb("resize", changes=True)
@name_argument("volume")
@click.option("--size", type=SIZE, required=True, metavar="20GiB", help="The new size; volumes only grow.")
async def resize(session: Session, name: str, size: int) -> None:
    """Grow a volume."""

    def grow(volume: Any) -> None:
        volume.spec.size_bytes = size

    await NOUN.update(session, name, grow, ["spec.size_bytes"], Goal("grown", SETTLED))


@group.verb("set", changes=True)
@name_argument("volume")
@click.option("--with-vm/--on-its-own", "with_vm", default=None, help="Whether it is erased together with its VM.")
async def set_policy(session: Session, name: str, with_vm: bool | None) -> None:
    """Change what is to happen to a volume when its VM is erased."""
    if with_vm is None:
        raise Failure("nothing to change: give --with-vm or --on-its-own", usage=True)

    def change(volume: Any) -> None:
        volume.spec.delete_with_vm = with_vm

    await NOUN.update(session, name, change, ["spec.delete_with_vm"], None)


@group.verb("attach", changes=True)
@name_argument("volume")
@name_option("--vm", "vm", required=True, help="VM that gets it.")
async def attach(session: Session, name: str, vm: str) -> None:
    """Attach a volume to a VM, running or not."""

    def put(volume: Any) -> None:
        volume.spec.vm = vm

    await NOUN.update(session, name, put, ["spec.vm"], Goal("attached", frozenset({"ATTACHED"})))


@group.verb("detach", changes=True)
@name_argument("volume")
async def detach(session: Session, name: str) -> None:
    """Detach a volume from its VM."""

    def take(volume: Any) -> None:
        volume.spec.vm = ""

    await NOUN.update(session, name, take, ["spec.vm"], Goal("detached", frozenset({"AVAILABLE"})))
