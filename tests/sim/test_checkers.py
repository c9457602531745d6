"""Each checker can speak, and can be silent: shown on hand-made clouds, without any simulation.

A scene names a checker, what it must say ("": nothing), and is played on a Stage. They are in scenes_safety.py (what must never
be) and scenes_rest.py and scenes_agree.py (what must be at rest).
"""

from __future__ import annotations

import re

import pytest

from tests.sim import cast, scenes_agree, scenes_bare, scenes_rest, scenes_safety, scenes_secrets
from tests.sim.stage import SCENES, Scene, Stage

assert (
    scenes_safety.SCENES is scenes_secrets.SCENES is scenes_rest.SCENES is scenes_agree.SCENES is scenes_bare.SCENES is SCENES
)
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
