from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annotary.errors import UsageError
from annotary.sources._patterns import matcher


def naive(pattern: str, path: str) -> bool:
    """The rules of the module's docstring, word by word."""
    parts = path.split("/")
    anchored = pattern.startswith(("/", "./"))
    text = pattern.removeprefix(".").removeprefix("/") if anchored else pattern
    if text.endswith("/"):
        text += "**"
    if "/" not in text and not anchored:
        return any(fnmatchcase(part, text) for part in parts)
    return whole(text.split("/"), parts)


def whole(patterns: list[str], parts: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        if len(patterns) == 1:
            return bool(parts)
        return any(whole(patterns[1:], parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and whole(patterns[1:], parts[1:])


name = st.text("ab.]\n-", min_size=1, max_size=4)
path = st.lists(name, min_size=1, max_size=4).map("/".join)
part = st.one_of(st.just("**"), st.just("*"), st.text("ab.*?", min_size=1, max_size=4), st.sampled_from(
    ["[ab]", "[!a]b", "[a-b]*", "[]]", "[!]]", "[", "[a", "a[]", "[b-a]", "[!b-a]", "*[.-]*"]
))  # fmt: skip
pattern = st.tuples(
    st.sampled_from(["", "", "/", "./"]),
    st.lists(part, min_size=1, max_size=4).map("/".join),
    st.sampled_from(["", "", "/"]),
).map("".join)


@given(pattern, path)
@example("**/b", "b")
@example("a/**/b", "a/b")
@example("a/**", "a")
@example("*", "a\nb")
def test_agrees_with_the_rules_word_by_word(pattern: str, path: str) -> None:
    assert matcher([pattern])(path) == naive(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.jpg", "a/b/c.jpg", True),
        ("*.jpg", "c.JPG", False),
        ("raw", "a/raw/c.jpg", True),
        ("raw", "a/rawer/c.jpg", False),
        ("2024/*.jpg", "2024/a.jpg", True),
        ("2024/*.jpg", "2024/05/a.jpg", False),
        ("2024/**", "2024/05/a.jpg", True),
        ("2024/**", "x/2024/05/a.jpg", False),
        ("2024/**", "2024/", True),
        ("2024/", "2024/05/a.jpg", True),
        ("**/raw/*", "x/y/raw/a.jpg", True),
        ("/a.jpg", "x/a.jpg", False),
        ("./a.jpg", "a.jpg", True),
        ("a?c", "a/c", False),
        ("a[+-9]c", "a/c", False),
        ("a[!b]c", "a/c", False),
        ("a.jpg", "aXjpg", False),
    ],
)
def test_examples(pattern: str, path: str, expected: bool) -> None:
    assert matcher([pattern])(path) is expected


def test_several_patterns_are_alternatives_and_none_matches_nothing() -> None:
    test = matcher(["*.jpg", "*.png"])
    assert test("a.jpg")
    assert test("a.png")
    assert not test("a.gif")
    assert not matcher([])("a.jpg")


@pytest.mark.parametrize("pattern", ["", "/", "./"])
def test_empty_pattern(pattern: str) -> None:
    with pytest.raises(UsageError, match="names nothing"):
        matcher([pattern])
