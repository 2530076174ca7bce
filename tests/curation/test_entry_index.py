"""Matching is exactly MetaCLIP's rule, whatever the texts, the batches, the chunks and the hash."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.curation._hash_table import MULTIPLIER, NONE, HashTable
from annotary.curation._units import MARKS, stands_alone
from annotary.curation.entries import Entries
from annotary.curation.entry_index import EntryIndex, Matches
from annotary.errors import UnknownName, UsageError
from tests.curation import naive

ENTRIES = [
    "cat", "Cat", "cats", "New York", "New York City", "black cat", "t-shirt", "T-shirt", "dog", "dog's",
    "red car", "i.e.", "U.S.", "photo", "a", "1", "100",
]  # fmt: skip

# Rich in what the rule is about, with neighbours of it that it must not touch.
ALPHABET = list(
    " \t\n\r,.;:?!`'\"“”-_/()\0\x0b\x1f\x7f\x85\xa0\u2028\u0301aAbZé1中文、ไทカ😀\ud83d"
)
SPACED = " " * 6
WORDS = [
    "a",
    "b",
    "ab",
    "abcdefg",
    "abcdefgh",
    "abcdefgha",
    "abcdefghabcdefgh",
    "abcdefghabcdefghx",
    "ÿþ",
]

characters = st.sampled_from([*ALPHABET, *SPACED])
words = st.sampled_from(WORDS)
phrases = st.lists(words, min_size=1, max_size=5).map(" ".join)
entry_texts = st.one_of(st.text(characters, max_size=6), phrases, words)
free_texts = st.one_of(st.text(characters, max_size=30), st.text(max_size=20), phrases)
languages = st.sampled_from([None, "zh"])


def found(matches: Matches, entries: list[str] | None = None) -> list[list]:
    lists = [
        matches.entries[first:last].tolist()
        for first, last in zip(matches.offsets[:-1], matches.offsets[1:], strict=True)
    ]
    return lists if entries is None else [[entries[place] for place in one] for one in lists]


def by_rule(texts: list[str | None], entries: list[str], language: str | None) -> list[list[int]]:
    return naive.matches(texts, entries, is_by_character=language is not None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a black cat.", ["cat", "black cat", "a"]),
        ("a black  cat", ["cat", "a"]),
        ("Cat, New York City!", ["Cat", "New York", "New York City"]),
        ("New York,City", ["New York"]),
        ("dog's bowl (dog)", ["dog's"]),
        ("it's a dog-house", ["a"]),
        ("“cat”", []),
        ("T-shirt/t-shirt", []),
        ("Adult T-shirt", ["T-shirt"]),
        ("red\ncar", ["red car"]),
        ("red\n car", []),
        ("red\r\ncar", []),
        ("red\xa0car", []),
        ("1,100 photos", ["1", "100"]),
        ("cat?dog", ["cat", "dog"]),
        ("U.S. photo", ["photo"]),
        ("i.e. cat", ["cat"]),
        ("cat cat,cat", ["cat"]),
        ("", []),
    ],
)
def test_the_vectors_of_the_rule(text, expected):
    assert found(EntryIndex.build(ENTRIES).match([text]), ENTRIES) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Texts without and with matches in table 14 of arXiv 2309.16671.
        ("control_14ct", []),
        ("cudd2008", []),
        ("product-img", []),
        ("Skirmisher-Main-440x412", []),
        ("A4omote", []),
        ("johnny_cash_chili_dog (2)", []),
        ("8533 GOLDEN RIDGE COURT", []),
        ("battery plate", ["battery", "plate", "battery plate"]),
        ("desk", ["desk"]),
        ("Whitby castle", ["castle", "Whitby", "Whitby castle"]),
        ("jacksons chameleon", ["jacksons", "chameleon"]),
    ],
)
def test_the_table_of_the_paper(text, expected):
    entries = [
        "control", "product", "img", "Main", "johnny", "cash", "chili", "dog", "2", "golden", "ridge", "court",
        "Golden", "battery", "plate", "desk", "castle", "Whitby", "jacksons", "chameleon",
        "battery plate", "Whitby castle", "chili dog", "golden ridge",
    ]  # fmt: skip
    assert found(EntryIndex.build(entries).match([text]), entries) == [expected]


@given(
    st.lists(entry_texts, max_size=12),
    st.lists(st.one_of(st.none(), free_texts), max_size=8),
    languages,
    st.sampled_from([1, 7, 1 << 18]),
)
def test_it_equals_the_rule(entries, texts, language, chunk_bytes):
    index = EntryIndex.build(entries, language=language)
    assert found(index.match(texts, chunk_bytes=chunk_bytes)) == by_rule(texts, entries, language)


@given(st.lists(entry_texts, min_size=1, max_size=8), languages, st.data())
def test_it_equals_the_rule_on_texts_made_of_entries(entries, language, data):
    parts = st.lists(
        st.one_of(st.sampled_from(entries), st.sampled_from([" ", ",", ". ", "\n"]), words),
        max_size=8,
    )
    texts = [data.draw(st.sampled_from(["", " "])).join(data.draw(parts)) for _ in range(3)]
    index = EntryIndex.build(entries, language=language)
    assert found(index.match(texts)) == by_rule(texts, entries, language)


@given(st.lists(entry_texts, min_size=1, max_size=12), languages)
def test_dead_entries_are_those_that_no_text_matches(entries, language):
    dead = set(EntryIndex.build(entries, language=language).dead.tolist())
    for place, entry in enumerate(entries):
        matches = by_rule([naive.witness(entry), naive.spaced(entry), entry], [entry], language)
        assert any(matches) == (place not in dead)


@given(st.lists(entry_texts, max_size=10), st.lists(free_texts, max_size=6), languages)
def test_a_hash_that_says_nothing_changes_nothing(entries, texts, language):
    poor = EntryIndex.build(entries, language=language, multiplier=0)
    assert found(poor.match(texts)) == by_rule(texts, entries, language)


def test_many_keys_that_clash_are_found_one_by_one():
    keys = np.arange(1, 3000, dtype=np.uint64) << np.uint64(3)
    values = np.arange(keys.size, dtype=np.uint32)
    asked = np.arange(30_000, dtype=np.uint64)
    expected = np.full(asked.size, NONE, np.uint32)
    expected[keys.astype(int)] = values
    for multiplier in (MULTIPLIER, 0, 1, 1 << 63):
        table = HashTable.build(keys, values, multiplier=multiplier)
        assert (table.find(asked) == expected).all()
    assert HashTable.build(keys, values).rest.size == 0
    assert HashTable.build(keys, values, multiplier=0).rest.size > 0


@pytest.mark.parametrize("language", [None, "zh"])
def test_long_entries_and_long_words(language):
    long_phrase = " ".join(f"word{number % 7}" for number in range(300))
    same_words = " ".join(["a"] * 300)
    long_word = "abcdefgh" * 500
    entries = [
        long_phrase,
        same_words,
        "a a",
        long_word,
        long_word + "x",
        "word0 word1",
        "abcdefgh",
    ]
    texts = [
        f"x {long_phrase}, y", long_phrase[:-1], f"a {same_words}", same_words[:-2], long_word, long_word + "x",
        long_word + "xy", long_word[:-1], f"abcdefgh {long_word}x.",
    ]  # fmt: skip
    index = EntryIndex.build(entries, language=language)
    matches = found(index.match(texts))
    assert matches == by_rule(texts, entries, language)
    assert matches[0] == [0, 5]
    assert matches[4:7] == [[3], [4], []]


def test_ends_of_texts_and_of_chunks_are_ends():
    index = EntryIndex.build(["new york", "a b", "b"])
    texts = ["new", "york", "new york", "", "", "a", "b", "a b", "ne", "w york"]
    expected = [[], [], [0], [], [], [], [2], [1, 2], [], []]
    for chunk_bytes in range(1, 40):
        assert found(index.match(texts, chunk_bytes=chunk_bytes)) == expected


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_buffers_as_arrow_has_them(kind):
    index = EntryIndex.build(["cat", "dog", "é"])
    data = np.frombuffer("cat dogcat, écatdog".encode(), np.uint8)
    offsets = np.array([0, 7, 14, 17, 17, 20], kind)
    assert found(index.match_buffer(data, offsets)) == [[0, 1], [0, 2], [0], [], [1]]
    # A slice begins behind the start of its buffer, and a text that is missing may have bytes all the same.
    is_valid = np.array([False, True, True, True])
    assert found(index.match_buffer(data, offsets[1:], is_valid)) == [[], [0], [], [1]]
    assert found(index.match_buffer(data, offsets[2:4])) == [[0]]
    for nothing in (offsets[:1], offsets[:0]):
        empty = index.match_buffer(data, nothing)
        assert empty.offsets.tolist() == [0]
        assert empty.entries.size == 0


def test_bytes_that_are_no_utf8_match_nothing_more():
    index = EntryIndex.build(["cat", "dog"])
    texts = [b"cat\xff", b"cat \xff\xff", b"\xffcat,dog", b"\xe4\xb8", b"cat\x80", b"\x80 dog"]
    data = np.frombuffer(b"".join(texts), np.uint8)
    offsets = np.cumsum([0, *map(len, texts)])
    expected = [[], [0], [1], [], [], [1]]
    assert found(index.match_buffer(data, offsets)) == expected
    by_character = EntryIndex.build(["cat", "dog"], language="zh")
    assert found(by_character.match_buffer(data, offsets)) == expected


def test_an_arrow_column(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    column = pa.array(["no", "cat", None, "a cat.", ""])[1:]
    _, offsets, data = column.buffers()
    places = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    matches = EntryIndex.build(["cat"]).match_buffer(
        np.frombuffer(data, np.uint8), places, np.asarray(column.is_valid())
    )
    assert found(matches) == [[0], [], [0], []]


def test_matches_are_sorted_and_counted():
    matches = EntryIndex.build(["b", "a", "a b", "never"]).match(["a b a b", "b", None])
    assert matches.offsets.dtype == np.int64
    assert matches.entries.dtype == np.uint32
    assert found(matches) == [[0, 1, 2], [0], []]
    assert matches.counts(4).tolist() == [2, 1, 1, 0]
    assert matches.counts(4).dtype == np.uint64


def test_two_indices_do_not_know_each_other():
    one, other = EntryIndex.build(["cat"]), EntryIndex.build(["dog", "cat"])
    assert found(one.match(["cat"])) == [[0]]
    assert found(other.match(["cat"])) == [[1]]
    assert found(one.match(["cat"])) == [[0]]


@pytest.mark.parametrize("entries", [[], [""], ["  ", "a\tb", "U.S."]])
def test_lists_that_match_nothing(entries):
    index = EntryIndex.build(entries)
    assert found(index.match(["a b, U.S. ", "  ", None])) == [[], [], []]
    assert index.dead.tolist() == list(range(len(entries)))


def test_marks_are_words_of_their_own():
    entries = [",", "a , b", ", .", ",  .", "a,b", "a ,"]
    index = EntryIndex.build(entries)
    assert index.dead.tolist() == [2, 4]
    assert found(index.match(["a,b", "a, b", ",.", ", ."])) == [[0, 1, 5], [0, 5], [0, 3], [0]]


def test_equal_entries_are_the_first_of_them():
    index = EntryIndex.build(["cat", "dog", "cat", "", "", "cat"])
    assert index.duplicates.tolist() == [2, 5]
    assert found(index.match(["cat dog"])) == [[0, 1]]


@pytest.mark.parametrize("language", [None, "ja"])
def test_an_index_is_the_same_from_disk(tmp_path: Path, language):
    entries = [*ENTRIES, "abcdefghijkl mnopqrstuvwxyz", "猫", "ねこ"]
    built = EntryIndex.build(entries, language=language)
    built.save(tmp_path / "index")
    built.save(tmp_path / "index")
    loaded = EntryIndex.load(tmp_path / "index")
    texts = ["a black cat, abcdefghijkl mnopqrstuvwxyz", "かわいいねこ", "猫が好き"]
    assert found(loaded.match(texts)) == found(built.match(texts))
    assert isinstance(loaded._words.keys.base, np.memmap)
    assert (loaded.entries, loaded.language, loaded.digest) == (
        len(entries),
        language,
        built.digest,
    )
    assert loaded.dead.tolist() == built.dead.tolist()
    assert found(pickle.loads(pickle.dumps(loaded)).match(texts)) == found(built.match(texts))


def test_folders_that_hold_no_index(tmp_path: Path):
    with pytest.raises(UsageError, match="holds no whole index"):
        EntryIndex.load(tmp_path)
    EntryIndex.build(["cat"]).save(tmp_path)
    for broken in (b"", (tmp_path / "words_keys.npy").read_bytes()[:-1]):
        (tmp_path / "words_keys.npy").write_bytes(broken)
        with pytest.raises(UsageError, match="holds no whole index"):
            EntryIndex.load(tmp_path)
    (tmp_path / "entry_of.npy").unlink()
    with pytest.raises(UsageError, match="holds no whole index"):
        EntryIndex.load(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 0}')
    with pytest.raises(UsageError, match="another version"):
        EntryIndex.load(tmp_path)


def test_the_digest_is_of_entries_and_rule():
    digest = EntryIndex.build(["ab", "c"]).digest
    assert EntryIndex.build(Entries(("ab", "c"))).digest == digest
    assert EntryIndex.build(["ab", "c"], language="en").digest == digest
    others = [
        (["a", "bc"], None),
        (["c", "ab"], None),
        (["ab", "c", ""], None),
        (["ab", "c"], "zh"),
    ]
    digests = {EntryIndex.build(entries, language=language).digest for entries, language in others}
    assert len(digests | {digest}) == 5


def test_texts_without_spaces():
    entries = ["猫", "黒猫", "ねこ", "cat", "T恤", "猫 cat", "แมว", "ខ្មែរ", "한국", "(2)", "U.S."]
    index = EntryIndex.build(entries, language="zh")
    texts = [
        "黒猫です",
        "かわいいねこ",
        "黑T恤",
        "T恤",
        "猫cat",
        "猫 cat",
        "ซื้อแมวดำ",
        "ភាសាខ្មែរ",
        "한국어",
        "한국 어",
        "cat(2)",
    ]
    expected = [
        ["猫", "黒猫"], ["ねこ"], [], ["T恤"], ["猫"], ["猫", "cat", "猫 cat"], ["แมว"], ["ខ្មែរ"], [], ["한국"],
        ["(2)"],
    ]  # fmt: skip
    assert found(index.match(texts), entries) == expected
    assert [entries[place] for place in index.dead] == ["U.S."]


@pytest.mark.parametrize("character", list("猫あアไລကខབ,-「」。！“"))
def test_characters_that_stand_alone(character):
    assert stands_alone(character)


@pytest.mark.parametrize(
    "character", ["a", "é", "1", "한", " ", "\t", "\n", "\xa0", "я", "\ud83d", "😀"]
)
def test_characters_that_do_not(character):
    assert not stands_alone(character)


def test_marks_stand_alone():
    assert all(map(stands_alone, MARKS))


def test_unknown_languages_are_refused():
    with pytest.raises(UnknownName, match=r"unknown language 'xx'; known: .*zh-yue"):
        EntryIndex.build(["cat"], language="xx")


@pytest.mark.parametrize(
    ("entries", "message"), [("cat", "is one text"), (["a", 3], "entry 1 is no text but 3")]
)
def test_entries_must_be_a_list_of_texts(entries, message):
    with pytest.raises(UsageError, match=message):
        EntryIndex.build(entries)
