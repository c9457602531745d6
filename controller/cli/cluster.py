"""cairn cluster: how it is, and making a new one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from cairn.controller.cli import adopt, backup, fsck
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.output import Detail, Section
from cairn.controller.cli.values import size_text

group = NounGroup("cluster", "The cluster as a whole; making a new one; backup and restore.")
backup.add_verbs(group)
adopt.add_verbs(group)
fsck.add_verbs(group)


@group.verb("status")
@click.option("--check", is_flag=True, help="End with exit code 1 when anything is wrong.")
async def status(session: Session, check: bool) -> None:
    """Tell how the cluster is."""
    from cairn.proto.v1.cluster_pb2 import GetClusterStatusRequest

    answer = await session.call("cluster", GetClusterStatusRequest())
    session.output.one(answer, status_details)
    if check and not answer.healthy:
        raise Failure(f"cluster {answer.name} is not healthy: {answer.say}", whole=True)


def status_details(answer: Any) -> Iterator[Detail]:
    """Yield a cluster's status as rows."""
    yield "Cluster", answer.name
    yield "Says", answer.say
    down = f", {answer.nodes_down} down" if answer.nodes_down else ""
    degraded = f", {answer.nodes_degraded} of them degraded" if answer.nodes_degraded else ""
    yield "Nodes", f"{answer.nodes_ready} ready{degraded}{down}"
    unknown = f", {answer.vms_unknown} on nodes that do not answer" if answer.vms_unknown else ""
    yield "VMs", f"{answer.vms}, {answer.vms_running} running{unknown}"
    yield "Revision", f"{answer.revision} (epoch {answer.epoch})"
    if answer.HasField("restored"):
        restored = answer.restored
        yield "Restored", f"{restored.restore_time.ToJsonString()} from the backup of {restored.backup_time.ToJsonString()}"
    if answer.unreadable:
        yield "Unreadable", f"{answer.unreadable} records: `cairn cluster fsck`"
    for node in answer.nodes_ahead:
        yield "Ahead", f"{node.name} was told revision {node.revision} of epoch {node.epoch}"
    there = [(each.name, f"{', '.join(each.endpoints)}  {each.version}") for each in answer.controllers]
    yield Section("Controllers", [*there, *((each.name, _missing(each)) for each in answer.controllers_missing)])
    yield Section("Store", [(member.endpoint, _member(member)) for member in answer.members])


def _missing(controller: Any) -> str:
    since = f" since {controller.since_time.ToJsonString()}" if controller.HasField("since_time") else ""
    return f"{', '.join(controller.endpoints)}  MISSING{since}"


def _member(member: Any) -> str:
    health = "healthy" if member.healthy else member.say or "does not answer"
    role = "leader" if member.leader else "learner, without a vote" if member.learner else ""
    quota = f" of {size_text(member.quota_bytes)}" if member.quota_bytes else ""
    used = f" ({size_text(member.used_bytes)} in use)" if member.used_bytes else ""
    size = f"{size_text(member.size_bytes)}{quota}{used}" if member.size_bytes else ""
    return ", ".join(filter(None, [health, role, size, member.version]))


@group.verb("retire")
@click.argument("name")
async def retire(session: Session, name: str) -> None:
    """Expect a controller no longer that was taken down for good. One that starts again is expected again."""
    from cairn.proto.v1.cluster_pb2 import RetireControllerRequest

    await session.call("cluster", RetireControllerRequest(name=name))
    session.output.say(f"controller {name} is expected no longer")


