"""What asking who may see it costs a list: `python -m tests.bench access`. 10,000 VMs, in one process without a network.

The same list for the first administrator, who is asked nothing; for somebody who may see all by a role; and for a member of the
project, who is shown no nodes. CPU, the best of some rounds of each, taken in turn.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cairn.controller.api import nouns
from cairn.controller.api.authorise import Admission
from cairn.controller.api.core import Core
from cairn.controller.api.feed import Feed
from cairn.controller.model.permits import Caller
from cairn.controller.model.roles import builtin_id
from cairn.controller.store.base import Txn
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.binding_pb2 import Binding, BindingSpec, Subject
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.role_pb2 import Role, RoleSpec
from cairn.proto.v1.user_pb2 import User
from cairn.proto.v1.vm_pb2 import ListVmsRequest, ListVmsResponse

from tests.bench.report import line, title
from tests.bench.start import fill

VMS, NODES, PAGE, ROUNDS = 10_000, 100, 1000, 5
# Who asks -> (role, project it is bound in; empty: the cluster).
CALLERS = {"admin": ("", ""), "a viewer of the cluster": ("viewer", ""), "a member of the project": ("member", "here")}


async def people(store: MemoryStore) -> None:
    """Write users, roles and bindings, and the project that all is in."""
    here = Project(id=nouns.DEFAULT_PROJECT_ID, name=nouns.DEFAULT_PROJECT)
    txn = Txn("api").create(kinds.PROJECT, here.id, here)
    for number, (name, (role, project)) in enumerate(CALLERS.items()):
        if not role:
            continue
        user, id = f"usr-{number:08d}", builtin_id(role)
        binding = Binding(id=f"rb-{number:08d}", project=here.id if project else "")
        binding.spec.CopyFrom(BindingSpec(role=id, subject=Subject(user=user)))
        txn.create(kinds.USER, user, User(id=user, name=name))
        txn.create(kinds.ROLE, id, Role(id=id, name=role, spec=RoleSpec(builtin=True)))
        txn.create(kinds.BINDING, binding.id, binding)
    await store.commit(txn)


async def listed(core: Core, admission: Admission, name: str) -> float:
    """Return the CPU seconds of listing all VMs, page by page, as the gate lets them out."""
    caller, token, count, began_s = Caller("user", name), "", 0, time.process_time()
    while True:
        request = ListVmsRequest(page_size=PAGE, page_token=token)
        answer: Any = await core.listings.list(caller, nouns.VM, request, ListVmsResponse)
        veil = admission.veil(caller)
        shown = answer if veil is None else veil.over(answer)
        shown.SerializeToString()
        count, token = count + len(shown.vms), answer.next_page_token
        if not token:
            break
    if count != VMS:
        raise AssertionError(f"{name} is shown {count} of {VMS} VMs")
    return time.process_time() - began_s


async def measure() -> None:
    """Fill a store, list it in turn for each, print the best of each."""
    store = MemoryStore()
    await fill(store, VMS, NODES)
    await people(store)
    cache = Cache(store)
    following = asyncio.create_task(cache.run())
    await cache.ready.wait()
    feed, clock = Feed(cache.view.revision), SystemClock()
    core = Core.build(store, cache, lambda: feed, clock, SystemIds(), None)
    admission = Admission(cache, core.mutations.freshen, clock)
    best = dict.fromkeys(CALLERS, float("inf"))
    for _ in range(ROUNDS):
        for name in CALLERS:
            best[name] = min(best[name], await listed(core, admission, name))
    following.cancel()
    plain = best["admin"]
    for name, cpu_s in best.items():
        baseline = None if name == "admin" else ("admin", plain * 1000)
        aim = "" if name == "admin" else "under 1.10"
        line(f"a list of {VMS:,} VMs, by {name}", cpu_s * 1000, "ms", baseline=baseline, aim=aim)


def main() -> None:
    """Measure and print."""
    title("access: what it costs to ask who may see")
    asyncio.run(measure())


if __name__ == "__main__":
    main()
