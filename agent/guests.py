"""Guests of this node, one at a time: observe, plan (agent/plan.py), apply, report.

What is remembered durably is written before anything is done. After acting the guest is looked at again, until there is nothing
to do. An action that fails ends the round; the report says which and why, and the loop comes back later.

A guest that is not desired is left as it is, running or not: only `absent` removes one (docs/decisions/0013, unknown.py).

Disks are plugged each by itself: one that fails, or that the guest does not let go of, keeps no other waiting, and its trouble
is told with the guest until it is over. A volume is open in one guest at most: one that another guest has not let go of yet,
though it is this one's now, is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from itertools import groupby

from cairn.agent import growth
from cairn.agent.actions import (
    Action,
    AttachDisk,
    BindPorts,
    Define,
    DetachDisk,
    GrowDisk,
    Reboot,
    RemoveFiles,
    Resume,
    Start,
    Stop,
    Undefine,
    WriteSeed,
)
from cairn.agent.exclusive import Exclusive
from cairn.agent.guestfiles import GuestFiles
from cairn.agent.hypervisor.base import Disk, DomainSpec, DomainState, Hypervisor, HypervisorError
from cairn.agent.ledger import Ledger
from cairn.agent.networks import Networks
from cairn.agent.plan import plan_vm
from cairn.agent.reports import Reports
from cairn.agent.verdict import Found, Memory, Note, Verdict, Wanted, noted
from cairn.agent.work import Again
from cairn.agent.world import Part, World
from cairn.net.base import NetError
from cairn.proto.log import logger
from cairn.proto.v1.agent_pb2 import DesiredVm, Report, VmReport
from cairn.storage.base import StorageError, Superseded

LOOK_AGAIN_S = 1.0
# Looks at one guest before others have their turn.
ROUNDS_MAX = 4
DriverError = (HypervisorError, StorageError, NetError, OSError)


class Guests:
    """The guests and how they are served."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        files: GuestFiles,
        world: World,
        networks: Networks,
        ledger: Ledger,
        reports: Reports,
        exclusive: Exclusive,
        *,
        permitted: Callable[[], bool],
    ) -> None:
        """permitted: whether a controller is heard that says who is to run what."""
        self._hypervisor, self._files, self._world, self._networks = hypervisor, files, world, networks
        self._ledger, self._reports, self._exclusive = ledger, reports, exclusive
        self.permitted = permitted
        self._memories: dict[str, Memory] = {}
        # Guest -> volume -> why it could not be plugged in or out, or be seen as large as it is.
        self._troubles: dict[str, dict[str, str]] = {}
        # Guest -> volume -> how large the guest saw it when its process was asked; larger by now, perhaps, never smaller.
        self._seen: dict[str, dict[str, int]] = {}
        self.actions = 0

    async def settle(self, key: str) -> Again:
        """Bring a guest to what it should be, as far as that can be done now. Raises what its drivers raise."""
        id = key.partition("/")[2]
        again_after_s = 0.0
        for _ in range(ROUNDS_MAX):
            await self._world.refresh(Part.DOMAINS, Part.VOLUMES, Part.FILES)
            held = self._ledger.desired.get(key)
            if held is None:
                self.forget(id)
                return Again()
            if held.object.vm.absent and id in self._world.domains and await self._ledger.yield_to(key):
                # It was to be removed before a restore, and is still there: the restored record lets it live.
                continue
            if self._is_asked_anew(key, held.object.vm):
                self._world.mark_guest(id)
                await self._world.refresh(Part.DOMAINS)
            if growth.is_said_larger(held.object.vm, self._world.volumes):
                self._world.mark(Part.VOLUMES)
                await self._world.refresh(Part.VOLUMES)
            self._world.require(*(disk.type for disk in held.object.vm.disks))
            await self._ask_what_is_seen(held.object.vm)
            wanted = await self._wanted(held.object.vm)
            verdict = await self._decide(key, wanted)
            again_after_s = verdict.again_after_s
            if self._ledger.desired.get(key) is not held:
                # It was told something else while a note was written: nothing is done any more on the old word.
                continue
            self._report(key, wanted.vm, verdict.report)
            if not verdict.actions:
                return Again(after_s=again_after_s or self._looks_again_s(wanted.vm))
            await self._apply(key, wanted.vm, verdict)
        return Again(after_s=again_after_s or 1.0)

    def _looks_again_s(self, vm: DesiredVm) -> float:
        """Return when to look whether volumes are there that another node makes: nothing here hears of them. 0: no need."""
        theirs = [disk.volume for disk in vm.disks if f"volume/{disk.volume}" not in self._ledger.desired]
        if vm.absent or all(volume in self._world.volumes for volume in theirs):
            return 0.0
        self._world.mark(Part.VOLUMES)
        return LOOK_AGAIN_S

    def forget(self, id: str) -> None:
        """Drop what is remembered of a guest that is no longer desired."""
        self._memories.pop(id, None)
        self._troubles.pop(id, None)
        self._seen.pop(id, None)

    def _is_asked_anew(self, key: str, vm: DesiredVm) -> bool:
        """Whether a guest is to run again that ran when last seen, which may have been before that was asked for.

        Taken for the answer it would stay off, if it had shut itself down between the two.
        """
        domain = self._world.domains.get(vm.id)
        if domain is None or domain.state is DomainState.SHUT_OFF:
            return False
        return vm.power_generation > max(noted(self._ledger.note(key)).power_generation, domain.power_generation)

    async def _ask_what_is_seen(self, vm: DesiredVm) -> None:
        """Learn how large a running guest sees volumes of which it is told a size, unless it is known to see all of it."""
        domain = self._world.domains.get(vm.id)
        is_open = domain.open_volumes if domain is not None else ()
        known = {volume: size for volume, size in self._seen.pop(vm.id, {}).items() if volume in is_open}
        if ask := growth.to_ask(vm, domain, known):
            try:
                known |= await self._hypervisor.seen_bytes(vm.id, ask)
            except HypervisorError as error:
                self._troubles.setdefault(vm.id, {}).update(dict.fromkeys(ask, str(error)))
        if known:
            self._seen[vm.id] = known

    async def _decide(self, key: str, wanted: Wanted) -> Verdict:
        id = wanted.vm.id
        domain, seen = self._world.domains.get(id), tuple(sorted(self._seen.get(id, {}).items()))
        found = Found(replace(domain, seen=seen) if domain is not None else None, id in self._world.files)
        note = noted(self._ledger.note(key))
        memory = self._memories.get(id, Memory())
        verdict = plan_vm(wanted, found, note, memory, asyncio.get_running_loop().time())
        self._memories[id] = verdict.memory
        for told in verdict.told:
            self._reports.event(key, told.reason, told.message, warning=told.warning)
        # What a newer release noted besides is kept for it.
        more = {name: value for name, value in self._ledger.note(key).items() if name not in asdict(note)}
        await self._ledger.write_note(key, {**more, **(asdict(verdict.note) if verdict.note != Note() else {})})
        return verdict

    async def _wanted(self, vm: DesiredVm) -> Wanted:
        if vm.absent:
            return Wanted(vm, None)
        disks, sizes, waits = list[Disk](), dict[str, int](), ""
        for each in vm.disks:
            held = self._world.volumes.get(each.volume)
            if held is None:
                waits = waits or self._volume_say(each.volume)
                continue
            sizes[each.volume] = held.size_bytes
            attachment = await self._world.attachment(each.volume)
            path, format, network = attachment.path, attachment.format, attachment.network
            disks.append(Disk(each.volume, path, format, boot=each.boot, slot=each.slot, network=network))
        troubles = [trouble for nic in vm.nics if (trouble := self._networks.trouble(nic.port))]
        unbound = tuple(nic.port for nic in vm.nics if not self._networks.is_bound(nic.port))
        permitted = self.permitted()
        if waits:
            return Wanted(vm, None, waits=waits, unbound=unbound, permitted=permitted)
        spec = DomainSpec(vm, tuple(disks), self._files.seed(vm.id), self._files.console_log(vm.id))
        machine = DomainSpec(_without_data_disks(vm), tuple(disk for disk in disks if disk.boot), spec.seed, spec.console_log)
        digest, machine_digest = self._hypervisor.digest(spec), self._hypervisor.digest(machine)
        return Wanted(vm, spec, digest, machine_digest, troubles[0] if troubles else "", unbound, permitted, sizes)

    def _volume_say(self, volume: str) -> str:
        report = self._reports.latest(f"volume/{volume}")
        if report is None:
            return f"waits for volume {volume}"
        return f"waits for volume {volume}: {report.volume.error or report.volume.say}"

    async def _apply(self, key: str, vm: DesiredVm, verdict: Verdict) -> None:
        failed: Exception | None = None
        for step in _steps(verdict.actions):
            errors = await self._do_beside(step, vm)
            for action, error in zip(step, errors, strict=True):
                if error is None:
                    continue
                if isinstance(action, _OF_A_DISK):
                    self._troubles.setdefault(vm.id, {})[_volume_of(action)] = str(error)
                self._report_failure(key, vm, verdict, action, error)
                failed = failed or error
            if any(errors) and not isinstance(step[0], _OF_A_DISK):
                break
        if failed is not None:
            raise failed

    async def _do_beside(self, step: Sequence[Action], vm: DesiredVm) -> Sequence[Exception | None]:
        """Do a step; one action in the step of the loop in which the one before it ended."""
        if len(step) == 1:
            return [await self._do(step[0], vm)]
        return await asyncio.gather(*(self._do(action, vm) for action in step))

    async def _do(self, action: Action, vm: DesiredVm) -> Exception | None:
        """Do one; return why it failed."""
        try:
            await self._act(action, vm)
        except DriverError as error:
            # What of others stands in its way may have gone unheard.
            self._world.mark(Part.DOMAINS)
            return error
        self.actions += 1
        logger("guests").info("done", vm=vm.id, action=type(action).__name__)
        return None

    async def _act(self, action: Action, vm: DesiredVm) -> None:
        id, hypervisor = action.id, self._hypervisor
        try:
            match action:
                case WriteSeed():
                    await self._files.write_seed(action.vm)
                case Define(spec=spec):
                    await hypervisor.define(spec)
                case Start():
                    async with self._opening(id, {disk.volume for disk in vm.disks}):
                        await self._world.show_claims(vm.disks)
                        await self._start(action, tuple(nic.tap for nic in vm.nics))
                case BindPorts(ports=ports):
                    await self._networks.bind(ports)
                case Resume():
                    await self._resume(vm)
                case Stop(force=force):
                    await hypervisor.stop(id, force=force)
                case Reboot(force=force, reboot_generation=generation):
                    await hypervisor.reboot(id, force=force, reboot_generation=generation)
                case AttachDisk(disk=disk):
                    async with self._opening(id, {disk.volume}):
                        await self._attach(vm, disk)
                case DetachDisk(volume=volume):
                    await hypervisor.detach_disk(id, volume)
                case GrowDisk(volume=volume, size_bytes=size_bytes):
                    await self._grow_disk(id, volume, size_bytes)
                case Undefine():
                    await hypervisor.undefine(id)
                case RemoveFiles():
                    await self._files.remove(id)
        finally:
            if isinstance(action, WriteSeed | RemoveFiles):
                self._world.mark(Part.FILES)
            else:
                self._world.mark_guest(id)

    @asynccontextmanager
    async def _opening(self, id: str, volumes: set[str]) -> AsyncGenerator[None]:
        """Let nobody else open or change these volumes meanwhile. HypervisorError when another guest has one of them open."""
        async with self._exclusive.hold(volumes):
            self._world.mark_openers(volumes)
            await self._world.refresh(Part.DOMAINS)
            for other in self._world.domains.values():
                taken = volumes.intersection(other.volumes) if other.id != id else set()
                if taken and other.state is not DomainState.SHUT_OFF:
                    raise HypervisorError(f"guest {other.id} has not let go of {', '.join(sorted(taken))} yet")
            yield

    async def _grow_disk(self, id: str, volume: str, size_bytes: int) -> None:
        """Have a guest see what its volume has by now: less than that would be cut off."""
        async with self._exclusive.hold({volume}):
            self._world.mark(Part.VOLUMES)
            await self._world.refresh(Part.VOLUMES)
            held = self._world.volumes.get(volume)
            await self._hypervisor.grow_disk(id, volume, max(size_bytes, held.size_bytes if held is not None else 0))

    async def _start(self, action: Start, taps: tuple[str, ...]) -> None:
        self._networks.begin_start(taps)
        made = False
        try:
            await self._hypervisor.start(
                action.id,
                power_generation=action.power_generation,
                reboot_generation=action.reboot_generation,
                machine_digest=action.machine_digest,
            )
            made = True
        finally:
            self._networks.end_start(taps, made=made)

    async def _resume(self, vm: DesiredVm) -> None:
        """Let it run; one that was started, and executes nothing yet, only if its disks are its own still."""
        domain = self._world.domains.get(vm.id)
        if domain is None or domain.state in (DomainState.STARTING, DomainState.SHUT_OFF):
            try:
                await self._world.show_claims(vm.disks)
            except Superseded:
                await self._hypervisor.stop(vm.id, force=True)
                raise
        await self._hypervisor.resume(vm.id)

    async def _attach(self, vm: DesiredVm, disk: Disk) -> None:
        """Plug a disk in; one that was given to another guest meanwhile is taken out again."""
        claims = [each for each in vm.disks if each.volume == disk.volume]
        await self._world.show_claims(claims)
        await self._hypervisor.attach_disk(vm.id, disk)
        try:
            await self._world.show_claims(claims)
        except Superseded:
            await self._hypervisor.detach_disk(vm.id, disk.volume)
            raise

    def _report_failure(self, key: str, vm: DesiredVm, verdict: Verdict, action: Action, error: Exception) -> None:
        body = VmReport()
        body.CopyFrom(verdict.report)
        permanent = not getattr(error, "retryable", True)
        if permanent and body.state == VmReport.STATE_PREPARING:
            body.state = VmReport.STATE_FAILED
        what = _VERBS.get(type(action), type(action).__name__)
        body.error = f"{what} failed: {error}"
        body.say = body.error if permanent else f"{body.error}; trying again"
        self._report(key, vm, body)

    def _tell_troubles(self, vm: DesiredVm, body: VmReport) -> None:
        """Add to a report what keeps volumes from being plugged in or out, or seen; what is over is forgotten.

        A guest that is off, which has nothing open, gets and loses its disks by its definition: nothing is plugged.
        """
        wanted = {disk.volume for disk in vm.disks}
        troubles = self._troubles.get(vm.id, {}) if body.open_volumes else {}
        unseen = growth.unseen(vm, body.open_volumes, growth.seen_in(body))
        left = {
            volume: why
            for volume, why in troubles.items()
            if (volume in wanted) != (volume in body.open_volumes) or volume in unseen
        }
        if left:
            self._troubles[vm.id] = left
        else:
            self._troubles.pop(vm.id, None)
        del body.volume_troubles[:]
        for volume, why in sorted(left.items()):
            body.volume_troubles.add(volume=volume, error=why)

    def _report(self, key: str, vm: DesiredVm, body: VmReport) -> None:
        held = self._ledger.desired.get(key)
        if held is None or held.object.vm != vm:
            # It was changed meanwhile: what is true of the old is no answer to the new.
            return
        self._tell_troubles(vm, body)
        if body.state == VmReport.STATE_RUNNING:
            body.accelerator = self._reports.facts.hypervisor.accelerator
        self._reports.put(Report(key=key, version=held.version, vm=body))


