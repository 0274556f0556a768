"""Parts of a farm: together they are the whole, and no two share a unit."""

import numpy as np
import pytest

from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.parts import Part

UNITS = np.arange(13)


def config(*overrides: str) -> FarmConfig:
    return load_config(FarmConfig, "demo", folder="farms", overrides=overrides)


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_parts_are_the_whole_and_share_nothing(count):
    parts = [Part.of(config(f"part={index}/{count}")).own(UNITS) for index in range(count)]
    assert sorted(np.concatenate(parts)) == UNITS.tolist()


def test_a_farm_without_part_is_the_whole_and_writes_the_usual_file():
    assert Part.of(config()).own(UNITS).tolist() == UNITS.tolist()
    assert Part.of(config()).farm_file == "farm.json"
    assert Part.of(config("part=1/4")).farm_file == "farm.part-1-of-4.json"


@pytest.mark.parametrize(
    ("part", "message"), [("4/4", "4/4 is no part; the first of four is 0/4"), ("0/0", "is no part"), ("a", "of the form")]
)
def test_what_is_no_part_is_refused(part, message):
    with pytest.raises(UserError, match=f"part: .*{message}"):
        config(f"part={part}")
