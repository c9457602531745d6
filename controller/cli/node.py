"""cairn node, and the tokens with which servers join."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_argument
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_rename
from cairn.controller.cli.output import Column, Detail, Section
from cairn.controller.cli.values import DURATION, counted, size_text, state_text


def _state(node: Any) -> str:
    state = state_text(node.status)
    if state == "READY" and node.status.facts.hypervisor.silent:
        return "DEGRADED"
    return "CORDONED" if state == "READY" and node.spec.cordoned else state


def _memory(node: Any) -> str:
    return f"{size_text(node.status.claims.memory_bytes)} of {size_text(node.status.capacity.memory_bytes)}"


def _details(node: Any) -> Iterable[Detail]:
    facts, capacity, claims = node.status.facts, node.status.capacity, node.status.claims
    yield "New VMs", "none: it is cordoned" if node.spec.cordoned else ""
    yield "Agent", " ".join(filter(None, [node.status.endpoint, facts.agent_version]))
    yield "Connected", node.status.connect_time
    yield Section(
        "Promised",
        [
            ("cpus", f"{claims.cpus} of {capacity.cpus}"),
            ("memory", _memory(node)),
            ("disk", f"{size_text(claims.disk_bytes)} of {size_text(capacity.disk_bytes)}"),
            ("VMs", str(claims.vms)),
        ],
    )
    yield from _hardware(facts)
    hypervisor = facts.hypervisor
    yield Section(
        "Hypervisor",
        [
            ("silent", hypervisor.silent),
            ("accelerator", hypervisor.accelerator),
            ("guests", ", ".join(hypervisor.archs)),
            ("CPU mode", hypervisor.cpu_mode),
            ("libvirt", hypervisor.libvirt_version),
            ("QEMU", hypervisor.qemu_version),
        ],
    )
    pools = [(p.type, f"{size_text(p.free_bytes)} free of {size_text(p.total_bytes)}  {p.path}") for p in facts.pools]
    yield Section("Storage", pools)
    yield Section("Underlay", [("address", facts.vtep), ("MTU", facts.underlay_mtu or "")])


def _hardware(facts: Any) -> Iterable[Detail]:
    cpu, firmware = facts.cpu, facts.firmware
    topology = ", ".join([counted(cpu.sockets, "socket"), counted(cpu.cores, "core"), counted(cpu.threads, "thread")])
    yield Section(
        "Hardware",
        [
            ("system", " ".join(filter(None, [firmware.system_vendor, firmware.system_product, firmware.system_serial]))),
            ("architecture", facts.arch),
            ("CPU", cpu.model or cpu.vendor),
            ("topology", topology if cpu.threads else ""),
            ("virtualization", cpu.virtualization or ("none" if cpu.threads else "")),
            ("memory", size_text(facts.memory_bytes) if facts.memory_bytes else ""),
            ("firmware", " ".join(filter(None, [firmware.vendor, firmware.version, firmware.date, _boot(firmware)]))),
            ("kernel", facts.kernel),
            ("system software", facts.os),
        ],
    )
    yield Section("NUMA", [(f"node {n.id}", f"cpus {n.cpus}, {size_text(n.memory_bytes)}") for n in facts.numa])
    yield Section("Disks", [(disk.name, _disk(disk)) for disk in facts.disks])
    yield Section("NICs", [(nic.name, _nic(nic)) for nic in facts.nics])
    yield Section("Could not be read", [("", fault) for fault in facts.faults])


def _boot(firmware: Any) -> str:
    if not firmware.uefi:
        return ""
    return "UEFI, secure boot" if firmware.secure_boot else "UEFI"


def _disk(disk: Any) -> str:
    kind = "rotating" if disk.rotational else "solid state"
    away = "over the network" if disk.remote else ""
    ways = f"{disk.paths} paths" if disk.paths > 1 else ""
    return "  ".join(filter(None, [size_text(disk.size_bytes), disk.transport, away, ways, kind, disk.model, disk.serial]))


def _nic(nic: Any) -> str:
    speed = f"{nic.speed_mbps} Mb/s" if nic.speed_mbps else ""
    link = "up" if nic.link_up else "no link"
    return "  ".join(filter(None, [nic.mac, link, speed, f"MTU {nic.mtu}", nic.driver, nic.pci_address]))


NOUN = Noun(
    "node",
    "nodes",
    "node",
    columns=[
        Column("NAME", lambda node: node.name),
        Column("ID", lambda node: node.id),
        Column("STATE", _state),
        Column("VMS", lambda node: node.status.claims.vms, right=True),
        Column("CPUS", lambda node: f"{node.status.claims.cpus}/{node.status.capacity.cpus}", right=True),
        Column("MEMORY", _memory, right=True),
        Column("AGE", lambda node: node.create_time),
        Column(
            "DISK",
            lambda node: f"{size_text(node.status.claims.disk_bytes)} of {size_text(node.status.capacity.disk_bytes)}",
            wide=True,
            right=True,
        ),
        Column("ARCH", lambda node: node.status.facts.arch, wide=True),
        Column("BY", lambda node: node.status.facts.hypervisor.accelerator, wide=True),
        Column("ADDRESS", lambda node: node.status.facts.vtep, wide=True),
        Column("LABELS", lambda node: ",".join(f"{k}={v}" for k, v in sorted(node.labels.items())), wide=True),
        Column("SAYS", lambda node: node.status.say, wide=True),
    ],
    details=_details,
)
group = NounGroup("node", "Servers that carry VMs, and tokens to join more.")
add_list(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)
add_delete(group, NOUN, "remove", "Let a node leave for good, once no VM, no volume and no image's only copy is on it.")


@group.verb("show")
@name_argument("node")
async def show(session: Session, name: str) -> None:
    """Show one node in detail, also what it holds that the records do not know."""
    from cairn.controller.cli.adopt import listed

    node = await NOUN.get(session, name)
    unknown = await listed(session, node.id) if session.output.human else []
    session.output.one(node, lambda message: (*NOUN.described(message), _unknown(message.name, unknown)))


def _unknown(node: str, unknown: Sequence[Any]) -> Section:
    """Return what a node holds that the records do not know, or know otherwise, and what can be done about it."""
    rows = [(each.key, f"{each.name}: {each.say}" if each.name else each.say) for each in unknown]
    if any(not each.key.startswith("image/") for each in unknown):
        rows.append(("make known", "cairn cluster adopt KEY, or --all"))
    if any(not each.contested for each in unknown):
        rows.append(("remove", f"cairn node forget {node} KEY, or --all; with --plan it says what that would remove"))
    return Section("Unknown", rows)


async def _cordon(session: Session, name: str, cordoned: bool) -> None:
    def change(node: Any) -> None:
        node.spec.cordoned = cordoned

    await NOUN.update(session, name, change, ["spec.cordoned"], None)


@group.verb("cordon", changes=True)
@name_argument("node")
async def cordon(session: Session, name: str) -> None:
    """Place no new VMs on a node; those it has stay."""
    await _cordon(session, name, True)


@group.verb("uncordon", changes=True)
@name_argument("node")
async def uncordon(session: Session, name: str) -> None:
    """Place new VMs on a node again."""
    await _cordon(session, name, False)


@group.verb("set", changes=True)
@name_argument("node")
@click.option("--cpu-overcommit", type=float, metavar="X", help="Virtual CPUs handed out per CPU thread; 4 unless set.")
@click.option("--memory-share", type=float, metavar="X", help="Share of memory handed out; 0.9 unless set.")
async def set_policy(session: Session, name: str, cpu_overcommit: float | None, memory_share: float | None) -> None:
    """Change how much of a node is handed out; VMs that are there stay."""
    wanted = {"cpu_overcommit": cpu_overcommit, "memory_share": memory_share}
    chosen = {field: value for field, value in wanted.items() if value is not None}
    if not chosen:
        raise Failure("nothing to change: give --cpu-overcommit or --memory-share", usage=True)

    def change(node: Any) -> None:
        for field, value in chosen.items():
            setattr(node.spec, field, value)

    await NOUN.update(session, name, change, [f"spec.{field}" for field in chosen], None)


@group.verb("forget", changes=True)
@name_argument("node")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--all", "everything", is_flag=True, help="All that no record speaks of (`cairn node show`).")
@click.option("--yes", is_flag=True, help="Do not ask: what is removed is gone for good.")
async def forget(session: Session, name: str, keys: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Have a node remove what it holds and no record speaks of: guests, volumes, images, by their keys (`cairn node show`).

    A VM's volumes are removed by their own keys. With --plan: say what would be removed, and leave it.
    """
    from cairn.controller.cli.adopt import listed
    from cairn.proto.v1.cluster_pb2 import ForgetUnknownRequest

    if session.settings.plan_id:
        raise Failure("what a node forgets has no plan id", next="repeat it with the keys", usage=True)
    if not keys and not everything:
        raise Failure("say what it is to forget: keys, or --all", next=f"cairn node show {name}", usage=True)
    if everything or session.settings.plan:
        held = await listed(session, name)
        chosen = [each for each in held if not each.contested] if everything else [_forgettable(held, key) for key in keys]
        keys = tuple(each.key for each in chosen)
        if not keys:
            session.output.say(f"{name} holds nothing that no record speaks of")
            return
        if session.settings.plan:
            session.output.lines(f"would remove {' '.join(filter(None, [each.key, each.name]))}: {each.say}" for each in chosen)
            return
    if not yes:
        if not sys.stdin.isatty():
            raise Failure("what is removed is gone for good: that needs a word", next="repeat it with --yes", usage=True)
        click.confirm(f"Remove {', '.join(keys)} from {name} for good?", abort=True, err=True)
    for key in keys:
        answer = await session.call("cluster", ForgetUnknownRequest(node=name, key=key))
        session.output.say(f"{answer.title}: {name} removes it")


