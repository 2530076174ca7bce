"""The names that tag options are tested over: all of JoyTag's where they are at hand, and a telling few always."""

from __future__ import annotations

from pathlib import Path

import pytest

TOP_TAGS = Path(__file__).parents[3] / "shared" / "data" / "joytag" / "top_tags.txt"

TELLING = (
    "1girl", "long_hair", "hair", "very_long_hair", "^_^", ">_<", "o_o", "=_=", "+_+", "|_|", "@_@", "0_0", ">_o",
    "x_x", "=3", ":>=", ":3", "(9)", "\\m/", "steins;gate", "ranma_1/2", "fate/grand_order", "saber_(fate)", "3:",
    "^^^", "?", "...", ";)", "tam_o'_shanter", "au_ra", "v_arms", "photo_(medium)", "tiger_&_bunny", "!?",
    "kaburagi_t._kotetsu", "persona_4", "dog", "animal", "cat", "cat_ears",
)  # fmt: skip


def all_names() -> tuple[str, ...]:
    """JoyTag's 5,813 names.

    Where the data is absent the test is skipped.
    """
    if not TOP_TAGS.is_file():
        pytest.skip("the 5,813 names of JoyTag are not at hand")
    names = tuple(TOP_TAGS.read_text("utf-8").split("\n"))
    assert len(names) == len(set(names)) == 5813
    return names


@pytest.fixture(params=["a telling few", "all of JoyTag"])
def names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return TELLING if request.param == "a telling few" else all_names()
