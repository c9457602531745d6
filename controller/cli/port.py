"""cairn port."""

from __future__ import annotations

from typing import Any

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_option
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_rename, add_show, perform
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import PAIR, state_text
from cairn.controller.cli.waiting import Goal


def _owner(port: Any) -> str:
    """Say whose it is: "VM web (i-1234abcd)"; empty: nobody's."""
    owner = port.spec.owner
    kind = "VM" if owner.kind == "vm" else owner.kind
    return " ".join(filter(None, (kind, port.status.owner_name, f"({owner.id})"))) if owner.id else ""


NOUN = Noun(
    "port",
    "ports",
    "port",
    columns=[
        Column("ID", lambda port: port.id),
        Column("OWNER", lambda port: port.status.owner_name or port.spec.owner.id),
        Column("SUBNET", lambda port: port.status.subnet_name or port.spec.subnet),
        Column("ADDRESS", lambda port: ",".join(port.status.addresses)),
        Column("STATE", lambda port: state_text(port.status)),
        Column("NODE", lambda port: port.status.node),
        Column("AGE", lambda port: port.create_time),
        Column("NAME", lambda port: port.name, wide=True),
        Column("MAC", lambda port: port.spec.mac, wide=True),
        Column("SAYS", lambda port: port.status.say, wide=True),
    ],
    details=lambda port: [
        ("Owner", _owner(port)),
        ("Subnet", f"{port.status.subnet_name} ({port.spec.subnet})"),
        ("Address", ", ".join(port.status.addresses)),
        ("MAC", port.spec.mac),
        ("Node", port.status.node),
    ],
)
group = NounGroup("port", "Network cards of VMs, with their addresses.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)
add_delete(group, NOUN)


@group.verb("create", changes=True)
@click.argument("name")
@name_option("--subnet", "subnet", required=True, metavar="S[=IP]", help="Where it is; with =IP that very address.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def create(session: Session, name: str, subnet: str, label: tuple[tuple[str, str], ...]) -> None:
    """Reserve an address of a subnet for no VM. Ports of VMs are made with them."""
    from cairn.proto.v1.port_pb2 import CreatePortRequest, Port, PortSpec

    where, _, address = subnet.partition("=")
    # Both fields: controllers of the release before know the first.
    spec = PortSpec(subnet=where, address=address, addresses=[address] if address else [])
    port = Port(name=name, project=session.project, labels=dict(label), spec=spec)
    await perform(session, NOUN, CreatePortRequest(port=port), Goal("there", frozenset({"ALLOCATED", "ACTIVE"})))
