"""VMs: validate, decide one transaction, answer. What a new VM is made of is in vm_creation.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.console import relay_console
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decide, Decided
from cairn.controller.api.fitting import fits_somewhere
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import addressed, mark_deleted, updated
from cairn.controller.api.stored import stored
from cairn.controller.api.vm_creation import create_vm, refuse_high_availability
from cairn.controller.api.volumes import free, reattach_root, refuse_if_deleted, revived
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.model.restored import next_power, next_reboot
from cairn.controller.model.where import explained
from cairn.controller.store.base import Record, Txn, View
from cairn.proto import kinds
from cairn.proto.errors import AlreadyExists, BadState, Invalid, NotFound, OutOfRange
from cairn.proto.seams import timestamp
from cairn.proto.v1 import vm_pb2, vm_pb2_grpc
from cairn.proto.v1.vm_pb2 import POWER_STATE_RUNNING, POWER_STATE_STOPPED, Vm

# Decided without letting others run: a few milliseconds each with 50 nodes (measured: 4 to 8 on a busy machine).
PLANNED_MAX: Final = 20
RULES = UpdateRules(
    mutable=(
        "name", "labels", "spec.cpus", "spec.memory_bytes", "spec.power_state", "spec.restart_policy", "spec.node_selector",
        "spec.high_availability",
    ),
    immutable=(
        "spec.image", "spec.arch", "spec.root_disk_bytes", "spec.root_volume", "spec.nics", "spec.volumes",
        "spec.ssh_keys", "spec.user_data", "spec.node", "spec.power_generation", "spec.reboot_generation", "spec.force",
        "spec.volume_type", "spec.volumes_generation",
    ),
)  # fmt: skip


class VmService(vm_pb2_grpc.VmServiceServicer):
    """VmService of proto/v1/vm.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateVm(self, request: vm_pb2.CreateVmRequest, context: Any) -> Vm:
        """Make a VM with its root volume and cards."""
        if request.count > 1:
            return await self._plan_several(request, caller_of(context))
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: create_vm(view, caller, self._core, request.vm)
        )

    async def _plan_several(self, request: vm_pb2.CreateVmRequest, caller: Caller) -> Vm:
        """Plan NAME-1 to NAME-count. Raises Invalid, and what making one would raise."""
        if not request.validate_only:
            raise Invalid("count", "is for plans (validate_only); make each with a call of its own and its part's plan_id")
        if request.count > PLANNED_MAX:
            raise Invalid("count", f"{request.count} is more than {PLANNED_MAX}, the most that are planned at once")

        def deciding(part: vm_pb2.CreateVmRequest) -> Decide[Vm]:
            return lambda view, caller: create_vm(view, caller, self._core, part.vm)

        parts = [_part(request, number) for number in range(1, request.count + 1)]
        return await self._core.mutations.plan_several(caller, [(part, deciding(part)) for part in parts])

    async def GetVm(self, request: vm_pb2.GetVmRequest, context: Any) -> Vm:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.VM, request)

    async def ListVms(self, request: vm_pb2.ListVmsRequest, context: Any) -> vm_pb2.ListVmsResponse:
        """Return a page."""
        return await self._core.listings.list(caller_of(context), nouns.VM, request, vm_pb2.ListVmsResponse)

    async def WatchVms(self, request: vm_pb2.WatchVmsRequest, context: Any) -> AsyncIterator[vm_pb2.WatchVmsResponse]:
        """Follow them."""
        async for response in self._core.watches.watch(caller_of(context), nouns.VM, request, vm_pb2.WatchVmsResponse):
            yield response

    async def UpdateVm(self, request: vm_pb2.UpdateVmRequest, context: Any) -> Vm:
        """Resize, relabel, change power."""

        def decide(view: View, caller: Caller) -> Decided[Vm]:
            decided, _, _ = updated(view, caller, self._core, nouns.VM, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def StartVm(self, request: vm_pb2.StartVmRequest, context: Any) -> Vm:
        """Run it; also again after its guest shut itself down."""

        def change(view: View, vm: Vm) -> None:
            vm.spec.power_state, vm.spec.force = POWER_STATE_RUNNING, False
            vm.spec.power_generation = next_power(view, vm)

        return await self._power(request, context, Verb.START, change)

    async def StopVm(self, request: vm_pb2.StopVmRequest, context: Any) -> Vm:
        """Ask its guest to shut down, or cut its power."""

        def change(_view: View, vm: Vm) -> None:
            vm.spec.power_state, vm.spec.force = POWER_STATE_STOPPED, request.force

        return await self._power(request, context, Verb.STOP, change)

    async def RebootVm(self, request: vm_pb2.RebootVmRequest, context: Any) -> Vm:
        """Restart its guest."""

        def change(view: View, vm: Vm) -> None:
            if vm.spec.power_state == POWER_STATE_STOPPED:
                raise BadState("vm", vm.name, f"VM {vm.name!r} is stopped: start it with `cairn vm start {vm.name}`")
            vm.spec.reboot_generation = next_reboot(view, vm)
            vm.spec.force = request.force

        return await self._power(request, context, Verb.REBOOT, change)

    async def _power(self, request: Any, context: Any, verb: Verb, change: Callable[[View, Vm], None]) -> Vm:
        """Run one power operation; change edits a copy of the VM."""

        def decide(view: View, caller: Caller) -> Decided[Vm]:
            record = addressed(view, caller, nouns.VM, request, verb=verb)
            vm = _copy(record)
            change(view, vm)
            vm.update_time.CopyFrom(timestamp(self._core.clock.now()))
            txn = Txn("api").check(kinds.VM, vm.id, record.mod_revision).put(kinds.VM, vm.id, vm)
            said = [(f"{verb.title()}Requested", f"{verb} of VM {vm.name} was asked for")]
            return Decided(txn, nouns.VM, vm.id, vm.name, vm.project, events=said)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeleteVm(self, request: vm_pb2.DeleteVmRequest, context: Any) -> Vm:
        """Stop it and put its disks away for the retention period, or erase it. Data volumes are detached and stay."""
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: delete_vm(view, caller, self._core, request)
        )

    async def UndeleteVm(self, request: vm_pb2.UndeleteVmRequest, context: Any) -> Vm:
        """Bring a deleted VM back, with its disks and addresses; data volumes that stayed have to be attached again.

        Its root disk, if that stayed, is taken back, unless somebody uses it.
        """
        return await self._core.mutations.run(
            request, caller_of(context), lambda view, caller: self._undelete(view, caller, request)
        )

    def _undelete(self, view: View, caller: Caller, request: vm_pb2.UndeleteVmRequest) -> Decided[Vm]:
        record = addressed(view, caller, nouns.VM, request, verb=Verb.UNDELETE, deleted=True)
        vm = _copy(record)
        txn = revived(view, caller, record, vm, nouns.VM, self._core.clock, request.name)
        # Also of one that stays off: what its node says of the life before must not count for this one.
        vm.spec.power_generation = next_power(view, vm)
        reattach_root(view, caller, txn, vm)
        txn.put(kinds.VM, vm.id, vm)
        for id in view.by(kinds.VOLUME, "vm", vm.id):
            held = view.record(kinds.VOLUME, id)
            if held is None:
                continue
            try:
                resolution.claim(txn, view, caller, nouns.VOLUME, vm.project, held.message.name, id)
            except AlreadyExists:
                # Somebody took the disk's name meanwhile: it goes by its id.
                volume = type(held.message)()
                volume.CopyFrom(held.message)
                volume.name = id
                txn.check(kinds.VOLUME, id, held.mod_revision).put(kinds.VOLUME, id, volume)
        said = [("Undeleted", f"VM {vm.name} was brought back")]
        return Decided(txn, nouns.VM, vm.id, vm.name, vm.project, events=said)

    async def ExplainVm(self, request: vm_pb2.ExplainVmRequest, context: Any) -> vm_pb2.ExplainVmResponse:
        """Return the decision that placed it, or could not."""
        caller = caller_of(context)
        try:
            return await self._explained(self._core.cache.view, caller, request)
        except (NotFound, OutOfRange):
            # Of a picture that has fallen behind, the store may know the revision no more.
            return await self._explained(await self._core.mutations.freshen(), caller, request)

    async def _explained(self, view: View, caller: Caller, request: vm_pb2.ExplainVmRequest) -> vm_pb2.ExplainVmResponse:
        """Answer from a picture. Raises NotFound, OutOfRange, TryAgain."""
        record = addressed(view, caller, nouns.VM, request, deleted=True)
        shown = nouns.VM.project(view, record)
        answer = vm_pb2.ExplainVmResponse(vm=shown.id, vm_name=shown.name, say=shown.status.say)
        decision = explained(view, shown.id, await stored(self._core.store, view.revision, kinds.DECISION, shown.id))
        if decision is not None:
            answer.decision.CopyFrom(decision)
        return answer

    async def ConsoleVm(
        self, requests: AsyncIterator[vm_pb2.ConsoleVmRequest], context: Any
    ) -> AsyncIterator[vm_pb2.ConsoleVmResponse]:
        """Relay the serial console of its node's agent."""
        async for response in relay_console(self._core, caller_of(context), requests):
            yield response


