"""cairn image."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_rename, add_show, settle
from cairn.controller.cli.output import Column
from cairn.controller.cli.share import add_share, shared_text
from cairn.controller.cli.values import PAIR, size_text, state_text
from cairn.controller.cli.waiting import Goal

ARCHS: Final = ("x86_64", "aarch64")


def _format(image: Any) -> str:
    return {1: "qcow2", 2: "raw"}.get(image.spec.format, "")


NOUN = Noun(
    "image",
    "images",
    "image",
    columns=[
        Column("NAME", lambda image: image.name),
        Column("ID", lambda image: image.id),
        Column("STATE", lambda image: state_text(image.status)),
        Column("SIZE", lambda image: size_text(image.spec.size_bytes), right=True),
        Column("DISK", lambda image: size_text(image.status.virtual_size_bytes), right=True),
        Column("ARCH", lambda image: image.spec.arch),
        Column("NODES", lambda image: ",".join(image.status.nodes)),
        Column("AGE", lambda image: image.create_time),
        Column("FORMAT", _format, wide=True),
        Column("DIGEST", lambda image: image.spec.digest, wide=True),
        Column("SAYS", lambda image: image.status.say, wide=True),
    ],
    details=lambda image: [
        ("Format", _format(image)),
        ("Architecture", image.spec.arch),
        ("File", f"{size_text(image.spec.size_bytes)}, {image.spec.digest}"),
        ("Disk of a VM", f"at least {size_text(image.status.virtual_size_bytes)}" if image.status.virtual_size_bytes else ""),
        ("Held by", ", ".join(image.status.nodes)),
        ("Shared", shared_text(image.spec.sharing)),
        ("Job", image.status.job),
    ],
)
AVAILABLE = Goal("available", frozenset({"AVAILABLE"}), timeout_s=3600.0)
group = NounGroup("image", "What root disks start from.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)
add_share(group, NOUN, "make VMs of it")
add_delete(group, NOUN)


@group.verb("import", changes=True)
@click.argument("name")
@click.option("--file", "file_", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File to send.")
@click.option("--url", help="Fetch it from there first: https://... or file:///...")
@click.option("--format", "format_", type=click.Choice(["qcow2", "raw"]), help="Found out unless given.")
@click.option("--arch", type=click.Choice(ARCHS), help="This machine's unless given.")
@click.option("--checksum", metavar="sha256:...", help="What the file must have.")
@click.option("--replicas", type=click.IntRange(0), default=0, help="How many nodes keep a copy; 2 unless given.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def import_image(session: Session, name: str, file_: Path | None, url: str | None, **options: Any) -> None:
    """Send a disk image, and wait until the nodes hold it, checked.

    An import that was interrupted goes on when the command is repeated.
    """
    if (file_ is None) == (url is None):
        raise Failure("give either --file or --url", usage=True)
    begun, session.interrupted = session.interrupted, "interrupted; nothing was sent"
    if file_ is not None:
        await _import(session, name, file_, begun, **options)
        return
    with tempfile.TemporaryDirectory(prefix="cairn-image-") as folder:
        from cairn.controller.cli.transfer import fetch

        path = Path(folder) / "image"
        with session.output.progress() as progress:
            fetch(url or "", path, lambda text: progress.update(text, live_only=True))
        await _import(session, name, path, begun, **options)


async def _import(
    session: Session,
    name: str,
    path: Path,
    begun: str,
    *,
    format_: str | None,
    arch: str | None,
    checksum: str | None,
    replicas: int,
    label: tuple[tuple[str, str], ...],
) -> None:
    from cairn.controller.cli.disk_image import inspect
    from cairn.controller.cli.transfer import checked_digest, upload
    from cairn.proto.v1 import image_pb2

    found = inspect(path, format_)
    with session.output.progress() as progress:

        def live(text: str) -> None:
            progress.update(text, live_only=True)

        digest = checked_digest(path, checksum, live)
        spec = image_pb2.ImageSpec(
            digest=digest,
            size_bytes=found.size_bytes,
            format=image_pb2.ImageFormat.Value(f"IMAGE_FORMAT_{found.format.upper()}"),
            arch=arch or _local_arch(),
            replicas=replicas,
        )
        wanted = image_pb2.Image(name=name, project=session.project, labels=dict(label), spec=spec)
        session.interrupted = "interrupted; the image is not whole: the same command goes on with it"
        image = await _created(session, wanted, progress.update)
        if not session.settings.plan:
            await upload(session, image, path, live)
        session.interrupted = begun
    if session.settings.plan:
        from cairn.controller.cli.plan import show_plan

        show_plan(session.output, image)
        return
    session.output.made(NOUN.columns, [await _settled(session, image)])


async def _settled(session: Session, image: Any) -> Any:
    """Wait until VMs can start from it, and then until it has all its copies: the end of its job."""
    from cairn.controller.cli import job as jobs

    image = await settle(session, NOUN, image, AVAILABLE)
    if not session.settings.wait or not image.status.job:
        return image
    job = await jobs.NOUN.get(session, image.status.job)
    with session.output.progress() as progress:
        await jobs.watch_job(session, job, lambda say: progress.update(f"image {image.name}: {say}"))
    return await NOUN.get(session, image.id)


async def _created(session: Session, wanted: Any, say: Callable[[str], None]) -> Any:
    """Create the image; take the one that is there when an earlier import of the same bytes did not end."""
    from cairn.proto.v1.image_pb2 import CreateImageRequest

    try:
        return await session.call("image", CreateImageRequest(image=wanted))
    except Failure as failure:
        if failure.status != "ALREADY_EXISTS" or session.settings.plan:
            raise
        existing = await NOUN.get(session, wanted.name)
        if existing.spec.digest != wanted.spec.digest or state_text(existing.status) != "UPLOADING":
            raise
        say(f"image {wanted.name}: going on with an import that was interrupted")
        return existing


def _local_arch() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
