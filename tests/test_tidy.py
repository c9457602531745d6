"""Style is a test: what the linters cannot say.

Functions fit a screen, files can be read in one sitting, nondeterminism goes through the seams, nothing is left half-done.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cairn.controller.nodespec import NOBODYS
from cairn.controller.presence import RULES
from cairn.proto import kinds

from tests.stubs import explained

ROOT = Path(__file__).parent.parent
PRODUCT = ("proto", "controller", "agent", "storage", "net", "hardware")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
# The worker is a process of its own that imports nothing of ours; nobody simulates it.
SEAMS = {"proto/seams.py", "storage/rbd_worker.py"}
# module -> names that must come from proto/seams.py; None: the whole module
BANNED: dict[str, set[str] | None] = {
    "time": {"time", "time_ns", "sleep", "localtime", "gmtime", "monotonic", "perf_counter"},
    "datetime": {"now", "utcnow", "today"},
    "random": None,
    "uuid": {"uuid1", "uuid4"},
    "secrets": None,
}


def tracked(*suffixes: str) -> list[Path]:
    """Files git knows or would take, that exist."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return sorted(ROOT / name for name in set(listed) if name.endswith(suffixes) and (ROOT / name).is_file())


def python_files() -> list[Path]:
    return [path for path in tracked(".py") if not GENERATED.search(path.name)]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_product(path: Path) -> bool:
    return path.relative_to(ROOT).parts[0] in PRODUCT


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_functions_fit_a_screen() -> None:
    long = [
        f"{name_of(path)}:{function.lineno} {function.name} is {length} lines"
        for path in python_files()
        for function in functions(path)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_files_can_be_read_in_one_sitting() -> None:
    long = [f"{name_of(p)}: {n} lines" for p in python_files() if (n := len(p.read_text().splitlines())) > FILE_LINES_MAX]
    assert not long, "\n".join(long)


def test_modules_say_what_they_are_for() -> None:
    silent = [
        name_of(p) for p in python_files() if is_product(p) and p.name != "__init__.py" and not ast.get_docstring(tree(p))
    ]
    assert not silent, "\n".join(silent)


def _attribute_uses(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, attribute) of every module.attribute and `from module import attribute`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, node.value.id, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.lineno, node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""


def test_time_ids_and_randomness_come_from_the_seams() -> None:
    found = []
    for path in python_files():
        if not is_product(path) or name_of(path) in SEAMS:
            continue
        for line, module, attribute in _attribute_uses(path):
            banned = BANNED.get(module, set())
            if banned is None or attribute in banned:
                found.append(f"{name_of(path)}:{line} uses {module}.{attribute or '*'}")
    assert not found, "\n".join(found)


def test_no_error_is_swallowed() -> None:
    found = []
    for path in python_files():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
            silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
            if node.type is None or (broad and silent):
                found.append(f"{name_of(path)}:{node.lineno}")
    assert not found, "\n".join(found)


def test_nothing_is_left_half_done() -> None:
    marker = re.compile(r"#\s*(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))|\bNotImplementedError\b")
    found = [
        f"{name_of(path)}:{number} {line.strip()[:100]}"
        for path in python_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marker.search(line)
    ]
    assert not found, "\n".join(found)


def test_tests_do_not_sleep_a_fixed_time() -> None:
    """A sleep is allowed only in a loop that polls a condition, or as zero; tests/sim has virtual time, a fault must last."""
    found = []
    for path in python_files():
        if path.relative_to(ROOT).parts[0] != "tests" or path.relative_to(ROOT).parts[1] in {"lab", "bench", "sim", "twin"}:
            continue
        loops = [n for n in ast.walk(tree(path)) if isinstance(n, ast.While | ast.For | ast.AsyncFor)]
        inside = {id(inner) for loop in loops for inner in ast.walk(loop)}
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "sleep"
                and id(node) not in inside
                and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
            ):
                found.append(f"{name_of(path)}:{node.lineno}")
    assert not found, "\n".join(found)


def test_nothing_is_yielded_within_a_time_limit() -> None:
    """The limit would go on while the generator rests, and cancel whoever asked it."""
    found = []
    for path in python_files():
        limits = [n for n in ast.walk(tree(path)) if isinstance(n, ast.AsyncWith)]
        for limit in (each for each in limits if any("timeout" in ast.unparse(item.context_expr) for item in each.items)):
            found += [f"{name_of(path)}:{n.lineno}" for n in ast.walk(limit) if isinstance(n, ast.Yield | ast.YieldFrom)]
    assert not found, "\n".join(found)


def test_no_vague_names() -> None:
    vague = re.compile(r"(^|[a-z])(Manager|Helper|Util|Utils)$")
    folders = {"common", "utils", "helpers", "util", "misc"}
    found = [name_of(p) for p in python_files() if is_product(p) and folders & set(p.relative_to(ROOT).parts)]
    for path in python_files():
        found += [
            f"{name_of(path)}:{n.lineno} {n.name}"
            for n in ast.walk(tree(path))
            if isinstance(n, ast.ClassDef) and vague.search(n.name)
        ]
    assert not found, "\n".join(found)