@group.verb("init")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where certificates and keys go."
)
@click.option("--name", required=True, help="Name of the cluster.")
@click.option("--controller", multiple=True, metavar="NAME=HOST[:PORT]", help="A controller; may be repeated.")
@click.option("--etcd", multiple=True, metavar="NAME=HOST[:PORT]", help="An etcd member; may be repeated.")
async def init(session: Session, directory: Path, name: str, controller: tuple[str, ...], etcd: tuple[str, ...]) -> None:
    """Make the authorities and the first certificates of a new cluster. Repeating it makes only what is missing."""
    from cairn.proto import pki

    controllers, members = hosts_of("--controller", controller), hosts_of("--etcd", etcd)
    if not controllers:
        raise Failure("a cluster needs at least one --controller NAME=HOST", usage=True)
    try:
        made = pki.init_cluster(
            directory, name, controllers=controllers, etcd_members=members, clock=session.clock, ids=session.ids
        )
    except (pki.PkiError, OSError) as error:
        raise Failure(str(error)) from error
    session.output.lines(str(path) for path in made)
    session.output.say("nothing was missing" if not made else next_steps(directory, controllers, members))


@group.verb("certify")
@click.option(
    "--directory", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True, help="Where ca.key is."
)
@click.option("--user", metavar="NAME", help="The person or program it is for.")
@click.option("--node", metavar="NAME", help="Or the node: one that was away when its certificate ended.")
@click.option("--days", type=click.IntRange(1, 90), default=90, show_default=True, help="How long it is good for.")
async def certify(session: Session, directory: Path, user: str | None, node: str | None, days: int) -> None:
    """Make a certificate for one more person, program or node, beside the CA's. Its holder renews it while it is good."""
    from cairn.proto import pki
    from cairn.proto.v1.node_pb2 import GetNodeRequest

    if (user is None) == (node is None):
        raise Failure("say who it is for: --user NAME or --node NAME", usage=True)
    then = f"hand both files to {user}, and {directory}/ca.crt: CAIRN_CERT, CAIRN_KEY and CAIRN_CA"
    name, id = user or "", user or ""
    if node is not None:
        found = await session.call("node", GetNodeRequest(id=node))
        name, id = found.name, found.id
        then = f"on {name} they are node.crt and node.key in /etc/cairn/pki: put both there, then start cairn-agent"
    try:
        identity = pki.Identity("node" if node is not None else "user", id)
        made = pki.certify(directory, identity, name, timedelta(days=days), session.clock, session.ids)
    except (pki.PkiError, OSError) as error:
        raise Failure(str(error)) from error
    session.output.lines(str(path) for path in made)
    session.output.say(then)


def hosts_of(option: str, given: tuple[str, ...]) -> dict[str, list[str]]:
    """Return name to hosts of NAME=HOST[:PORT] options; a name may be given several hosts."""
    result: dict[str, list[str]] = {}
    for each in given:
        name, equals, host = each.partition("=")
        host = _without_port(host)
        if not equals or not name or not host:
            raise Failure(f"{option} {each!r} is not NAME=HOST or NAME=HOST:PORT", usage=True)
        result.setdefault(name, []).append(host)
    return result


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def next_steps(directory: Path, controllers: dict[str, list[str]], members: dict[str, list[str]]) -> str:
    """Return what to do with the files."""
    controller, (host, *_) = next(iter(controllers.items()))
    member = next(iter(members), controller)
    return f"""
Next:
 1. Keep {directory}/ca.key, etcd-ca.key and secrets.key safe: whoever has them is the cluster. A backup without
    secrets.key has no user data.
 2. To each etcd member, as /etc/cairn/pki/: etcd-ca.crt, and its own pair (etcd-{member}.crt and .key for {member}).
 3. To each controller, as /etc/cairn/pki/: ca.crt, ca.key, secrets.key, etcd-ca.crt, and its own pairs
    (controller-{controller}.crt and .key, controller-{controller}-etcd.crt and .key for {controller}).
 4. Start etcd, then cairn-controller, on each.
 5. On your own machine: export CAIRN_ENDPOINT={host}:7443 CAIRN_CA={directory}/ca.crt \\
      CAIRN_CERT={directory}/admin.crt CAIRN_KEY={directory}/admin.key
    then: cairn cluster status
 6. For each server that joins: cairn node token create --out TOKEN, and there: cairn-agent join --token-file TOKEN"""
