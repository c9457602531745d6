"""Each checker can speak, and can be silent: shown on hand-made clouds, without any simulation.

A scene names a checker, what it must say ("": nothing), and is played on a Stage. They are in scenes_*.py, for example
scenes_safety.py (what must never be) and scenes_rest.py (what must be at rest).
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from cairn.proto import kinds

from tests.sim import cast
from tests.sim.checkers.sole_writer import WRITERS
from tests.sim.stage import SCENES, Scene, Stage

# Every file of scenes beside this one adds its own.
for file in sorted(Path(__file__).parent.glob("scenes_*.py")):
    import_module(f"tests.sim.{file.stem}")
CHECKERS = {checker.name: type(checker) for checker in cast.all_checkers()}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.checker}-{scene.play.__name__}")
def test_it_says_so(scene: Scene) -> None:
    stage = Stage(CHECKERS[scene.checker]())
    scene.play(stage)
    if not scene.says:
        assert stage.said == []
    else:
        assert any(re.search(scene.says, text) for text in stage.said), stage.said


@pytest.mark.parametrize("name", CHECKERS)
def test_each_checker_was_seen_to_speak_and_to_be_silent(name: str) -> None:
    scenes = [scene for scene in SCENES if scene.checker == name]
    assert any(scene.says for scene in scenes), f"no scene proves that {name} can fail"
    assert any(not scene.says for scene in scenes), f"no scene proves that {name} can pass"


def test_each_kind_has_a_known_writer() -> None:
    assert set(WRITERS) == {kind.name for kind in kinds.ALL}