def _forgettable(held: Sequence[Any], key: str) -> Any:
    """Return what may be forgotten under a key. Failure when there is none, or a record speaks of it."""
    from cairn.controller.cli.adopt import named

    found = named(held, key)
    if found.contested:
        kind, _, id = found.key.partition("/")
        raise Failure(f"there is a record of {found.key}: delete that", next=f"cairn {kind} delete {id}")
    return found


token = NounGroup("token", "One-time tokens with which new servers join.")
group.add_command(token)


@token.verb("create", changes=True, noun="join token")
@click.option("--node", "node_name", default="", metavar="NAME", help="Only the node of this name may use it.")
@click.option("--ttl", type=DURATION, default=3600.0, metavar="1h", help="How long it is good for; 1h unless given.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file, mode 0600.")
async def create_token(session: Session, node_name: str, ttl: float, out: Path | None) -> None:
    """Make a one-time token. It is a secret: hand it over in a file, never in a command line."""
    from cairn.proto import pki

    request = NOUN.request("CreateJoinToken", ttl_s=round(ttl), node_name=node_name)
    answer = await session.call("node", request)
    if out is not None:
        try:
            pki.write_private(out, answer.token.encode() + b"\n")
        except OSError as error:
            raise Failure(f"cannot write {out}: {error.strerror}") from error
        session.output.say(f"written to {out}; good until {answer.expire_time.ToJsonString()}, once")
    elif session.output.human:
        session.output.lines([answer.token])
        session.output.say(f"good until {answer.expire_time.ToJsonString()}, once")
    else:
        session.output.one(answer, lambda _answer: ())


