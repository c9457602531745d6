"""cairn vpc."""

from __future__ import annotations

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.noun import Noun, add_delete, add_label, add_list, add_rename, add_show, perform
from cairn.controller.cli.output import Column
from cairn.controller.cli.share import add_share, shared_text
from cairn.controller.cli.values import PAIR

NOUN = Noun(
    "vpc",
    "vpcs",
    "VPC",
    columns=[
        Column("NAME", lambda vpc: vpc.name),
        Column("ID", lambda vpc: vpc.id),
        Column("CIDR", lambda vpc: vpc.spec.cidr),
        Column("SUBNETS", lambda vpc: vpc.status.subnets, right=True),
        Column("AGE", lambda vpc: vpc.create_time),
        Column("VNI", lambda vpc: vpc.spec.vni, wide=True),
        Column("SAYS", lambda vpc: vpc.status.say, wide=True),
    ],
    details=lambda vpc: [
        ("CIDR", vpc.spec.cidr),
        ("Subnets", vpc.status.subnets),
        ("Shared", shared_text(vpc.spec.sharing)),
        ("Transit VNI", vpc.spec.vni),
    ],
)
group = NounGroup("vpc", "Address spaces of their own; the subnets of a VPC route to each other.")
add_list(group, NOUN)
add_show(group, NOUN)
add_label(group, NOUN)
add_rename(group, NOUN)
add_share(group, NOUN, "have cards in its subnets, and see these")
add_delete(group, NOUN)


@group.verb("create", changes=True)
@click.argument("name")
@click.option("--cidr", required=True, metavar="10.1.0.0/16", help="Private addresses (RFC 1918); VPCs may overlap.")
@click.option("--label", type=PAIR, multiple=True, help="May be repeated.")
async def create(session: Session, name: str, cidr: str, label: tuple[tuple[str, str], ...]) -> None:
    """Make a VPC."""
    from cairn.proto.v1.vpc_pb2 import CreateVpcRequest, Vpc, VpcSpec

    vpc = Vpc(name=name, project=session.project, labels=dict(label), spec=VpcSpec(cidr=cidr))
    await perform(session, NOUN, CreateVpcRequest(vpc=vpc), None)
