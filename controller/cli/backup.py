"""cairn cluster backup, verify, restore: the control plane's records in a file, and back.

A file is written whole or not at all, readable by its owner alone: it holds every secret the control plane has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from cairn.controller.cli.client import Patience, Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.output import Detail, Section

CHUNK_BYTES: Final = 256 << 10
_NAMED_BY_TIME: Final = "cairn-????????T??????Z.backup"
_KEEP_WHERE: Final = "--keep needs --out FOLDER, a folder that is there"
_UNTIL_DONE: Final = "Until it is done the cluster serves and decides nothing: run the same command again"
_NO_BACKUP: Final = "use another backup: this one can neither be trusted nor restored"


def add_verbs(group: NounGroup) -> None:
    """Add backup, verify and restore to `cairn cluster`."""
    group.verb("backup")(backup)
    group.verb("verify")(verify)
    group.verb("restore", changes=True)(restore)


# --- backup ------------------------------------------------------------------------------------------------------------------


@click.option("--out", type=click.Path(path_type=Path), help="File, or folder for a file named by the time; standard output.")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="With a folder: remove older backups in it beyond N.")
async def backup(session: Session, out: Path | None, keep: int | None) -> None:
    """Write all records of the control plane to a file.

    It holds secrets of the cloud's users (start-up data, tokens): keep it as safe as the controllers. No guest's disk is in it.
    """
    if out is None:
        if keep is not None:
            raise Failure(_KEEP_WHERE, usage=True)
        if sys.stdout.isatty():
            raise Failure("a backup is not for a terminal", next="give --out FILE, or redirect standard output", usage=True)
        await _pour(session, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    path = _path(out, session.now(), keep)
    try:
        said = await _write(session, path)
        if keep is not None:
            _thin_out(path.parent, keep)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror or error}") from error
    session.output.say(f"{path}: {said}")


def _path(out: Path, now: datetime, keep: int | None) -> Path:
    """Return the file to write: in a folder, one named by the time."""
    if out.is_dir():
        return out / f"cairn-{now:%Y%m%dT%H%M%SZ}.backup"
    if keep is not None:
        raise Failure(_KEEP_WHERE, usage=True)
    if out.exists() and not out.is_file():
        # The finished file takes its place: root would replace the device.
        raise Failure(f"{out} is no file", next="leave --out away to write to standard output", usage=True)
    return out


def _thin_out(folder: Path, keep: int) -> None:
    """Remove the oldest backups of a folder beyond so many. Raises OSError."""
    for old in sorted(folder.glob(_NAMED_BY_TIME))[:-keep]:
        old.unlink()


async def _write(session: Session, path: Path) -> str:
    """Write a file whole or not at all, for its owner alone. Raises OSError, Failure."""
    # In the same folder, so that the rename is one step.
    partial = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            said = await _pour(session, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return said


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _pour(session: Session, file: BinaryIO) -> str:
    """Write a backup, checked as it comes; return what it is. Begins again while nothing has been written."""
    from cairn.proto.backup import Damaged, Reader
    from cairn.proto.v1.backup_pb2 import BackupClusterRequest
    from grpc.aio import AioRpcError

    patience = Patience(session)
    while True:
        reader, written = Reader(), False
        try:
            async for response in session.stub("cluster").BackupCluster(BackupClusterRequest()):
                for _ in reader.feed(response.chunk):
                    continue
                file.write(response.chunk)
                written = True
            return summary(reader.finish())
        except AioRpcError as error:
            if written:
                raise Failure("the backup broke off: what was written is not whole", next="run it again") from error
            await patience.wait_after(error)
        except Damaged as error:
            raise Failure(f"what the controller sent is no backup: {error}", next="run it again") from error


# --- verify ------------------------------------------------------------------------------------------------------------------


@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
async def verify(session: Session, file: Path) -> None:
    """Tell whether a backup is whole and unchanged, and what is in it. Needs no controller."""
    session.output.one(_verified(file), header_details)


def _verified(path: Path) -> Any:
    """Return the header of a file that is right. Failure when it is not."""
    from cairn.proto.backup import Damaged, Reader

    reader = Reader()
    try:
        for chunk in _chunks(path):
            for _ in reader.feed(chunk):
                continue
        return reader.finish()
    except Damaged as error:
        raise Failure(f"{path}: {error}", next=_NO_BACKUP) from error
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def summary(header: Any) -> str:
    """Return what a backup is, in one sentence."""
    records = sum(each.count for each in header.counts)
    return (
        f"cluster {header.cluster!r} at revision {header.revision} of epoch {header.epoch}, "
        f"{header.backup_time.ToJsonString()}, {records} records"
    )


def header_details(header: Any) -> Iterator[Detail]:
    """Yield what is in a backup, as rows."""
    yield "Cluster", header.cluster
    yield "Says", "whole and unchanged"
    yield "Made", header.backup_time.ToJsonString()
    yield "Revision", f"{header.revision} (epoch {header.epoch})"
    yield "Version", header.version
    yield Section("Records", [(each.kind, str(each.count)) for each in header.counts])


# --- restore -----------------------------------------------------------------------------------------------------------------


@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask: what is in the store is replaced.")
async def restore(session: Session, file: Path, yes: bool) -> None:
    """Put a backup in the place of everything in the store. --plan shows what that changes.

    Guests keep running. What nodes know and the backup does not is listed afterwards by `cairn cluster adopt`. Repeat the same
    command when it breaks off.
    """
    session.interrupted = "interrupted; nothing was changed"
    session.output.say(f"{file}: {summary(_verified(file))}")
    plan = await _plan(session, file)
    if session.settings.plan:
        if session.output.human:
            session.output.lines(plan_lines(plan))
        else:
            session.output.one(plan, lambda _plan: ())
        return
    for line in plan_lines(plan):
        session.output.say(line)
    if not yes:
        _confirm(plan.cluster)
    session.interrupted = f"interrupted in the midst of a restore. {_UNTIL_DONE}"
    result = await _restore(session, file, plan.cluster)
    session.output.say(f"epoch {result.epoch}: {result.say}")


def _confirm(cluster: str) -> None:
    """Have the person type the name of the cluster. Failure when they do not."""
    if not sys.stdin.isatty():
        say = "everything in the store is replaced: that needs a word"
        raise Failure(say, next="look at --plan, then repeat it with --yes", usage=True)
    question = f"This replaces everything in the store. Type the cluster's name ({cluster}) to go on"
    typed = click.prompt(question, err=True, default="", show_default=False)
    if typed.strip() != cluster:
        raise Failure("that is not its name: nothing was done")


async def _plan(session: Session, file: Path) -> Any:
    async for response in _calls(session, file, validate_only=True):
        return response.plan
    raise Failure("the controller said nothing", next="run it again")


async def _restore(session: Session, file: Path, cluster: str) -> Any:
    async for response in _calls(session, file, cluster=cluster):
        if response.WhichOneof("part") == "progress":
            session.output.say(f"  {response.progress.written} of {response.progress.whole} records")
        elif response.WhichOneof("part") == "result":
            return response.result
    raise Failure("the restore broke off; until it is done the cluster serves nothing", next="run the same command again")


async def _calls(session: Session, file: Path, **options: Any) -> AsyncIterator[Any]:
    """Send a file and yield what is answered; repeated while that is safe: restoring twice is restoring once."""
    from cairn.proto.v1.backup_pb2 import RestoreClusterRequest, RestoreOptions
    from grpc.aio import AioRpcError

    async def requests() -> AsyncIterator[RestoreClusterRequest]:
        yield RestoreClusterRequest(options=RestoreOptions(**options))
        for chunk in _chunks(file):
            yield RestoreClusterRequest(chunk=chunk)

    patience = Patience(session)
    while True:
        try:
            async for response in session.stub("cluster").RestoreCluster(requests()):
                yield response
            return
        except AioRpcError as error:
            await patience.wait_after(error)


def plan_lines(plan: Any) -> Iterator[str]:
    """Yield what a restore changes, as text."""
    backup = plan.backup
    yield f"replaces cluster {plan.cluster!r} at revision {plan.revision} of epoch {plan.epoch} by {summary(backup)}"
    for each in plan.kinds:
        if each.added or each.removed or each.changed:
            yield f"  {each.kind}: {each.added} added, {each.removed} removed, {each.changed} changed, {each.same} the same"
    for title, objects in (
        ("made since: kept running by their nodes, listed for adoption", plan.unknown),
        ("deleted since: not started again unless asked for", plan.returning),
    ):
        if objects:
            yield f"  {title}:"
            yield from (f"    {each.kind} {each.name} ({each.id})" for each in objects)