def _steps(actions: Iterable[Action]) -> Iterator[tuple[Action, ...]]:
    """Yield actions in their order, each by itself; but what only makes ready is done beside each other."""
    for ready, group in groupby(actions, key=lambda action: isinstance(action, WriteSeed | Define)):
        if ready:
            yield tuple(group)
        else:
            yield from ((action,) for action in group)


def _volume_of(action: AttachDisk | DetachDisk | GrowDisk) -> str:
    return action.disk.volume if isinstance(action, AttachDisk) else action.volume


def _without_data_disks(vm: DesiredVm) -> DesiredVm:
    result = DesiredVm()
    result.CopyFrom(vm)
    boot = [disk for disk in vm.disks if disk.boot]
    del result.disks[:]
    result.disks.extend(boot)
    return result


# One that fails keeps nothing else of its guest waiting.
_OF_A_DISK = (AttachDisk, DetachDisk, GrowDisk)
_VERBS: dict[type[Action], str] = {
    WriteSeed: "writing its seed image",
    Define: "defining it",
    Start: "starting it",
    BindPorts: "connecting it to its network",
    Resume: "letting it run",
    Stop: "stopping it",
    Reboot: "rebooting it",
    AttachDisk: "attaching a disk",
    DetachDisk: "detaching a disk",
    GrowDisk: "having the guest see how large a disk is",
    Undefine: "removing it",
    RemoveFiles: "removing its files",
}
