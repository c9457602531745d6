"""Plays a story on a new world, and judges it.

    outcome = play(story)           # raises what went wrong, with the seed in a note

First the cloud comes up and is given an image and a subnet, in peace. Then users and faults play their events. Then everything
that disturbs ends, and within REST_S of virtual time the cloud must come to rest: every user answered, everything as asked, no
action left to do. Every controller is asked what it sees; every process is restarted, looks at everything anew, and must change
nothing. What the story has left for then happens (world.at_rest). Then everything is deleted, and nothing may be left. Checkers
watch throughout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tests.sim import audit, cast
from tests.sim.cost import metered
from tests.sim.loop import Outcome, SimLoop, run
from tests.sim.referee import Referee
from tests.sim.story import FAULT, SIZES, Event, Story, draw_story
from tests.sim.user import IMAGE, SUBNET, User
from tests.sim.world import World

REST_S: Final = 300.0
# How long everything must look right before it is believed, and how often it is looked at.
STILL_S: Final = 5.0
LOOK_S: Final = 1.0
# By when a controller has heard of everything: longer than any silence of its watch (store.py).
HEAR_S: Final = 30.0


class Restless(AssertionError):
    """The cloud did not come to rest. `checker` says what kind of unrest."""

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker


def draw(seed: int | str) -> Story:
    """Return the story of a seed; of one like "busy-7" a story with many more faults than usual, of "large-7" a large cloud."""
    return draw_story(seed, cast.WORKLOADS, cast.FAULTS, SIZES.get(str(seed).partition("-")[0]))


def play(story: Story) -> Outcome:
    """Play it. Raises Violation, Restless, Deadlock, Exhausted."""

    async def scenario() -> dict[str, Any]:
        return await Play(story).run()

    with metered():
        outcome = run(story.seed, scenario)
    if outcome.faults:
        error = Restless("fault", outcome.faults[0])
        error.add_note(f"seed {story.seed}, trace hash {outcome.trace_hash}")
        raise error
    return outcome


class Play:
    """One story being played."""

    def __init__(self, story: Story) -> None:
        size = story.size
        self.story = story
        self.world = World(
            story.seed,
            controllers=size.controllers,
            nodes=size.nodes,
            skew_s=size.skew_s,
            threads=size.threads,
            memory_gib=size.memory_gib,
            referee=self._referee,
        )
        self.world.loop.cpu = size.cpu
        self.asked = self.world.referee.asked
        self._acts = {**cast.acts(cast.WORKLOADS), **cast.acts(cast.FAULTS)}

    @staticmethod
    def _referee(loop: SimLoop) -> Referee:
        return Referee(cast.all_checkers(), loop.fail)

    async def run(self) -> dict[str, Any]:
        """Play it; return what there is to count."""
        try:
            return await self._run()
        finally:
            self.world.close()

    async def _run(self) -> dict[str, Any]:
        world = self.world
        await world.start()
        await world.client.import_image(IMAGE)
        await world.client.create_subnet(SUBNET)
        world.note("the story begins")
        begin_s = world.loop.time()
        users = [asyncio.create_task(self._user(name, begin_s), name=name) for name in self.story.size.user_names]
        await self._disturb(begin_s)
        world.calm()
        world.note("all faults have ended")
        await self._bounded("requests", "not everybody was answered", asyncio.gather(*users))
        await self._rest("at rest", world.referee.unsettled)
        world.referee.settled()
        await self._bounded("requests", "not every controller could be asked", self._ask_all())
        await self._again()
        await self._afterwards()
        await self._bounded("requests", "not everything could be deleted", self._empty())
        await self._rest("empty", world.referee.unemptied)
        world.referee.emptied()
        await self._bounded("requests", "not all networks and images could be deleted", self._bare())
        await self._rest("bare", world.referee.unbared)
        world.referee.bared()
        return {
            "commits": world.backend.revision,
            "struck": {**world.store_faults.struck, **world.network.struck},
            "seen": world.referee.events,
        }

    # --- who does what -----------------------------------------------------------------------------------------------------

    async def _user(self, name: str, begin_s: float) -> None:
        """Do what one user does, one thing after the other."""
        user = User(name, self.world, self.world.connect(name), self.asked)
        for event in self.story.by(name):
            await self._until(begin_s + event.at_s)
            self.world.note(f"{name}: {event.name}{event.args!r}")
            await self._acts[event.name](user, *event.args)

    async def _disturb(self, begin_s: float) -> None:
        """Let faults happen at their times; return when the time for faults is over."""
        tasks = [asyncio.create_task(self._fault(event, begin_s), name=event.name) for event in self.story.by(FAULT)]
        await self._until(begin_s + self.story.size.duration_s)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _fault(self, event: Event, begin_s: float) -> None:
        await self._until(begin_s + event.at_s)
        self.world.note(f"fault: {event.name}{event.args!r}")
        await self._acts[event.name](self.world, *event.args)

    async def _until(self, time_s: float) -> None:
        await asyncio.sleep(max(0.0, time_s - self.world.loop.time()))

    # --- judging -------------------------------------------------------------------------------------------------------------

    async def _bounded(self, kind: str, what: str, work: Any) -> None:
        try:
            async with asyncio.timeout(REST_S):
                await work
        except TimeoutError as error:
            raise Restless(kind, f"{what} within {REST_S:.0f} s") from error

    async def _rest(self, what: str, complaints: Callable[[], list[str]]) -> None:
        """Wait until nobody complains, and that stays so for a while."""
        world, loop = self.world, self.world.loop
        until_s, quiet_s = loop.time() + REST_S, loop.time()
        while loop.time() - quiet_s < STILL_S:
            await asyncio.sleep(LOOK_S)
            world.look()
            said = complaints()
            if said:
                quiet_s = loop.time()
                if loop.time() > until_s:
                    raise Restless(said[0].partition(":")[0], f"not {what} after {REST_S:.0f} s: {'; '.join(said[:4])}")

    async def _ask_all(self) -> None:
        """Have each controller list everything; a watch that was silent when the faults ended may be so a little longer."""
        until_s = self.world.loop.time() + HEAR_S
        while said := [text for name in self.world.controllers for text in await self._ask(name)]:
            if self.world.loop.time() > until_s:
                raise Restless(said[0].partition(":")[0], f"not told truly after {HEAR_S:.0f} s: {'; '.join(said[:4])}")
            await asyncio.sleep(LOOK_S)

    async def _ask(self, controller: str) -> list[str]:
        """Return what is wrong with a controller's lists, and with its record of who did what."""
        lists, broken = await audit.everything(self.world, controller), await audit.broken(self.world, controller)
        reported = self.world.referee.listed(controller, "usage", await audit.used(self.world, controller))
        return (
            broken
            + reported
            + [text for kind, objects in lists.items() for text in self.world.referee.listed(controller, kind, objects)]
        )

    async def _again(self) -> None:
        """Restart everybody while all is at rest."""
        world, before = self.world, self.world.sessions()
        world.note("everybody is restarted")
        world.look()
        world.referee.resting(True)
        for name in list(world.processes):
            world.crash(name)
        world.restart_all()

        def again() -> bool:
            now = world.sessions()
            return now.keys() == before.keys() and all(now[node] > revision for node, revision in before.items())

        await world.until("all nodes to be connected again", again, REST_S)
        await asyncio.sleep(STILL_S)
        world.look()
        world.referee.resting(False)
        world.referee.settled()

    async def _afterwards(self) -> None:
        """What the story has left for when nobody is at work."""
        for act in self.world.at_rest:
            await act()
            await self._rest("at rest again", self.world.referee.unsettled)
            self.world.referee.settled()

    async def _empty(self) -> None:
        """Delete all that was asked for, for good; a disk that stays when its VM goes, too."""
        client, asked = self.world.client, self.asked
        async with asyncio.TaskGroup() as group:
            for vm in list(asked.vms):
                group.create_task(self._erase(client.delete_vm(vm), asked.erase_vm, vm))
        async with asyncio.TaskGroup() as group:
            for volume in list(asked.volumes):
                group.create_task(self._erase(client.delete_volume(volume), asked.erase_volume, volume))

    async def _bare(self) -> None:
        """Delete all networks and images, in the order that nothing is used by what is left."""
        found = await audit.listed(self.world.client)
        client = self.world.client
        for kind, delete in (("image", client.delete_image), ("subnet", client.delete_subnet), ("vpc", client.delete_vpc)):
            async with asyncio.TaskGroup() as group:
                for each in found[kind]:
                    group.create_task(delete(each.id))

    async def _erase(self, call: Coroutine[Any, Any, None], erased: Callable[[str], None], id: str) -> None:
        await call
        erased(id)
