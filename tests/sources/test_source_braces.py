from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.sources._braces import expand

NUMBERS = st.integers(-20, 120).map(str) | st.sampled_from(["00", "007", "-05", "0100"])
RANGES = st.builds(
    lambda first, last, step: "{" + f"{first}..{last}" + (f"..{step}" if step else "") + "}",
    NUMBERS, NUMBERS, st.sampled_from(["", "1", "7", "-3", "0"]),
)  # fmt: skip
LETTERS = st.builds(lambda a, b: f"{{{a}..{b}}}", st.sampled_from("acz"), st.sampled_from("bdy"))
PLAIN = st.text(alphabet="ab-._/", max_size=4)
PATTERNS = st.recursive(
    PLAIN | RANGES | LETTERS,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "{" + ",".join(parts) + "}")
        | st.lists(inner, min_size=2, max_size=3).map("".join)
    ),
    max_leaves=4,
)


@given(PATTERNS)
def test_as_the_package_that_webdataset_uses(pattern: str) -> None:
    reference = pytest.importorskip("braceexpand")
    expected = list(islice(reference.braceexpand(pattern, escape=False), 2000))
    assert list(islice(expand(pattern), 2000)) == expected


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train-{00008..00010}.tar", ["train-00008.tar", "train-00009.tar", "train-00010.tar"]),
        ("{a,b}/{1..2}.tar", ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{a,{b,c}d}", ["a", "bd", "cd"]),
        ("x.tar", ["x.tar"]),
        ("{}.tar", ["{}.tar"]),
        ("{a}.tar", ["{a}.tar"]),
        ("{a,b.tar", ["{a,b.tar"]),
        ("a}{1..2}", ["a}1", "a}2"]),
        ("{x{1,2}", ["{x1", "{x2"]),
        ("{1.5..2}", ["{1.5..2}"]),
        ("{" * 5000 + "1,2" + "}" * 5000, ["{" * 5000 + "1,2" + "}" * 5000]),
    ],
)
def test_what_shells_do(pattern: str, names: list[str]) -> None:
    assert list(expand(pattern)) == names


def test_no_name_is_made_before_it_is_asked_for() -> None:
    assert list(islice(expand("{0..999999999999}"), 2)) == ["0", "1"]
