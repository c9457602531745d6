"""cairn port."""

from __future__ import annotations

from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.noun import Noun, add_list, add_show
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import state_text

NOUN = Noun(
    "port",
    "ports",
    "port",
    columns=[
        Column("ID", lambda port: port.id),
        Column("VM", lambda port: port.status.vm_name or port.spec.vm),
        Column("SUBNET", lambda port: port.status.subnet_name or port.spec.subnet),
        Column("ADDRESS", lambda port: port.status.address),
        Column("STATE", lambda port: state_text(port.status)),
        Column("NODE", lambda port: port.status.node),
        Column("AGE", lambda port: port.create_time),
        Column("NAME", lambda port: port.name, wide=True),
        Column("MAC", lambda port: port.spec.mac, wide=True),
        Column("SAYS", lambda port: port.status.say, wide=True),
    ],
    details=lambda port: [
        ("VM", f"{port.status.vm_name} ({port.spec.vm})" if port.spec.vm else ""),
        ("Subnet", f"{port.status.subnet_name} ({port.spec.subnet})"),
        ("Address", port.status.address),
        ("MAC", port.spec.mac),
        ("Node", port.status.node),
    ],
)
group = NounGroup("port", "Network cards of VMs, with their addresses.")
add_list(group, NOUN)
add_show(group, NOUN)
