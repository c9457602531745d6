"""Each method names its permission in the .proto; a method without one, or with one of an unknown form, fails here."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from cairn.controller import permission_table
from cairn.controller.model.permits import Verb
from cairn.proto import permissions, v1

# What programs say to each other takes no verb of users.
BETWEEN_PROGRAMS = {"node.sync", "host.get_blob", "host.put_blob", "host.console"}


def test_every_method_of_every_service_names_a_permission() -> None:
    modules = [each.name for each in pkgutil.iter_modules(v1.__path__) if each.name.endswith("_pb2")]
    assert "vm_pb2" in modules
    every = {
        f"/{service.full_name}/{method.name}"
        for name in modules
        for service in importlib.import_module(f"{v1.__name__}.{name}").DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert every == permissions.METHODS.keys()
    assert not [path for path, permission in permissions.METHODS.items() if not re.fullmatch(r"[a-z_]+\.[a-z_]+", permission)]


def test_what_users_do_has_a_verb_that_permits_knows() -> None:
    verbs = {str(verb) for verb in Verb}
    others = {each for each in permissions.METHODS.values() if each.partition(".")[2] not in verbs}
    assert others == BETWEEN_PROGRAMS - {"host.console"}


def test_the_page_of_permissions_is_what_the_protos_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "permissions.md"
    assert page.read_text() == permission_table.table(), "run `make docs`"
