"""Ids of the operating system's generator: eight characters, all equally likely."""

from __future__ import annotations

import re
from collections import Counter

from cairn.proto.seams import ID_ALPHABET, SystemIds


def test_every_character_is_equally_likely() -> None:
    ids, count = SystemIds(), 20_000
    made = [ids.new("i") for _ in range(count)]
    assert all(re.fullmatch("i-[0-9a-z]{8}", each) for each in made)
    assert len(set(made)) == count
    found, mean = Counter("".join(each[2:] for each in made)), count * 8 / len(ID_ALPHABET)
    assert set(found) == set(ID_ALPHABET)
    # Ten standard deviations: one in 10**20 runs fails by chance.
    assert all(abs(number - mean) < 10 * mean**0.5 for number in found.values())
