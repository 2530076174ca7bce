"""The vocabulary of the starter tagger holds together, read from the files of the repository alone."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

STARTER = Path(__file__).parents[2] / "recipes" / "starter"
VOCABULARY = STARTER / "vocabulary"
COLUMNS = {
    "imagenet.csv": ["index", "wnid", "name", "category"],
    "hypernyms.csv": ["name", "category", "members"],
    "words.csv": ["source", "word", "tag", "category"],
    "evidence.csv": ["tag", "members"],
    "styles.csv": ["name", "category", "description"],
    "counts.csv": ["source", "tag", "images"],
}


def read(name: str) -> list[dict[str, str]]:
    with (VOCABULARY / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def members(row: dict[str, str]) -> list[int]:
    return [int(index) for index in row["members"].split(" ")]


def named() -> list[tuple[str, str]]:
    """Return (tag, category) of every row that gives a tag a category."""
    rows = [
        (r["name"], r["category"])
        for f in ("imagenet.csv", "hypernyms.csv", "styles.csv")
        for r in read(f)
    ]
    return rows + [(r["tag"], r["category"]) for r in read("words.csv")]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "build_vocabulary", STARTER / "build_vocabulary.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COLUMNS)
def test_files_are_plain_csv(name: str) -> None:
    content = (VOCABULARY / name).read_bytes()
    assert b"\r" not in content
    assert content.endswith(b"\n")
    content.decode("ascii" if name != "words.csv" else "utf-8")
    rows = list(csv.reader(content.decode("utf-8").splitlines()))
    assert rows[0] == COLUMNS[name]
    assert all(len(row) == len(COLUMNS[name]) for row in rows)
    assert all(cell and cell == cell.strip() for row in rows for cell in row)


def test_imagenet_has_1000_classes_in_order() -> None:
    rows = read("imagenet.csv")
    assert [int(row["index"]) for row in rows] == list(range(1000))
    wnids = [row["wnid"] for row in rows]
    assert len(set(wnids)) == 1000
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in wnids)
    assert (wnids[0], wnids[999]) == ("n01440764", "n15075141")
    names = {int(row["index"]): row["name"] for row in rows}
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")
    assert names[620] == names[681] == "laptop"


def test_classes_share_a_name_only_on_purpose() -> None:
    by_name: dict[str, list[int]] = defaultdict(list)
    for row in read("imagenet.csv"):
        by_name[row["name"]].append(int(row["index"]))
    assert sum(len(indices) - 1 for indices in by_name.values()) <= 15
    assert all(len(indices) == 2 for indices in by_name.values() if len(indices) > 1)


def test_tags_are_clean_and_have_one_category(builder: ModuleType) -> None:
    categories: dict[str, str] = {}
    for tag, category in named():
        assert category in builder.CATEGORIES
        assert tag == " ".join(tag.lower().split())
        assert tag.isascii()
        assert "," not in tag
        assert categories.setdefault(tag, category) == category, tag
    assert len(builder.CATEGORIES) <= 15
    assert set(categories.values()) == set(builder.CATEGORIES)
    assert len(categories) >= 1500


def test_readme_states_the_number_of_tags_per_category(builder: ModuleType) -> None:
    text = (VOCABULARY / "README.md").read_text(encoding="utf-8")
    categories = dict(named())
    assert f"{len(categories):,} tags" in text
    for category in builder.CATEGORIES:
        assert f"| `{category}` | {list(categories.values()).count(category)} |" in text
    for source in builder.SOURCES:
        tags = {row["tag"] for row in read("words.csv") if row["source"] == source}
        line = next(line for line in text.splitlines() if line.startswith(f"| `{source}` |"))
        assert f"| {len(tags)} |" in line
    assert f"| {len(read('hypernyms.csv'))} general words" in text


def test_no_tag_is_the_plural_of_another() -> None:
    tags = {tag for tag, _ in named()}
    doubled = {(tag, tag + end) for tag in tags for end in ("s", "es") if tag + end in tags}
    assert doubled <= {("glass", "glasses")}


def test_hypernyms_are_unique_and_in_range() -> None:
    rows = read("hypernyms.csv")
    names = [row["name"] for row in rows]
    assert names == sorted(set(names))
    assert len(rows) >= 200
    for row in rows:
        assert members(row) == sorted(set(members(row))), row["name"]
        assert set(members(row)) <= set(range(1000)), row["name"]


def test_a_class_of_the_same_name_belongs_to_the_hypernym() -> None:
    hypernyms = {row["name"]: set(members(row)) for row in read("hypernyms.csv")}
    for row in read("imagenet.csv"):
        assert int(row["index"]) in hypernyms.get(row["name"], {int(row["index"])}), row["name"]


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("dog", {151, 207, 268}, {269, 273, 281}),
        ("cat", {281, 285}, {291, 292}),
        ("elephant", {101, 385, 386}, {344}),
        ("bread", {930, 931}, {962}),
        ("wolf", {269, 270}, {272}),
        ("computer", {527, 620, 681}, {798, 916}),
        ("bus", {654, 779, 874}, {705}),
    ],
)
def test_hypernyms_hold_what_a_person_expects(
    name: str, inside: set[int], outside: set[int]
) -> None:
    found = next(set(members(row)) for row in read("hypernyms.csv") if row["name"] == name)
    assert inside <= found
    assert not outside & found


def test_words_are_unique_and_known_sources() -> None:
    rows = [tuple(row.values()) for row in read("words.csv")]
    assert rows == sorted(set(rows))
    assert {row[0] for row in rows} == {"corel", "coco", "flickr", "drawing"}
    assert all(row[1] == row[1].lower() for row in rows)


def test_words_of_corel_are_tags_verbatim() -> None:
    rows = [row for row in read("words.csv") if row["source"] == "corel"]
    words = {row["word"] for row in rows}
    assert len(words) == 371
    assert {"people", "buildings", "flowers", "clouds", "f-16", "close-up", "white-tailed"} <= words
    assert words <= {row["tag"] for row in rows if row["word"] == row["tag"]}


def test_coco_has_its_80_classes() -> None:
    rows = [row for row in read("words.csv") if row["source"] == "coco"]
    assert len({row["word"] for row in rows}) == 80
    assert {row["tag"] for row in rows if row["word"] == "airplane"} == {"plane", "vehicle"}
    assert {row["tag"] for row in rows if row["word"] == "orange"} == {
        "orange (fruit)",
        "fruit",
        "food",
    }


def test_counts_cover_every_learned_tag() -> None:
    counts = {(row["source"], row["tag"]): int(row["images"]) for row in read("counts.csv")}
    assert set(counts) == {(row["source"], row["tag"]) for row in read("words.csv")}
    photos: dict[str, int] = defaultdict(int)
    for (source, tag), images in counts.items():
        photos[tag] += images
        assert images >= (1 if source in ("corel", "coco") else 2), (source, tag)
    other = {row["tag"] for row in read("words.csv") if row["source"] in ("corel", "coco")}
    other |= {row["name"] for file in ("imagenet.csv", "hypernyms.csv") for row in read(file)}
    assert all(images >= 8 for tag, images in photos.items() if tag not in other)


def test_evidence_contains_the_tags_own_classes() -> None:
    learned = {row["tag"] for row in read("words.csv")}
    evidence = {row["tag"]: members(row) for row in read("evidence.csv")}
    assert list(evidence) == sorted(evidence)
    assert set(evidence) <= learned
    own: dict[str, set[int]] = defaultdict(set)
    for row in read("imagenet.csv"):
        own[row["name"]].add(int(row["index"]))
    for row in read("hypernyms.csv"):
        own[row["name"]].update(members(row))
    for tag in learned & set(own):
        assert own[tag] <= set(evidence[tag]), tag
    for tag, indices in evidence.items():
        assert indices == sorted(set(indices) & set(range(1000))), tag


@pytest.mark.parametrize(
    ("tag", "inside", "outside"),
    [
        ("person", {981, 982, 983}, {151}),
        ("beach", {977, 978}, {975}),
        ("snow", {795, 802, 970}, {978}),
        ("plane", {404, 895}, {726}),
        ("bus", {654, 779, 874}, set()),
        ("potted plant", {738}, {947}),
        ("kite", set(), {21}),
        ("orange (fruit)", {950}, set()),
    ],
)
def test_evidence_holds_what_a_person_expects(
    tag: str, inside: set[int], outside: set[int]
) -> None:
    found = next((set(members(row)) for row in read("evidence.csv") if row["tag"] == tag), set())
    assert inside <= found
    assert not outside & found


def test_captions_and_keywords_are_cut_as_documented(builder: ModuleType) -> None:
    found = builder.caption_phrases(["A snow-covered dog's toy , on the Beach ."])
    assert {"snow-covered", "dog's", "toy", "the beach", "dog's toy on"} <= found
    assert not {".", "a snow-covered dog's toy"} & found
    found = builder.drawing_phrases(["Church_with_tree02"])
    assert {"church_with_tree02", "church", "tree", "church with tree"} <= found
    assert builder.drawing_phrases(["O’Clock"]) == {"o’clock"}


def test_rules_and_tables_agree(builder: ModuleType) -> None:
    classes = builder.read_classes(VOCABULARY / "rules" / "imagenet.txt")
    assert [(c.tag, c.category) for c in classes] == [
        (r["name"], r["category"]) for r in read("imagenet.csv")
    ]
    rules = {
        (s, r.tag, r.category)
        for s, rules in builder.read_words(VOCABULARY / "rules").items()
        for r in rules
    }
    assert {(r["source"], r["tag"], r["category"]) for r in read("words.csv")} <= rules


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("dog", "animal"), ("dog", "object")], "both animal and object"),
        ([("dog", "beast")], "unknown category"),
        ([("Dog", "animal")], "not a clean name"),
        ([("dog", "animal"), ("dogs", "animal")], "both 'dog' and 'dogs'"),
    ],
)
def test_builder_names_contradictions(
    builder: ModuleType, entries: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(builder.VocabularyError, match=message):
        builder.check_categories(entries)