def test_generated_stubs_match_the_protos(tmp_path: Path) -> None:
    """Generate again into a scratch folder; the committed files must be the same, byte for byte, with reasons beside stubs."""
    pytest.importorskip("grpc_tools")
    protos = sorted(str(p) for folder in ("v1", "etcd") for p in (ROOT / ".dev/cairn/proto" / folder).glob("*.proto"))
    binaries = ROOT / ".venv/bin"
    subprocess.run(
        [
            str(binaries / "python"), "-m", "grpc_tools.protoc", "-I", str(ROOT / ".dev"),
            f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}",
            f"--mypy_out=quiet:{tmp_path}", f"--mypy_grpc_out=quiet:{tmp_path}",
            f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
            *protos,
        ],
        check=True,
    )  # fmt: skip
    stale = [
        str(made.relative_to(tmp_path / "cairn"))
        for made in sorted(tmp_path.rglob("*.py*"))
        if (committed := ROOT / made.relative_to(tmp_path / "cairn"))
        and (not committed.exists() or committed.read_bytes() != explained(made.parent.name, made.read_bytes()))
    ]
    assert not stale, "run `make proto` and commit: " + ", ".join(stale)


def test_layers_are_enforced(tmp_path: Path) -> None:
    """The contracts bite: in a copy of the tree, a planted import of libvirt in controller/ is refused."""
    for folder in PRODUCT:
        shutil.copytree(ROOT / folder, tmp_path / "cairn" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(ROOT / ".venv/bin/lint-imports"), "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    clean = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert clean.returncode == 0, clean.stdout
    (tmp_path / "cairn/controller/planted.py").write_text('"""Planted."""\n\nimport libvirt\n\n__all__ = ["libvirt"]\n')
    planted = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert planted.returncode != 0
    assert "cairn.controller.planted -> libvirt" in planted.stdout


# Who may read where a VM or a volume is from the record itself: the one answer, and the writer of the record.
WHERE_READERS = {"controller/model/where.py", "controller/reconcilers/placement.py"}
PLACES = {"PLACEMENT", "VOLUME_PLACEMENT"}


def placement_reads(content: ast.AST) -> list[int]:
    """Return the lines that read a placement's record, or its index, past controller/model/where.py."""
    return [
        node.lineno
        for node in ast.walk(content)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"get", "record", "all", "by"}
        and node.args
        and isinstance(node.args[0], ast.Attribute)
        and node.args[0].attr in PLACES
    ]


def test_where_a_vm_is_has_one_answer() -> None:
    """A reader of `placement.node` assumes that a VM has one node: it must ask controller/model/where.py."""
    found = [
        f"{name_of(path)}:{line} reads a placement: ask controller/model/where.py"
        for path in python_files()
        if name_of(path).startswith("controller/") and name_of(path) not in WHERE_READERS
        for line in placement_reads(tree(path))
    ]
    assert not found, "\n".join(found)
    assert placement_reads(ast.parse("node = view.get(kinds.PLACEMENT, id).node")) == [1]
    assert placement_reads(ast.parse("view.by(kinds.VOLUME_PLACEMENT, 'node', node)")) == [1]


# Who may read or write the field in which the release before named a port's VM.
OWNER_READERS = {"proto/owners.py"}


def vm_of_port_reads(content: ast.AST) -> list[int]:
    """Return the lines that name `port.spec.vm`, whatever the variable is called that ends in "port"."""
    return [
        node.lineno
        for node in ast.walk(content)
        if isinstance(node, ast.Attribute)
        and node.attr == "vm"
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "spec"
        and isinstance(node.value.value, ast.Name)
        and node.value.value.id.endswith("port")
    ]


def test_whose_a_port_is_has_one_answer() -> None:
    """A reader of `port.spec.vm` assumes that a port is a VM's or nobody's: it must ask controller/model/owners.py."""
    found = [
        f"{name_of(path)}:{line} reads the VM of a port: ask controller/model/owners.py"
        for path in python_files()
        if is_product(path) and name_of(path) not in OWNER_READERS
        for line in vm_of_port_reads(tree(path))
    ]
    assert not found, "\n".join(found)
    assert vm_of_port_reads(ast.parse("vm = port.spec.vm")) == [1]


def host_subscripts(module: ast.Module) -> list[int]:
    """Lines that take `self._world.<things>[...]`."""
    return [
        node.lineno
        for node in ast.walk(module)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Attribute)
        and isinstance(node.value.value, ast.Attribute)
        and node.value.value.attr == "_world"
    ]


def test_what_is_on_a_host_may_be_gone_at_each_look() -> None:
    """Others refresh what an agent sees of its host whenever it waits: what was there a line before is asked for with `get`."""
    found = [
        f"{name_of(path)}:{line} takes for granted that something is on the host: use get, or what was got before"
        for path in python_files()
        if name_of(path).startswith("agent/")
        for line in host_subscripts(tree(path))
    ]
    assert not found, "\n".join(found)
    assert host_subscripts(ast.parse("held = self._world.volumes[id]")) == [1]


def test_every_kind_of_record_is_somebodys_or_nobodys() -> None:
    """Desired objects are made of some kinds and not of others: a new kind is in one of the two tables of presence.py."""
    assert sorted([*RULES, *NOBODYS]) == sorted(kind.name for kind in kinds.ALL)
