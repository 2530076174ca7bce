"""Names of WordNet's synsets: the list that ships, WordNet's own files, and wordnets of other languages.

WordNet 3.0 (Princeton University, 2006) is under a licence of its own, which stands beside the list in `wordnet/`. The
rule is that of MetaCLIP's `build_metadata.py`, which takes nltk's names: the first lemma of a synset in lower case, up
to its first ".", with spaces for underscores. So ".22 caliber" is an empty name, which is left out.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

from annotary.curation._frequencies import Malformed, lines_of
from annotary.errors import UsageError

SHIPPED = Path(__file__).parent / "wordnet" / "synsets.txt.gz"
"""The names of WordNet 3.0, in its order, one a line; `recipes/wordnet` makes it."""

_PARTS = ("noun", "verb", "adj", "adv")
"""The parts of speech in the order of WordNet's own numbers for them (wndb(5WN))."""


def shipped_names() -> list[str]:
    """The 86,554 names of the list that ships, in WordNet's order, none twice."""
    return gzip.decompress(SHIPPED.read_bytes()).decode("utf-8").splitlines()


def read_names(path: Path, malformed: Malformed) -> Iterator[str]:
    """The names in a file or a folder of files; some may come twice.

    Args:
        path: A folder with WordNet's `data.noun`, `data.verb`, `data.adj` and `data.adv`, such as nltk's; one of these
            files; a table of the Open Multilingual Wordnet (`offset<TAB>fra:lemma<TAB>word`); or a list with a name on
            each line. Files may be compressed with gzip.
        malformed: Gets the lines that are none of this.

    Raises:
        UsageError: It cannot be read, or a folder has no file of WordNet.
    """
    if path.is_dir():
        files = [path / f"data.{part}" for part in _PARTS if (path / f"data.{part}").is_file()]
        if not files:
            raise UsageError(f"{path} has none of WordNet's files: data.noun, data.verb, …")
        for file in files:
            yield from _of_data(file, malformed)
    elif path.name.removesuffix(".gz") in {f"data.{part}" for part in _PARTS}:
        yield from _of_data(path, malformed)
    else:
        yield from _of_list(path, malformed)


def synset_name(lemma: str) -> str:
    """The name of the synset whose first lemma this is, as it stands in WordNet's files: may be empty."""
    # Adjectives may end in a mark of where they stand: "afloat(p)", "galore(ip)".
    word = lemma.partition("(")[0] if lemma.endswith(")") else lemma
    return word.lower().partition(".")[0].replace("_", " ")


def _of_data(path: Path, malformed: Malformed) -> Iterator[str]:
    for number, line in lines_of(path, malformed):
        if line.startswith("  "):
            continue  # the licence
        cells = line.split(" ", 5)
        if len(cells) < 6 or not cells[0].isdecimal():
            malformed.add(path, number, "not a line of WordNet's data files")
        else:
            yield synset_name(cells[4])


def _of_list(path: Path, malformed: Malformed) -> Iterator[str]:
    for number, line in lines_of(path, malformed):
        if not line.strip() or (line.startswith("#") and "\t" in line):
            continue
        cells = line.split("\t")
        if len(cells) == 1:
            yield line.replace("_", " ")
        elif len(cells) == 3 and cells[1].split(":")[-1] == "lemma":
            # Some of these wordnets join the parts of a word by "+" (build_multilingual_wordnet.py takes it out, too).
            yield cells[2].replace("_", " ").replace("+", "")
        elif len(cells) < 3 or ":" not in cells[1]:
            malformed.add(
                path, number, "neither a name nor a lemma of the Open Multilingual Wordnet"
            )


def each_once(names: Iterable[str]) -> list[str]:
    """Names in their order, the first of each, without empty ones."""
    return [name for name in dict.fromkeys(names) if name]
