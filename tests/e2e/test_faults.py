"""What is killed at night: agents, libvirtd, controllers, an etcd leader, a whole server. Guests keep running."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cairn.proto.pki import CONTROLLER_SERVER_NAME
from cairn.proto.rpc import FileCredentials, GrpcTransport
from cairn.proto.seams import SystemIds
from cairn.proto.v1.vm_pb2 import DeleteVmRequest, WatchVmsRequest
from cairn.proto.v1.vm_pb2_grpc import VmServiceStub

from tests.e2e.conftest import create, status, wait_state
from tests.lab.demo import ping_from
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab


def qemu_pids(host: Host) -> dict[str, str]:
    """Domain -> process id of its QEMU inside the server."""
    listed = host.run("sh", "-c", "cd /run/libvirt/qemu && for f in i-*.pid; do echo ${f%.pid} $(cat $f); done", check=False)
    return dict(line.split() for line in listed.stdout.splitlines() if len(line.split()) == 2)


def restarted(host: Host, service: str) -> None:
    """Kill -9 and wait until another process has taken its place."""
    before = host.pid_of(service)
    assert before, f"{service} does not run on {host.name}"
    host.kill(service, signal.SIGKILL)
    wait_until(f"{service} to be started again", lambda: host.pid_of(service) not in (0, before))


@pytest.mark.parametrize("service", ["agent", "libvirtd"])
def test_guest_survives_kill_and_is_adopted_again(lab: Lab, vms: list[str], service: str) -> None:
    node = str(create(lab, vms, f"survivor-{service}")["node"])
    host = lab.host(node)
    vm = lab.json("vm", "show", f"survivor-{service}")["id"]
    before = qemu_pids(host)
    restarted(host, service)
    lab.cairn("vm", "stop", f"survivor-{service}", "--force")
    assert vm not in host.run("virsh", "list", "--name").stdout
    lab.cairn("vm", "start", f"survivor-{service}")
    after = qemu_pids(host)
    assert {name for name, pid in before.items() if after.get(name) == pid} >= before.keys() - {vm}
    assert host.run("virsh", "list", "--all", "--name").stdout.split().count(vm) == 1


def test_every_controller_killed_guests_run_and_work_goes_on(lab: Lab, vms: list[str]) -> None:
    state = create(lab, vms, "calm")
    host = lab.host(str(state["node"]))
    before = qemu_pids(host)
    for each in lab.control:
        each.kill("controller", signal.SIGKILL)
    assert qemu_pids(host) == before
    create(lab, vms, "after")
    assert qemu_pids(host).items() >= before.items()
    assert status(lab, "calm")["state"] == "STATE_RUNNING"


def test_agent_killed_while_it_makes_a_vm(lab: Lab, vms: list[str]) -> None:
    vms.append("halfway")
    lab.cairn(
        "vm", "create", "halfway", "--cpus", "1", "--memory", "128MiB", "--image", "demo", "--subnet", "blue",
        "--node", "n2", "--no-wait",
    )  # fmt: skip
    host = lab.host("n2")
    vm = lab.json("vm", "show", "halfway")["id"]
    wait_until("its volume to appear", lambda: vm in host.run("virsh", "list", "--all", "--name").stdout, every_s=0.01)
    restarted(host, "agent")
    wait_state(lab, "halfway", "RUNNING")
    assert host.run("virsh", "list", "--all", "--name").stdout.split().count(vm) == 1


def test_power_cut_and_boot_brings_guests_back(lab: Lab, vms: list[str]) -> None:
    create(lab, vms, "phoenix", "--node", "n3")
    create(lab, vms, "observer", "--node", "n1")
    host = lab.host("n3")
    host.power_off()
    wait_state(lab, "phoenix", "UNKNOWN")
    host.boot()
    nics = wait_state(lab, "phoenix", "RUNNING", 90)["nics"]
    assert isinstance(nics, list)
    ping_from(lab, "observer", nics[0]["address"])


def leader(lab: Lab) -> Host:
    members = lab.json("cluster", "status")["members"]
    endpoint = next(member["endpoint"] for member in members if member.get("leader"))
    return next(host for host in lab.control if host.address in endpoint)


@pytest.fixture
def swept(lab: Lab) -> Iterator[None]:
    """Leaves no VM of the storm to later tests, however this one ended."""
    yield
    asyncio.run(erase_all(lab, [vm["id"] for vm in storm_vms(lab)]))


@pytest.mark.usefixtures("swept")
def test_etcd_leader_killed_during_200_creates(lab: Lab) -> None:
    """No address twice, no VM lost, no orphan. The VMs are created stopped: the storm is about state, not about booting."""
    count = 200
    for node in ("n1", "n2", "n3"):
        lab.cairn("node", "set", node, "--cpu-overcommit", "64")
    lab.cairn("subnet", "create", "storm", "--vpc", "demo", "--cidr", "10.1.128.0/20")
    options = ("--cpus", "1", "--memory", "32MiB", "--image", "demo", "--subnet", "storm", "--stopped", "--no-wait")
    etcd = leader(lab).pid_of("etcd")
    with ThreadPoolExecutor(1) as pool:
        storm = pool.submit(lab.cairn, "vm", "create", "storm", "--count", str(count), *options)
        asyncio.run(hear_of(lab, count // 8))
        assert not storm.done(), "the storm was over before the leader was killed"
        os.kill(etcd, signal.SIGKILL)
        assert storm.result().returncode == 0

    def settled() -> bool:
        return sum(vm["status"]["state"] == "STATE_STOPPED" for vm in storm_vms(lab)) == count

    wait_until("all to be stopped and in place", settled, 120, every_s=1.0)
    vms = storm_vms(lab)
    addresses = [vm["status"]["nics"][0]["address"] for vm in vms]
    assert len({vm["name"] for vm in vms}) == len(set(addresses)) == count
    wanted = {vm["id"] for vm in vms}
    assert wanted <= defined(lab)
    asyncio.run(erase_all(lab, sorted(wanted)))
    wait_until("all domains to be gone", lambda: not wanted & defined(lab), 120, every_s=1.0)
    of_storm = ("port", "list", "--filter", 'status.subnet_name = "storm"')
    wait_until("all ports to be gone", lambda: not lab.json(*of_storm), 60, every_s=1.0)
    lab.cairn("subnet", "delete", "storm")


def storm_vms(lab: Lab) -> list[dict[str, Any]]:
    return [vm for vm in lab.json("vm", "list") if vm["name"].startswith("storm-")]


@asynccontextmanager
async def api(lab: Lab) -> AsyncIterator[Any]:
    """The VM service over one connection."""
    transport = GrpcTransport(FileCredentials(lab.pki / "ca.crt", lab.pki / "admin.crt", lab.pki / "admin.key"))
    channel = transport.channel(lab.endpoints, server_name=CONTROLLER_SERVER_NAME)
    try:
        yield VmServiceStub(channel)
    finally:
        await channel.close()


async def hear_of(lab: Lab, count: int) -> None:
    """Return as soon as so many VMs of the storm are there."""
    heard: set[str] = set()
    async with api(lab) as stub:
        async for response in stub.WatchVms(WatchVmsRequest(), timeout=60):
            heard |= {response.vm.id} if response.vm.name.startswith("storm-") else set()
            if len(heard) >= count:
                return


async def erase_all(lab: Lab, vms: list[str]) -> None:
    """Delete many VMs over one connection."""
    ids = SystemIds()
    async with api(lab) as stub:
        for vm in vms:
            await stub.DeleteVm(DeleteVmRequest(id=vm, purge=True, request_id=ids.uuid()), timeout=20)


def defined(lab: Lab) -> set[str]:
    """All domains on all servers; each on one only."""
    names = [name for host in lab.hosts for name in host.run("virsh", "list", "--all", "--name").stdout.split()]
    assert len(names) == len(set(names)), "a domain is on two servers"
    return set(names)