def _part(request: vm_pb2.CreateVmRequest, number: int) -> vm_pb2.CreateVmRequest:
    """Return what asks for one of several."""
    part = vm_pb2.CreateVmRequest(vm=request.vm)
    part.vm.name = f"{request.vm.name}-{number}"
    return part


def _copy(record: Record[Any]) -> Vm:
    vm = Vm()
    vm.CopyFrom(record.message)
    return vm


def delete_vm(view: View, caller: Caller, core: Core, request: vm_pb2.DeleteVmRequest) -> Decided[Vm]:
    """Decide a VM's deletion. Raises Refused."""
    record = addressed(view, caller, nouns.VM, request, verb=Verb.DELETE, deleted=True)
    refuse_if_deleted(record, nouns.VM, purge=request.purge)
    resolution.check_etag("etag", record, request.etag, required=False, title="VM")
    vm = _copy(record)
    resolution.refuse_unknown(view, nouns.VOLUME, (vm.spec.root_volume, *vm.spec.volumes))
    mark_deleted(core, vm, purge=request.purge)
    vm.spec.volumes_generation += 1
    # Volumes that go with it stay attached: they are brought back with it.
    kept = (view.get(kinds.VOLUME, id) for id in vm.spec.volumes)
    vm.spec.volumes[:] = [volume.id for volume in kept if volume is not None and volume.spec.delete_with_vm]
    txn = Txn("api").check(kinds.VM, vm.id, record.mod_revision).put(kinds.VM, vm.id, vm)
    resolution.release(txn, view, nouns.VM, vm.project, vm.name, vm.id)
    for id in view.by(kinds.VOLUME, "vm", vm.id):
        held = view.record(kinds.VOLUME, id)
        if held is None:
            continue
        if held.message.spec.delete_with_vm:
            # Checked: it may be changed at this moment not to go with the VM.
            txn.check(kinds.VOLUME, id, held.mod_revision)
            resolution.release(txn, view, nouns.VOLUME, vm.project, held.message.name, id)
            continue
        volume = type(held.message)()
        volume.CopyFrom(held.message)
        free(view, volume, vm)
        txn.check(kinds.VOLUME, id, held.mod_revision).put(kinds.VOLUME, id, volume)
    said = [("Deleted", f"VM {vm.name} was deleted")]
    return Decided(txn, nouns.VM, vm.id, vm.name, vm.project, events=said)


def amend(view: View, _caller: Caller, _txn: Txn, new: Vm, record: Record[Any]) -> None:
    """Check an updated VM. Raises Invalid, Exhausted."""
    old: Vm = record.message
    validation.cpus("vm.spec.cpus", new.spec.cpus)
    validation.memory("vm.spec.memory_bytes", new.spec.memory_bytes)
    if (new.spec.cpus, new.spec.memory_bytes) != (old.spec.cpus, old.spec.memory_bytes):
        fits_somewhere(view, new.spec)
    validation.labels("vm.spec.node_selector", new.spec.node_selector)
    if not old.spec.high_availability:
        refuse_high_availability(new.spec)
    if new.spec.power_state != old.spec.power_state:
        new.spec.force = False
        if new.spec.power_state == POWER_STATE_RUNNING:
            new.spec.power_generation = next_power(view, new)
