"""Scenes of the checker no_secret: what it must see, and what it must not mind."""

from __future__ import annotations

from tests.sim.stage import SCENES, Stage, scene, vm, volume

__all__ = ["SCENES"]


@scene("no_secret")
def nothing_said(stage: Stage) -> None:
    stage.cloud.secrets.add("s3cr3t")
    stage.said += stage.checker.line(stage.cloud, "started secret=*** certificate=CERTIFICATE")
    stage.commit(vm())


@scene("no_secret", "vm/i-1 holds a secret")
def user_data_in_a_record(stage: Stage) -> None:
    stage.cloud.secrets.add("s3cr3t")
    stage.commit(vm(user_data=b"s3cr3t"))


@scene("no_secret", "a secret was logged")
def a_secret_in_a_line(stage: Stage) -> None:
    stage.cloud.secrets.add("s3cr3t")
    stage.said += stage.checker.line(stage.cloud, "join token=s3cr3t")


@scene("no_secret", "a private key was logged")
def a_key_in_a_line(stage: Stage) -> None:
    stage.said += stage.checker.line(stage.cloud, "-----BEGIN PRIVATE KEY-----")


@scene("no_secret", "volume/vol-1 holds a secret")
def a_secret_in_a_record(stage: Stage) -> None:
    stage.cloud.secrets.add("s3cr3t")
    stage.commit(volume(name="s3cr3t"))


@scene("no_secret", "c1 shows a secret in volume vol-1")
def a_secret_in_an_answer(stage: Stage) -> None:
    stage.cloud.secrets.add("s3cr3t")
    stage.said += stage.checker.listed(stage.cloud, "c1", "volume", [volume(name="s3cr3t")[2]])
