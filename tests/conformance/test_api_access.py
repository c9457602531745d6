"""Users, roles and bindings on a real API server: who may do what, who gives what to whom, and what nobody may see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller.model.where import where
from cairn.controller.store.base import Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds
from cairn.proto.pki import Identity
from cairn.proto.v1 import binding_pb2, node_pb2, project_pb2, role_pb2, user_pb2, vm_pb2, vpc_pb2
from cairn.proto.v1.audit_pb2 import ListAuditsRequest
from cairn.proto.v1.auth_pb2 import CheckPermissionRequest, WhoAmIRequest
from cairn.proto.v1.binding_pb2 import Binding
from cairn.proto.v1.role_pb2 import Role, RoleSpec
from cairn.proto.v1.user_pb2 import User, UserSpec
from cairn.proto.v1.vpc_pb2 import Vpc, VpcSpec

from tests.conformance.api_world import World, vm, world_on

Code = grpc.StatusCode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(MemoryStore(), tmp_path) as world:
        await world.furnish()
        yield world


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def new_vpc(name: str, project: str = "") -> vpc_pb2.CreateVpcRequest:
    return vpc_pb2.CreateVpcRequest(vpc=Vpc(name=name, project=project, spec=VpcSpec(cidr="10.9.0.0/16")))


async def test_nobody_may_do_anything_before_he_is_given_it(world: World) -> None:
    bob, stranger = await world.user("bob"), world.stubs(Identity("user", "nobody"))
    for stubs in (bob, stranger):
        code, say = await refused(stubs.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest()))
        assert code is Code.PERMISSION_DENIED
        assert "vpc.see" in say
    await world.bind("viewer", user="bob")
    assert [vpc.name for vpc in (await bob.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest())).vpcs] == ["home"]
    code, say = await refused(bob.vpcs.CreateVpc(new_vpc("mine")))
    assert (code, "vpc.create" in say) == (Code.PERMISSION_DENIED, True)


async def test_a_member_of_one_project_sees_nothing_of_another(world: World) -> None:
    red = await world.project("red")
    bob = await world.user("bob", "member", "red")
    mine = await bob.vpcs.CreateVpc(new_vpc("mine", "red"))
    home = (await world.api.vpcs.GetVpc(vpc_pb2.GetVpcRequest(id="home"))).id
    assert mine.project == red
    assert [each.id for each in (await bob.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest(project="-"))).vpcs] == [mine.id]
    for call in (
        bob.vpcs.GetVpc(vpc_pb2.GetVpcRequest(id=home, project="red")),
        bob.vpcs.GetVpc(vpc_pb2.GetVpcRequest(id="home")),
        bob.vpcs.DeleteVpc(vpc_pb2.DeleteVpcRequest(id=home, project="red")),
        bob.vpcs.CreateVpc(new_vpc("theirs")),
    ):
        code, say = await refused(call)
        assert code is Code.NOT_FOUND
        assert "10.1" not in say


async def test_who_looks_into_a_project_does_not_see_who_else_there_is(world: World) -> None:
    bob = await world.user("bob", "viewer", "default")
    assert not (await bob.users.ListUsers(user_pb2.ListUsersRequest())).users
    assert (await refused(bob.users.GetUser(user_pb2.GetUserRequest(id="bob"))))[0] is Code.NOT_FOUND
    assert (await bob.roles.ListRoles(role_pb2.ListRolesRequest())).roles, "what roles there are is no secret"
    assert not (await bob.nodes.ListNodes(node_pb2.ListNodesRequest())).nodes


async def test_a_binding_for_one_object_gives_that_object(world: World) -> None:
    await world.vm("web")
    await world.vm("db")
    bob = await world.user("bob")
    await world.bind("member", "default", "vm/web", user="bob")
    assert [vm.name for vm in (await bob.vms.ListVms(vm_pb2.ListVmsRequest())).vms] == ["web"]
    await bob.vms.StopVm(vm_pb2.StopVmRequest(id="web"))
    assert (await refused(bob.vms.StopVm(vm_pb2.StopVmRequest(id="db"))))[0] is Code.NOT_FOUND


async def test_groups_and_everyone(world: World) -> None:
    bob = await world.user("bob", groups=["ops"])
    eve = await world.user("eve")
    await world.bind("viewer", group="ops")
    assert (await bob.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest())).vpcs
    assert (await refused(eve.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest())))[0] is Code.PERMISSION_DENIED
    await world.bind("viewer", everyone=True)
    assert (await eve.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest())).vpcs


async def test_who_is_disabled_may_do_nothing_at_once_and_again_once_let_in(world: World) -> None:
    bob = await world.user("bob", "viewer")
    for disabled, code in ((True, Code.PERMISSION_DENIED), (False, None)):
        change = User(name="bob", spec=UserSpec(disabled=disabled))
        asked = user_pb2.UpdateUserRequest(user=change, allow_stale=True)
        asked.update_mask.paths.append("spec.disabled")
        await world.api.users.UpdateUser(asked)
        call = bob.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest())
        if code is None:
            await call
        else:
            assert (await refused(call))[0] is code


async def test_nobody_gives_what_he_has_not(world: World) -> None:
    await world.project("red")
    boss = await world.user("boss", "project-admin", "red")
    await world.user("bob")
    give = binding_pb2.CreateBindingRequest
    spec = binding_pb2.BindingSpec(role="member", subject=binding_pb2.Subject(user="bob"))
    made = await boss.bindings.CreateBinding(give(binding=binding_pb2.Binding(project="red", spec=spec)))
    assert (made.status.subject_name, made.status.role_name) == ("user bob", "member")
    code, _ = await refused(boss.bindings.CreateBinding(give(binding=binding_pb2.Binding(spec=spec))))
    assert code is Code.PERMISSION_DENIED, "not in the whole cluster"
    spec.role = "cluster-admin"
    code, say = await refused(boss.bindings.CreateBinding(give(binding=binding_pb2.Binding(project="red", spec=spec))))
    assert (code, "cannot" in say or "not bind" in say) == (Code.PERMISSION_DENIED, True)
    code, _ = await refused(boss.roles.CreateRole(role_pb2.CreateRoleRequest(role=Role(name="all", spec=RoleSpec()))))
    assert code is Code.PERMISSION_DENIED


async def test_nobody_lets_himself_into_a_group_that_has_more_than_he(world: World) -> None:
    await world.bind("cluster-admin", group="staff")
    spec = RoleSpec(permissions=["user.*", "project.see"])
    await world.api.roles.CreateRole(role_pb2.CreateRoleRequest(role=Role(name="doorman", spec=spec)))
    bob = await world.user("bob", "doorman")
    join = user_pb2.UpdateUserRequest(user=User(name="bob", spec=UserSpec(groups=["staff"])), allow_stale=True)
    join.update_mask.paths.append("spec.groups")
    made = user_pb2.CreateUserRequest(user=User(name="eve", spec=UserSpec(groups=["staff"])))
    for call in (bob.users.UpdateUser(join), bob.users.CreateUser(made)):
        code, say = await refused(call)
        assert (code, "cannot give role 'cluster-admin'" in say) == (Code.PERMISSION_DENIED, True)
    made.user.spec.groups[:] = ["guests"]
    await bob.users.CreateUser(made)


async def test_a_role_of_ones_own_is_what_it_says_at_once(world: World) -> None:
    spec = RoleSpec(permissions=["vpc.see", "project.see"])
    role = await world.api.roles.CreateRole(role_pb2.CreateRoleRequest(role=Role(name="vpcs", spec=spec)))
    bob = await world.user("bob", "vpcs")
    assert (await refused(bob.vpcs.CreateVpc(new_vpc("mine"))))[0] is Code.PERMISSION_DENIED
    role.spec.permissions.append("vpc.*")
    await world.api.roles.UpdateRole(role_pb2.UpdateRoleRequest(role=role))
    await bob.vpcs.CreateVpc(new_vpc("mine"))
    code, say = await refused(world.api.roles.DeleteRole(role_pb2.DeleteRoleRequest(id="vpcs")))
    assert (code, "bound 1 time" in say) == (Code.FAILED_PRECONDITION, True)
    wrong = Role(name="wrong", spec=RoleSpec(permissions=["vm.fly"]))
    code, say = await refused(world.api.roles.CreateRole(role_pb2.CreateRoleRequest(role=wrong)))
    assert (code, "vm.fly" in say) == (Code.INVALID_ARGUMENT, True)


async def test_roles_that_came_with_the_release_are_listed_and_stay(world: World) -> None:
    roles = (await world.api.roles.ListRoles(role_pb2.ListRolesRequest())).roles
    assert {role.name for role in roles} == {"viewer", "member", "project-admin", "operator", "auditor", "cluster-admin"}
    code, _ = await refused(world.api.roles.DeleteRole(role_pb2.DeleteRoleRequest(id="viewer")))
    assert code is Code.FAILED_PRECONDITION


async def test_the_last_administrator_stays(world: World) -> None:
    await world.user("ann", "cluster-admin")
    (only,) = (await world.api.bindings.ListBindings(binding_pb2.ListBindingsRequest())).bindings
    disable = user_pb2.UpdateUserRequest(user=User(name="ann", spec=UserSpec(disabled=True)), allow_stale=True)
    disable.update_mask.paths.append("spec.disabled")
    for call in (
        world.api.users.DeleteUser(user_pb2.DeleteUserRequest(id="ann")),
        world.api.users.UpdateUser(disable),
        world.api.bindings.DeleteBinding(binding_pb2.DeleteBindingRequest(id=only.id)),
    ):
        code, say = await refused(call)
        assert (code, "last administrator" in say) == (Code.FAILED_PRECONDITION, True)
    await world.user("ben", "cluster-admin")
    await world.api.users.DeleteUser(user_pb2.DeleteUserRequest(id="ann"))
    assert await world.count(kinds.BINDING) == 1
    assert await world.count(kinds.NAME) == len({*await names(world)})


async def names(world: World) -> list[str]:
    """Return the keys of the names that something has."""
    view = world.cache.view
    held = [view.get(kinds.NAME, id) for id in view.ids(kinds.NAME)]
    return [f"{each.kind}/{each.id}" for each in held if each is not None and view.get(kinds.BY_NAME[each.kind], each.id)]


async def test_no_user_is_called_like_the_first_administrator(world: World) -> None:
    code, say = await refused(world.api.users.CreateUser(user_pb2.CreateUserRequest(user=User(name="admin"))))
    assert (code, "first administrator" in say) == (Code.INVALID_ARGUMENT, True)


async def test_an_open_watch_ends_when_its_user_is_disabled(world: World) -> None:
    bob = await world.user("bob", "viewer")
    watch = bob.vpcs.WatchVpcs(vpc_pb2.WatchVpcsRequest())
    assert (await watch.read()).vpc.name == "home"
    change = user_pb2.UpdateUserRequest(user=User(name="bob", spec=UserSpec(disabled=True)), allow_stale=True)
    change.update_mask.paths.append("spec.disabled")
    await world.api.users.UpdateUser(change)
    async with asyncio.timeout(5):
        code, _ = await refused(drained(watch))
    assert code is Code.PERMISSION_DENIED


async def drained(watch: Any) -> None:
    while await watch.read() is not grpc.aio.EOF:
        pass


async def test_a_user_learns_who_he_is_what_he_may_and_why(world: World) -> None:
    await world.vm("web")
    red = await world.project("red")
    bob = await world.user("bob", "member", "red")
    me = await bob.auth.WhoAmI(WhoAmIRequest())
    assert (me.name, [each.status.role_name for each in me.bindings]) == ("bob", ["member"])
    may = await bob.auth.CheckPermission(CheckPermissionRequest(permission="vm.create", project="red"))
    assert (may.allowed, "user bob has role member" in may.say) == (True, True)
    not_so = await world.api.auth.CheckPermission(CheckPermissionRequest(permission="vm.delete", object="vm/web", user="bob"))
    assert (not_so.allowed, "cluster-admin, member, project-admin" in not_so.say) == (False, True)
    for permission, object, user, code in (
        ("vm.fly", "", "", Code.INVALID_ARGUMENT),
        ("vm.see", "vm/web", "", Code.NOT_FOUND),
        ("vm.see", "", "admin2", Code.NOT_FOUND),
    ):
        asked = CheckPermissionRequest(permission=permission, object=object, user=user, project=red)
        assert (await refused(bob.auth.CheckPermission(asked)))[0] is code
    root = await world.api.auth.WhoAmI(WhoAmIRequest())
    assert "first administrator" in root.say


@pytest.mark.parametrize("name", ["b\u043eb", "bob\u200b", "bob\n", "BOB", "b\x00b", "\u202ebob", "bob ", "\uff42ob", "bob-"])
async def test_no_name_looks_like_another(world: World, name: str) -> None:
    """Letters of other alphabets, what is not seen, and control characters: of users, groups, projects, roles and bindings."""
    calls = (
        world.api.users.CreateUser(user_pb2.CreateUserRequest(user=User(name=name))),
        world.api.users.CreateUser(user_pb2.CreateUserRequest(user=User(name="eve", spec=UserSpec(groups=[name])))),
        world.api.projects.CreateProject(project_pb2.CreateProjectRequest(project=project_pb2.Project(name=name))),
        world.api.roles.CreateRole(role_pb2.CreateRoleRequest(role=Role(name=name, spec=RoleSpec(permissions=["vm.see"])))),
        world.bind("viewer", group=name),
    )
    for call in calls:
        assert (await refused(call))[0] is Code.INVALID_ARGUMENT


async def test_ten_thousand_bindings(world: World) -> None:
    """What one has is found among what all have, listed in pages, and gone with the binding that gave it."""
    bob = await world.user("bob")
    mine = await world.bind("viewer", "default", user="bob")
    for start in range(0, 10_000, 50):
        txn = Txn("api")
        for number in range(start, start + 50):
            other = Binding(id=f"rb-{number:08d}", name=f"b{number}", project=mine.project)
            other.spec.role, other.spec.subject.group = mine.spec.role, f"g{number}"
            txn.create(kinds.BINDING, other.id, other)
        await world.commit(txn)
    assert (await bob.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest())).vpcs
    token, count = "", 0
    while True:
        asked = binding_pb2.ListBindingsRequest(project="default", page_size=1000, page_token=token)
        page = await world.api.bindings.ListBindings(asked)
        token, count = page.next_page_token, count + len(page.bindings)
        if not token:
            break
    assert count == 10_001
    await world.api.bindings.DeleteBinding(binding_pb2.DeleteBindingRequest(id=mine.id))
    assert (await refused(bob.vpcs.ListVpcs(vpc_pb2.ListVpcsRequest())))[0] is Code.PERMISSION_DENIED


async def test_work_that_was_accepted_goes_on_without_him_who_asked_for_it(world: World) -> None:
    """He is taken out between the call and what follows of it: his VM is placed and he is told no more."""
    await world.node("n9")
    bob = await world.user("bob", "member", "default")
    made = await bob.vms.CreateVm(vm_pb2.CreateVmRequest(vm=vm("later")))
    await world.api.users.DeleteUser(user_pb2.DeleteUserRequest(id="bob"))
    await world.reconcile()
    assert where(world.cache.view, made.id).owner
    assert (await refused(bob.vms.GetVm(vm_pb2.GetVmRequest(id=made.id))))[0] is Code.PERMISSION_DENIED
    found = (await world.api.audits.ListAudits(ListAuditsRequest(object=made.id))).audits
    assert [(each.who, each.method) for each in found] == [("bob", "CreateVm")]


async def test_the_first_certificate_is_marked_where_it_is_used(world: World) -> None:
    used: list[int] = []
    world.core.mutations.root_used = lambda: used.append(1)
    bob = await world.user("bob", "member", "default")
    await bob.vpcs.CreateVpc(new_vpc("his"))
    found = (await world.api.audits.ListAudits(ListAuditsRequest())).audits[-3:]
    assert [(each.who, each.method, each.first_administrator) for each in found] == [
        ("admin", "CreateUser", True),
        ("admin", "CreateBinding", True),
        ("bob", "CreateVpc", False),
    ]
    assert len(used) == 2
