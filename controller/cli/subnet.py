"""cairn subnet."""

from __future__ import annotations

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup, name_option
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_rename, add_show, perform
from cairn.controller.cli.output import Column
from cairn.controller.cli.values import PAIR

NOUN = Noun(
    "subnet",
    "subnets",
    "subnet",
    columns=[
        Column("NAME", lambda subnet: subnet.name),
        Column("ID", lambda subnet: subnet.id),
        Column("VPC", lambda subnet: subnet.status.vpc_name or subnet.spec.vpc),
        Column("CIDR", lambda subnet: subnet.spec.cidr),
        Column("USED", lambda subnet: f"{subnet.status.addresses_used}/{subnet.status.addresses_total}", right=True),
        Column("AGE", lambda subnet: subnet.create_time),
        Column("GATEWAY", lambda subnet: subnet.status.gateway, wide=True),
        Column("VNI", lambda subnet: subnet.spec.vni, wide=True),
        Column("SAYS", lambda subnet: subnet.status.say, wide=True),
    ],
    details=lambda subnet: [
        ("VPC", f"{subnet.status.vpc_name} ({subnet.spec.vpc})"),
        ("CIDR", subnet.spec.cidr),
        ("Gateway", subnet.status.gateway),
        ("Addresses", f"{subnet.status.addresses_used} of {subnet.status.addresses_total} used"),
        ("VNI", subnet.spec.vni),
    ],
)
group = NounGroup("subnet", "Parts of a VPC that VMs plug into.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)
add_delete(group, NOUN)


@group.verb("create", changes=True)
@click.argument("name")
@name_option("--vpc", "vpc", required=True, help="VPC it is a part of.")
@click.option("--cidr", required=True, metavar="10.1.1.0/24", help="Inside the VPC's, not overlapping another subnet's.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def create(session: Session, name: str, vpc: str, cidr: str, label: tuple[tuple[str, str], ...]) -> None:
    """Make a subnet."""
    from cairn.proto.v1.subnet_pb2 import CreateSubnetRequest, Subnet, SubnetSpec

    subnet = Subnet(name=name, project=session.project, labels=dict(label), spec=SubnetSpec(vpc=vpc, cidr=cidr))
    await perform(session, NOUN, CreateSubnetRequest(subnet=subnet), None)
