"""The agent's configuration, command line, metrics and facts."""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cairn.agent import app
from cairn.agent.app import Agent, main
from cairn.agent.config import ConfigError, load, parse
from cairn.agent.identity import Files
from cairn.agent.metrics import MetricsServer
from cairn.proto import metrics, pki
from cairn.proto.pki import Authority, Identity
from cairn.proto.seams import SystemClock, SystemIds
from click.testing import CliRunner

from tests.unit.agent_kit import Machine, elapse, ran, run, settled, until, vm_objects

GOOD = {"name": "n1", "listen": "10.0.0.1:7446"}


def test_defaults_follow_from_where_it_listens() -> None:
    config = parse(GOOD)
    assert (config.tunnel_address, config.endpoint) == ("10.0.0.1", "10.0.0.1:7446")
    assert config.pool_path == config.state_path == Path("/var/lib/cairn")
    other = parse({**GOOD, "vtep": "10.9.0.1", "advertise": "n1.example:7446", "controllers": ["c1:7443"]})
    assert (other.tunnel_address, other.endpoint, other.controllers) == ("10.9.0.1", "n1.example:7446", ("c1:7443",))


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"lisen": "10.0.0.1:7446"}, "unknown key 'lisen'"),
        ({"name": ""}, "name is missing"),
        ({"listen": "10.0.0.1"}, "listen"),
        ({"underlay_mtu": "1500"}, "underlay_mtu must be a int"),
        ({"underlay_mtu": True}, "underlay_mtu must be a int"),
        ({"hypervisor": "xen"}, "hypervisor must be one of"),
        ({"log_level": "loud"}, "log_level must be"),
        ({"controllers": ["nowhere"]}, "controllers"),
    ],
)
def test_a_wrong_configuration_names_the_key(more: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse({**GOOD, **more})


def test_files_that_are_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "agent.toml")
    (tmp_path / "agent.toml").write_text("name = n1")
    with pytest.raises(ConfigError, match=r"agent\.toml"):
        load(tmp_path / "agent.toml")


@pytest.fixture
def ca() -> Authority:
    return Authority.create("cairn test", SystemClock(), SystemIds())


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    lines = {**GOOD, "state_dir": str(tmp_path / "state"), "pki_dir": str(tmp_path / "pki")}
    path.write_text("underlay_mtu = 1500\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items()))
    return path


def make_member(ca: Authority, folder: Path) -> Files:
    files = Files(folder)
    pki.write_public(files.ca, ca.cert_pem)
    pki.write_public(files.membership, b'{"node": "node-00000007", "controllers": ["10.0.0.1:7443"]}')
    pki.install_pair(files.cert, files.key, ca.issue(Identity("node", "node-00000007"), hosts=["127.0.0.1"]))
    return files


def test_running_needs_joining_and_only_one_runs(config_file: Path, tmp_path: Path, ca: Authority) -> None:
    result = CliRunner().invoke(main, ["run", "--config", str(config_file)])
    assert result.exit_code == 1
    assert "cairn-agent join" in result.output
    make_member(ca, tmp_path / "pki")
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = CliRunner().invoke(main, ["run", "--config", str(config_file)])
    assert result.exit_code == 1
    assert "another agent runs" in result.output


def test_joining_from_the_command_line(config_file: Path, tmp_path: Path, ca: Authority) -> None:
    runner = CliRunner()
    refused = runner.invoke(main, ["join", "--config", str(config_file), "--token-file", "-"], input="nonsense")
    assert refused.exit_code == 1
    assert "not a join token" in refused.output
    assert not (tmp_path / "pki" / "node.crt").exists()
    make_member(ca, tmp_path / "pki")
    again = runner.invoke(main, ["join", "--config", str(config_file), "--token-file", "-"], input="nonsense")
    assert (again.exit_code, again.output) == (0, "joined already as node-00000007\n")


def scrape(port: int, context: ssl.SSLContext) -> str:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


async def test_metrics_are_for_holders_of_a_certificate(tmp_path: Path, ca: Authority) -> None:
    machine = Machine()
    machine.hold_image()
    files = make_member(ca, tmp_path)
    agent: Agent = machine.agent()
    await agent.start()
    await machine.snapshot(agent, vm_objects())
    await ran(agent, "i-00000001")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = MetricsServer(agent, f"127.0.0.1:{port}", files)
    try:
        context = ssl.create_default_context(cadata=ca.cert_pem.decode())
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(scrape, port, context)
        context.load_cert_chain(files.cert, files.key)
        text = await asyncio.to_thread(scrape, port, context)
        assert 'cairn_agent_guests{state="running"} 1.0' in text
        assert 'cairn_agent_actions_total{domain="guests"}' in text
        make_member(ca, tmp_path)
        server.reload()
        assert "cairn_agent_held_revision" in await asyncio.to_thread(scrape, port, context)
    finally:
        server.close()
        await agent.stop()


async def test_who_says_nothing_keeps_neither_metrics_nor_a_renewal_waiting(
    tmp_path: Path, ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was greeted in the thread that accepts, and what closed the server, the agent's loop, waited for that thread."""
    monkeypatch.setattr(metrics, "TIMEOUT_S", 2.0)
    machine, files = Machine(), make_member(ca, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = MetricsServer(machine.agent(), f"127.0.0.1:{port}", files)
    context = ssl.create_default_context(cadata=ca.cert_pem.decode())
    context.load_cert_chain(files.cert, files.key)
    with socket.create_connection(("127.0.0.1", port)) as silent:
        assert "cairn_agent_held_revision" in await asyncio.to_thread(scrape, port, context)
        closing = threading.Thread(target=server.close, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, 5)
        assert not closing.is_alive()
        silent.settimeout(10)
        assert silent.recv(1) == b"", "it is dropped"


def test_facts_are_told_when_they_changed() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = machine.agent()
        await agent.start()
        await until("facts", lambda: agent.reports.facts.hypervisor.accelerator == "tcg")
        assert (agent.reports.facts.vtep, agent.reports.facts.underlay_mtu) == ("127.0.0.1", 1500)
        await settled(agent)
        agent.reports.take()
        machine.pool.foreign_bytes += machine.pool.capacity_bytes // 1000
        await elapse(15)
        assert not agent.reports.take(), "a thousandth is not worth telling"
        machine.pool.foreign_bytes += machine.pool.capacity_bytes // 50
        await elapse(15)
        assert [each.WhichOneof("message") for each in agent.reports.take()] == ["facts"]
        used = machine.pool.used_bytes()
        assert agent.reports.facts.pools[0].used_bytes == used
        await agent.stop()

    run(scenario)


@pytest.mark.skipif(not Path("/proc/net/route").exists(), reason="no IP stack here")
def test_the_underlay_is_found_by_its_address() -> None:
    pytest.importorskip("pyroute2")
    assert app.find_underlay_mtu("127.0.0.1") >= 1500
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        app.find_underlay_mtu("192.0.2.1")