def _token_columns(now: datetime) -> list[Column]:
    def use(token: Any) -> str:
        if token.used_by:
            return f"used by {token.used_by_name or token.used_by}"
        return "not used" if token.expire_time.ToDatetime(UTC) > now else "ended unused"

    return [
        Column("ID", lambda token: token.id),
        Column("FOR NODE", lambda token: token.node_name or "any"),
        Column("USE", use),
        Column("ENDS", lambda token: f"{token.expire_time.ToDatetime():%Y-%m-%d %H:%M}"),
        Column("AGE", lambda token: token.create_time),
    ]


@token.verb("list")
async def list_tokens(session: Session) -> None:
    """Join tokens and who used them, each for a day after it ended. What makes them good is not shown."""
    found, page_token = list[Any](), ""
    while True:
        answer = await session.call("node", NOUN.request("ListJoinTokens", page_size=1000, page_token=page_token))
        found.extend(answer.join_tokens)
        page_token = answer.next_page_token
        if not page_token:
            break
    session.output.list(_token_columns(session.now()), found, empty="no join tokens; `cairn node token create` makes one")


@token.verb("delete", changes=True, noun="join token")
@click.argument("id")
async def delete_token(session: Session, id: str) -> None:
    """Take a join token back: no server joins with it from then on."""
    gone = await session.call("node", NOUN.request("DeleteJoinToken", id=id))
    session.output.made(_token_columns(session.now()), [gone])
