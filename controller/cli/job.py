"""cairn job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_list, add_show, follow
from cairn.controller.cli.output import Column
from cairn.controller.cli.waiting import Goal, wait_for


def _state(job: Any) -> str:
    if job.status.failed:
        return "failed"
    return "done" if job.status.done else str(job.status.state or "waiting")


NOUN = Noun(
    "job",
    "jobs",
    "job",
    columns=[
        Column("ID", lambda job: job.id),
        Column("KIND", lambda job: job.spec.kind),
        Column("TARGET", lambda job: job.spec.target),
        Column("STATE", _state),
        Column("DONE", lambda job: f"{job.status.percent} %", right=True),
        Column("AGE", lambda job: job.create_time),
        Column("SAYS", lambda job: job.status.error or job.status.say),
    ],
    details=lambda job: [
        ("Kind", job.spec.kind),
        ("Target", job.spec.target),
        ("Done", f"{job.status.percent} %"),
        ("Error", job.status.error),
        ("Deadline", job.spec.deadline),
        ("Ended", job.status.end_time),
    ],
)
group = NounGroup("job", "Work in steps, with a deadline and a way back: image imports.")
add_list(group, NOUN)
add_show(group, NOUN)


class JobEnd(Goal):
    """A job's end: its states are its own, so done and failed tell."""

    def reached(self, message: Any) -> bool:
        """Tell whether it ended well."""
        return bool(message.status.done and not message.status.failed)

    def failure(self, message: Any) -> str:
        """Return why it failed, or ""."""
        return str(message.status.error or message.status.say or "it failed") if message.status.failed else ""


END = JobEnd("done", timeout_s=3600.0)


async def watch_job(session: Session, job: Any, show: Callable[[str], None]) -> Any:
    """Wait for a job's end, showing what it does; Failure when it fails."""
    return await wait_for(session, NOUN, job, END, show)


@group.verb("watch")
@click.argument("name", required=False, metavar="[ID]")
async def watch(session: Session, name: str | None) -> None:
    """Watch one job until it ends (exit code 1 when it fails), or all of them until interrupted."""
    if name is None:
        await follow(session, NOUN, "")
        return
    job = await NOUN.get(session, name)
    with session.output.progress() as progress:
        ended = await watch_job(session, job, lambda say: progress.update(f"job {job.id}: {say}"))
    session.output.made(NOUN.columns, [ended])


@group.verb("cancel", changes=True)
@name_argument("job")
async def cancel(session: Session, name: str) -> None:
    """Ask a job to stop and undo what it did."""
    job = await session.call("job", NOUN.request("CancelJob", id=name))
    if session.settings.wait and not job.status.done:
        with session.output.progress() as progress:
            try:
                job = await watch_job(session, job, lambda say: progress.update(f"job {job.id}: {say}"))
            except Failure as failure:
                if failure.status or failure.code != 1:
                    raise
                job = await NOUN.get(session, job.id)
    session.output.made(NOUN.columns, [job])
