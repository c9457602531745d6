"""`project delete --cascade`: all that lives in a project goes first, by the API like everything else.

In the order in which it refers to each other: VMs, then their disks and others, cards, networks, images. What was made
meanwhile is found by looking again; a command that was interrupted goes on when it is repeated. Nothing of another project is
touched: where others use what is here (a shared VPC, an image), the refusal says so. Rejected: one transaction (a project may
hold thousands of objects), a job on the server (it would delete with nobody's authority once its caller had lost his).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cairn.controller.cli import image, port, subnet, vm_noun, volume, vpc
from cairn.controller.cli.client import Session
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, perform, settle
from cairn.controller.cli.values import counted, size_text
from cairn.controller.cli.waiting import Goal

# In the order in which they go.
ORDER: Final[tuple[Noun, ...]] = (vm_noun.NOUN, volume.NOUN, port.NOUN, subnet.NOUN, vpc.NOUN, image.NOUN)
# Deleted at a time; and looks at what was made meanwhile before it is given up.
TOGETHER: Final = 16
LOOKS_MAX: Final = 3
GONE: Final = Goal("gone", gone=True)


@dataclass(frozen=True)
class Found:
    """What lives in a project, by noun."""

    objects: tuple[tuple[Noun, tuple[Any, ...]], ...]

    @property
    def empty(self) -> bool:
        """Tell whether it is nothing."""
        return not any(objects for _, objects in self.objects)

    def lines(self) -> Iterator[str]:
        """Yield what would go, a line for each object."""
        for noun, objects in self.objects:
            for each in objects:
                more = f", {size_text(each.spec.size_bytes)}" if noun is volume.NOUN else ""
                yield f"{noun.title} {each.name} ({each.id}{more})"

    def summary(self) -> str:
        """Return how much it is."""
        return ", ".join(counted(len(objects), noun.title) for noun, objects in self.objects if objects)


async def living(session: Session, project: str) -> Found:
    """Return what lives in a project; not what is only shared with it, and no card that goes with its VM. project: id."""
    found = []
    for noun in ORDER:
        fields: dict[str, Any] = {"show_deleted": True} if noun.soft_delete else {}
        listed = await noun.all(session, project=project, **fields)
        own = (each for each in listed if each.project == project)
        found.append((noun, tuple(each for each in own if noun is not port.NOUN or not each.spec.owner.id)))
    return Found(tuple(found))


async def empty(session: Session, project: Any) -> None:
    """Delete all that lives in a project, as parts of the request that will delete the project. Raises Failure."""
    session.settings.project, session.cause = project.id, session.ids.uuid()
    for _ in range(LOOKS_MAX):
        found = await living(session, project.id)
        if found.empty:
            return
        session.output.say(f"deletes {found.summary()}")
        for noun, objects in found.objects:
            for start in range(0, len(objects), TOGETHER):
                await asyncio.gather(*(_delete(session, noun, each) for each in objects[start : start + TOGETHER]))
    left = await living(session, project.id)
    if not left.empty:
        raise Failure(f"project {project.name} has {left.summary()} again: somebody goes on making things in it")


async def _delete(session: Session, noun: Noun, message: Any) -> None:
    """Delete one for good, and wait until it is gone; one that is gone already is what was wanted."""
    request = noun.request(f"Delete{noun.message}", id=message.id, project=message.project, purge=True)
    try:
        answer = await session.call(noun.name, request)
        await settle(session, noun, answer, GONE)
    except Failure as failure:
        if failure.status != "NOT_FOUND":
            raise


def show(session: Session, project: Any, found: Found) -> None:
    """Show what would go."""
    if not session.output.human:
        session.output.list([], [each for _, objects in found.objects for each in objects])
        return
    lines: Sequence[str] = [*found.lines(), f"project {project.name} ({project.id})"]
    session.output.lines(["would delete, for good:", *(f"  {line}" for line in lines)])


async def finish(session: Session, noun: Noun, project: Any) -> None:
    """Remove the project itself."""
    request = noun.request("DeleteProject", id=project.id, request_id=session.cause)
    session.cause = ""
    await perform(session, noun, request, GONE, silent=True)
    session.output.say(f"project {project.name} is gone")
