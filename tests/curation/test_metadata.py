"""The list of entries: what is read, what becomes an entry, in which order, and what is told of the rest."""

from __future__ import annotations

import gzip
import json
import math
import random
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.curation import _wordnet
from annotary.curation._caption_counts import words_of
from annotary.curation._frequencies import (
    Counts,
    Malformed,
    WordCounts,
    pointwise_mutual_information,
    read_bigrams,
    read_titles,
    read_unigrams,
)
from annotary.curation.entry_index import EntryIndex
from annotary.curation.match import english_entries
from annotary.curation.metadata import (
    Metadata,
    MetadataOptions,
    MetadataSources,
    build_metadata,
    coverage,
)
from annotary.errors import UsageError


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def built(options: MetadataOptions | None = None, **files: object) -> Metadata:
    """A list without WordNet."""
    sources = MetadataSources(**{"wordnet": "none", **files})  # type: ignore[arg-type]
    return build_metadata(sources, options or MetadataOptions())


def texts(found: Metadata, *letters: str) -> list[str]:
    return [one.text for one in found.entries if one.source in letters]


def add_up(found: Metadata) -> None:
    """Nothing is lost: whatever was looked at is an entry, or is told."""
    for one in found.report["sources"].values():
        assert one["texts"] == one["entries"] + sum(one["dropped"].values())
    assert found.report["entries"] == len(found.entries)
    assert len({entry.text for entry in found.entries}) == len(found.entries)


# WordNet


def test_the_list_that_ships_is_that_of_table_1():
    found = build_metadata(MetadataSources(), MetadataOptions())
    assert len(found.entries) == 86_654  # table 1 counts the numbers with WordNet
    assert texts(found, "n") == [str(i) for i in range(100)]
    names = texts(found, "w")
    assert len(names) == len(set(names)) == 86_554
    assert names[:3] == ["entity", "physical entity", "abstraction"]
    assert {"dog", "jersey", "frank", "run"} <= set(names)
    assert "hot dog" not in names  # a lemma of "frank", and not its first
    assert all(name == name.lower() for name in names)
    assert not found.dead
    add_up(found)
    # What matching takes without a list is the same list, so that ids agree.
    assert list(english_entries()) == [one.text for one in found.entries]


def test_the_licence_ships_with_the_list():
    licence = _wordnet.SHIPPED.with_name("LICENCE.txt").read_text("utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert "Permission to use, copy, modify and distribute" in licence


@pytest.mark.parametrize(
    ("lemma", "name"),
    [
        ("entity", "entity"),
        ("Physical_Entity", "physical entity"),
        ("afloat(p)", "afloat"),
        ("galore(ip)", "galore"),
        (".22_caliber", ""),
        ("Dr.", "dr"),
        ("St._John's", "st"),
    ],
)
def test_names_of_synsets_are_those_of_nltk(lemma, name):
    assert _wordnet.synset_name(lemma) == name


DATA = """\
  1 This software and database is being provided to you, the LICENSEE, by  
  2 Princeton University under the following license.  
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived  
00001930 03 n 01 physical_entity 0 007 @ 00001740 n 0000 | an entity  
00001931 03 n 01 Entity 0 007 @ 00001740 n 0000 | again  
broken line
"""  # noqa: W291 - WordNet's files have these spaces


def test_wordnets_own_files_are_read(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(DATA)
    (folder / "data.adj").write_bytes(gzip.compress(b"00001740 00 a 01 able(a) 0 005 | x\n"))
    found = built(wordnet=str(folder))
    assert texts(found, "w") == ["entity", "physical entity", "able"]
    report = found.report["sources"]["wordnet"]
    assert report["rows"] == 4
    assert report["malformed"] == {
        "count": 1,
        "first": [f"{folder / 'data.noun'}:6: not a line of WordNet's data files"],
    }


def test_a_table_of_the_open_multilingual_wordnet_is_read(tmp_path):
    path = written(
        tmp_path / "wn-data-fra.tab",
        "# Wolf\tfra\thttp://wolf.example\tCeCILL-C",
        "00001740-n\tfra:lemma\tentité",
        "00001930-n\tfra:def\t0\tquelque chose",
        "00001931-n\tlemma\tpomme_de_terre",
    )
    found = built(MetadataOptions(language="fr"), wordnet=str(path))
    assert texts(found, "w") == ["entité", "pomme de terre"]
    assert found.report["sources"]["wordnet"]["malformed"]["count"] == 0


def test_other_languages_have_no_wordnet_unless_it_is_given():
    found = build_metadata(MetadataSources(), MetadataOptions(language="fr"))
    assert texts(found, "n", "w") == [str(i) for i in range(100)]


def test_a_folder_without_wordnet_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"none of WordNet's files"):
        built(wordnet=str(tmp_path))


# Words


def test_words_from_the_limit_on_are_entries_most_frequent_first(tmp_path):
    path = written(
        tmp_path / "u.tsv",
        *("Zebra\t100", "apple\t100", "rare\t99", "the\t12345678901", "7\t400", ".\t999"),
        *("i.e.\t500", "\t5", "Äpfel\t100", "𝒳\t100"),
    )
    found = built(unigrams=(path,))
    assert texts(found, "u") == ["the", "Zebra", "apple", "Äpfel", "𝒳"]
    assert [one.text for one in found.dead] == ["i.e."]
    report = found.report["sources"]["unigrams"]
    assert report["dropped"] == {
        "a punctuation mark": 1,
        "an entry already": 1,
        "count below 100": 2,  # "" and "rare"
        "never matches": 1,
    }
    assert report["sum_of_counts"] == 12345678901 + 100 * 4 + 99 + 400 + 999 + 500 + 5
    add_up(found)


def test_dead_entries_may_be_kept_and_are_told_all_the_same(tmp_path):
    path = written(tmp_path / "u.tsv", "i.e.\t500", "dog\t400")
    found = built(MetadataOptions(keep_dead=True), unigrams=(path,))
    assert texts(found, "u") == ["i.e.", "dog"]
    assert [one.text for one in found.dead] == ["i.e."]
    assert found.report["never_match"]["kept"] is True
    assert found.report["never_match"]["by_source"]["unigrams"] == 1
    add_up(found)


def test_what_is_kept_can_match_by_the_matchers_own_account(tmp_path):
    words = ["a,b", "U.S.", "dog", "what?", "`", "it's", "(dog)", "x;y", "é", "a/b"]
    path = written(tmp_path / "u.tsv", *(f"{word}\t500" for word in words))
    found = built(unigrams=(path,))
    assert texts(found, "u") == sorted(["dog", "it's", "(dog)", "é", "a/b"])
    assert not EntryIndex.build([one.text for one in found.entries]).dead.size


def test_files_are_summed_whatever_their_form(tmp_path):
    first = written(tmp_path / "a.tsv", "dog\t60", "cat\t10")
    second = tmp_path / "b.csv.gz"
    second.write_bytes(gzip.compress(b'word,count\ndog,50\n"cat",95\n'))
    third = written(tmp_path / "c.txt", "dog 1")
    fourth = written(tmp_path / "d.txt", "3\tcat", "1\t2")
    found = built(unigrams=(first, second, third, fourth))
    counts = [(one.text, one.count) for one in found.entries if one.source == "u"]
    assert counts == [("dog", 111), ("cat", 108)]
    assert found.report["sources"]["unigrams"]["malformed"]["count"] == 0


def test_a_folder_stands_for_its_files(tmp_path):
    folder = tmp_path / "views"
    (folder / "2018").mkdir(parents=True)
    written(folder / "2018" / "pageviews-1", "en Dog 60 0")
    written(folder / "pageviews-2", "en Dog 70 0")
    written(folder / ".hidden", "en Cat 900 0")
    found = built(titles=(folder, folder / "pageviews-2"))
    assert [(one.text, one.count) for one in found.entries if one.source == "t"] == [("Dog", 130)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is a folder without files"):
        built(titles=(tmp_path / "empty",))


def test_a_bom_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "u.tsv"
    path.write_bytes("﻿dog\t500\r\ncat\t400\r\n".encode())
    assert texts(built(unigrams=(path,)), "u") == ["dog", "cat"]


def test_bad_lines_are_skipped_and_told_with_their_numbers(tmp_path):
    path = tmp_path / "u.tsv"
    lines = [b"dog\t500", b"cat", b"cow\t-5", b"\xff\xfe\t500", b"a\tb\t7", b"", b"pig\t1e3"]
    lines += [b"hen\t0", b"ox\t99999999999999999999", "d\u2028e\t500".encode(), b"emu\t\xc2\xb2"]
    path.write_bytes(b"\n".join(lines))
    found = built(unigrams=(path,))
    assert texts(found, "u") == ["dog"]
    malformed = found.report["sources"]["unigrams"]["malformed"]
    numbers = sorted(
        int(line.removeprefix(f"{path}:").split(":")[0]) for line in malformed["first"]
    )
    assert malformed["count"] == 9
    assert numbers == [2, 3, 4, 5, 7, 8, 9, 10, 11]


def test_of_many_bad_lines_a_hundred_are_kept(tmp_path):
    path = written(tmp_path / "u.tsv", *["dog"] * 1500, "cat\t500")
    malformed = built(unigrams=(path,)).report["sources"]["unigrams"]["malformed"]
    assert malformed["count"] == 1500
    assert len(malformed["first"]) == 100


def test_an_endless_line_is_skipped(tmp_path):
    path = tmp_path / "u.tsv"
    path.write_bytes(b"dog\t500\n" + b"x" * (3 * 1024 * 1024) + b"\t500\ncat\t400\n")
    malformed = Malformed()
    assert [row.texts for row in read_unigrams(path, malformed)] == [("dog",), ("cat",)]
    assert malformed.told == [f"{path}:2: longer than 1 MiB"]


def test_a_file_that_ends_too_early_is_an_error(tmp_path):
    path = tmp_path / "u.tsv.gz"
    rows = "".join(f"word{i * 7919 % 10007}\t{i + 1}\n" for i in range(3000))
    path.write_bytes(gzip.compress(rows.encode())[:-100])
    with pytest.raises(UsageError, match=r"u\.tsv\.gz: .*end"):
        built(unigrams=(path,))
    with pytest.raises(UsageError, match="No such file"):
        built(unigrams=(tmp_path / "none.tsv",))


def test_the_largest_counts_are_kept_whole_and_larger_sums_refused(tmp_path):
    path = written(tmp_path / "u.tsv", f"dog\t{2**63 - 1}")
    assert built(unigrams=(path,)).entries[-1].count == 2**63 - 1
    more = written(tmp_path / "more.tsv", "dog\t1")
    assert built(unigrams=(path, path)).entries[-1].count == 2**63 - 1  # a file counts once
    with pytest.raises(UsageError, match="'dog' sum up to more than"):
        built(unigrams=(path, more))


def test_caps_keep_the_best_and_count_only_what_is_new(tmp_path):
    lines = [f"word{i:03}\t{1000 + i % 7}" for i in range(300)]
    path = written(tmp_path / "u.tsv", "5\t9999", "a.b\t9998", *lines)
    found = built(MetadataOptions(max_unigrams=50), unigrams=(path,))
    expected = sorted(lines, key=lambda line: (-int(line[8:]), line))[:50]
    assert texts(found, "u") == [line.split("\t")[0] for line in expected]
    assert found.report["sources"]["unigrams"]["dropped"]["beyond the largest number"] == 250
    assert len(texts(built(MetadataOptions(max_unigrams=0), unigrams=(path,)), "u")) == 300
    add_up(found)


def test_a_cap_is_exact_also_where_candidates_are_let_go_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("annotary.curation._entry_choice._SLACK", 5)
    rows = [(f"w{i}", 100 + i * 7919 % 1009) for i in range(1000)]
    path = written(tmp_path / "u.tsv", *(f"{word}\t{count}" for word, count in rows))
    found = built(MetadataOptions(max_unigrams=30), unigrams=(path,))
    best = sorted(rows, key=lambda row: (-row[1], row[0]))[:30]
    assert texts(found, "u") == [word for word, _ in best]
    add_up(found)


# Pairs of words


def test_pmi_is_that_of_nltk():
    measures = pytest.importorskip("nltk.metrics.association").BigramAssocMeasures
    rng = random.Random(5)
    for _ in range(300):
        total = rng.randint(1, 10**10)
        first, second = rng.randint(1, total), rng.randint(1, total)
        together = rng.randint(1, min(first, second))
        ours = pointwise_mutual_information(together, first, second, total)
        assert ours == measures.pmi(together, (first, second), total)


def test_pairs_are_scored_as_nltks_finder_does(tmp_path):
    nltk = pytest.importorskip("nltk")
    from nltk.collocations import BigramCollocationFinder
    from nltk.metrics.association import BigramAssocMeasures

    words = {"new": 40, "york": 9, "city": 30, "the": 500, "rare": 1, "pair": 1}
    pairs = {("new", "york"): 8, ("york", "city"): 3, ("the", "city"): 20, ("rare", "pair"): 1}
    finder = BigramCollocationFinder(nltk.FreqDist(words), nltk.FreqDist(pairs))
    scored = finder.score_ngrams(BigramAssocMeasures.pmi)
    unigrams = written(tmp_path / "u.tsv", *(f"{word}\t{count}" for word, count in words.items()))
    bigrams = written(tmp_path / "b.tsv", *(f"{a}\t{b}\t{n}" for (a, b), n in pairs.items()))
    for least in (-5.0, 1.0, 3.0, 9.0):
        found = built(MetadataOptions(bigram_pmi=least), unigrams=(unigrams,), bigrams=(bigrams,))
        assert texts(found, "b") == [" ".join(pair) for pair, score in scored if score >= least]
        add_up(found)


def test_the_limit_of_the_paper_by_hand(tmp_path):
    # 2^31 words in all; a pair of words that occur once has a PMI of 31, one of words that occur twice, of 30.
    unigrams = written(
        tmp_path / "u.tsv", f"the\t{2**31 - 8}", "once\t1", "only\t1", "two\t2", "by two\t2", "x\t2"
    )
    unigrams.write_text(unigrams.read_text().replace("by two", "bytwo"))
    bigrams = written(
        tmp_path / "b.tsv", "once only\t1", "two\tbytwo\t2", "two x\t1", "gone x\t1", "the the\t9"
    )
    found = built(unigrams=(unigrams,), bigrams=(bigrams,))
    assert [entry for entry in found.entries if entry.source == "b"] == [
        ("once only", "b", 1),
        ("two bytwo", "b", 2),
    ]
    report = found.report["sources"]["bigrams"]
    assert report["dropped"] == {"PMI below 30": 2, "a word without a count": 1}
    assert report["highest_possible_pmi"] == 31


def test_equal_pmi_goes_by_count_and_then_by_code_points(tmp_path):
    unigrams = written(tmp_path / "u.tsv", *(f"{w}\t4" for w in "abcdefgh"), f"the\t{2**20}")
    bigrams = written(tmp_path / "b.tsv", "c d\t1", "a b\t1", "g h\t2", "e f\t1")
    options = MetadataOptions(bigram_pmi=1, max_bigrams=3)
    found = built(options, unigrams=(unigrams,), bigrams=(bigrams,))
    assert texts(found, "b") == ["g h", "a b", "c d"]


def test_rare_pairs_may_be_left_out(tmp_path):
    unigrams = written(tmp_path / "u.tsv", *(f"{w}\t4" for w in "abcd"), f"the\t{2**20}")
    bigrams = written(tmp_path / "b.tsv", "a b\t1", "c d\t2", "the a\t3")
    options = MetadataOptions(bigram_pmi=1, bigram_count=2)
    found = built(options, unigrams=(unigrams,), bigrams=(bigrams,))
    assert texts(found, "b") == ["c d"]
    dropped = found.report["sources"]["bigrams"]["dropped"]
    assert dropped == {"PMI below 1": 1, "count below 2": 1}
    add_up(found)


def test_forms_of_pairs(tmp_path):
    malformed = Malformed()
    plain = written(tmp_path / "b.tsv", "new\tyork\t5", "new york\t6", "a b c\t7", "a\t8", "x y 9")
    rows = [(row.texts, row.count) for row in read_bigrams(plain, malformed)]
    assert rows == [(("new", "york"), 5), (("new", "york"), 6), (("x", "y"), 9)]
    assert malformed.count == 2
    table = written(tmp_path / "b.csv", "first,second,count", "new,york,5", '"a,","b",3')
    assert [row.texts for row in read_bigrams(table, malformed)] == [("new", "york"), ("a,", "b")]
    front = written(tmp_path / "front.tsv", "5\tnew\tyork", "6\ta\t7")
    assert [row.texts for row in read_bigrams(front, malformed)] == [("new", "york"), ("a", "7")]
    assert malformed.count == 2


def test_pairs_need_the_counts_of_words():
    with pytest.raises(ValueError, match="bigrams needs --unigrams"):
        MetadataSources(bigrams=(Path("b.tsv"),))


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 2**62), max_size=40))
def test_counts_of_words_are_found_again(counts):
    words = WordCounts()
    for word, count in counts.items():
        words.add(word, count)
    words.freeze()
    assert words.of([*counts, "a word that is not there"]) == [*counts.values(), 0]
    assert words.total == sum(counts.values())
    assert words.distinct == len(counts)


# Titles


def test_hourly_dumps_count_as_in_the_original(tmp_path):
    first = tmp_path / "pageviews-20180419-000000.gz"
    lines = [
        *("en Main_Page 60 0", "en Cat 49 0", "en Dog 50 0", "en.m Dog 5000 0", "fr Chien 80 0"),
        *(
            "en Talk:Dog 500 0",
            "en T._Rex 99 0",
            "en  99 0",
            "en Emu x 0",
            "en Hen",
            "de.m Ei 70 0",
        ),
    ]
    first.write_bytes(gzip.compress("\n".join(lines).encode()))
    second = written(tmp_path / "pageviews-20180419-010000", "en Dog 51 0", "en Main_Page 9 0")
    found = built(titles=(first, second))
    assert [(one.text, one.count) for one in found.entries if one.source == "t"] == [("Dog", 101)]
    assert [one.text for one in found.dead] == ["T. Rex"]
    report = found.report["sources"]["titles"]
    assert report["rows"] == 11
    assert report["rows_left_out"] == {
        "another project": 3,
        "fewer than 50 views in the hour": 2,
        'a ":" in it': 1,
    }
    assert report["dropped"] == {"empty": 1, "never matches": 1, "views below 70": 1}
    assert report["malformed"]["count"] == 2
    add_up(found)


def test_lists_of_titles(tmp_path):
    path = written(
        tmp_path / "t.tsv", "New_York_City\t80", "", "New York City\t5", "Dog\t69", "A: B\t99"
    )
    found = built(titles=(path,))
    assert [(one.text, one.count) for one in found.entries if one.source == "t"] == [
        ("New York City", 85)
    ]
    assert found.report["sources"]["titles"]["malformed"]["count"] == 0
    table = written(tmp_path / "t.csv", "title,views", '"Paris, Texas",80', "Rome,90")
    rows = [(row.texts[0], row.count) for row in read_titles(table, Malformed())]
    assert rows == [("Paris, Texas", 80), ("Rome", 90)]


def test_titles_of_another_language_take_telephones_in_and_every_view(tmp_path):
    path = written(tmp_path / "pageviews", "fr Chien 3 0", "fr.m Chien 4 0", "fr.d Chat 9 0")
    options = MetadataOptions(language="fr", title_share=1.0)
    found = built(options, titles=(path,))
    assert [(one.text, one.count) for one in found.entries if one.source == "t"] == [("Chien", 7)]


# The whole


def test_each_entry_comes_once_from_the_first_source(tmp_path):
    names = written(tmp_path / "names.txt", "dog", "7", "cat", "dog")
    unigrams = written(tmp_path / "u.tsv", "cat\t500", "dog\t400", "cow\t300", "New\t200")
    titles = written(tmp_path / "t.tsv", "cow\t900", "New\t800", "Hen\t700")
    found = built(wordnet=str(names), unigrams=(unigrams,), titles=(titles,))
    assert [(one.text, one.source) for one in found.entries[100:]] == [
        *(("dog", "w"), ("cat", "w"), ("cow", "u"), ("New", "u"), ("Hen", "t"))
    ]
    assert found.report["sources"]["wordnet"]["dropped"] == {"an entry already": 1}
    add_up(found)


def test_single_marks_and_nothing_are_never_entries(tmp_path):
    path = written(tmp_path / "u.tsv", *(f"{mark}\t500" for mark in string.punctuation), "—\t500")
    assert texts(built(unigrams=(path,)), "u") == ["—"]  # the original excludes marks of ASCII


def test_rules_of_other_languages(tmp_path):
    words = [f"mot{i}\t{1000 - i}" for i in range(96)]
    path = written(
        tmp_path / "u.tsv", *words, "«»\t2000", "。、\t3000", "x" * 257 + "\t2500", "y\t1"
    )
    found = built(MetadataOptions(language="fr"), unigrams=(path,))
    assert texts(found, "u") == ["«»", *(f"mot{i}" for i in range(9))]  # 10 % of 100 words
    dropped = found.report["sources"]["unigrams"]["dropped"]
    assert dropped["punctuation alone"] == 1
    assert dropped["longer than 256 characters"] == 1
    add_up(found)


def test_pairs_of_a_language_without_spaces_are_joined_without_one(tmp_path):
    unigrams = written(tmp_path / "u.tsv", "東\t4", "京\t4", "東京\t2", "a\t3", "的\t100000")
    bigrams = written(tmp_path / "b.tsv", "東\t京\t4", "京\t東京\t1")
    options = MetadataOptions(language="zh", unigram_share=1.0, bigram_pmi=2, bigram_share=1.0)
    found = built(options, unigrams=(unigrams,), bigrams=(bigrams,))
    assert texts(found, "u") == ["的", "京", "東", "a", "東京"]
    assert texts(found, "b") == ["京東京"]  # 東京 is a word already
    add_up(found)


def test_pairs_that_read_the_same_without_spaces_are_one(tmp_path):
    unigrams = written(tmp_path / "u.tsv", "大\t4", "大学\t4", "学生\t4", "生\t4", "的\t100000")
    bigrams = written(tmp_path / "b.tsv", "大\t学生\t2", "大学\t生\t3")
    options = MetadataOptions(language="zh-yue", bigram_pmi=2, bigram_share=1.0)
    found = built(options, unigrams=(unigrams,), bigrams=(bigrams,))
    assert [one for one in found.entries if one.source == "b"] == [("大学生", "b", 3)]
    assert found.report["sources"]["bigrams"]["dropped"] == {"twice in the source": 1}


COUNTS = st.dictionaries(
    st.text(
        st.characters(exclude_categories=("Cs", "Zs", "Zl", "Zp", "Cc")), min_size=1, max_size=4
    ),
    st.integers(1, 5),
    max_size=30,
)


@given(words=COUNTS, seed=st.integers(0, 9), cap=st.integers(0, 12))
def test_order_of_lines_and_files_changes_nothing(tmp_path_factory, words, seed, cap):
    folder = tmp_path_factory.mktemp("orders")
    lines = [f"{word}\t{count}" for word, count in words.items() for _ in range(2)]
    pairs = [f"{a}\t{b}\t1" for a in list(words)[:4] for b in list(words)[:4]]
    options = MetadataOptions(unigram_count=3, bigram_pmi=0.5, max_unigrams=cap, max_bigrams=cap)
    seen = []
    for turn in range(2):
        rng = random.Random(seed + 100 * turn)
        rng.shuffle(lines)
        rng.shuffle(pairs)
        cut = rng.randint(0, len(lines))
        files = (
            written(folder / f"{turn}a.tsv", *lines[:cut]),
            written(folder / f"{turn}b.tsv", *lines[cut:]),
        )
        bigrams = written(folder / f"{turn}p.tsv", *pairs)
        found = built(options, unigrams=files, bigrams=(bigrams,), titles=(files[0], files[1]))
        add_up(found)
        seen.append(found.entries)
    assert seen[0] == seen[1]
    ranks = [(-one.count, one.text) for one in seen[0] if one.source == "u"]
    assert ranks == sorted(ranks)


@given(
    added=st.lists(
        st.tuples(st.text("ab\tµ𝒳", min_size=1, max_size=3), st.integers(1, 9)), max_size=80
    ),
    most=st.integers(1, 9),
)
def test_sums_are_the_same_when_memory_is_short(added, most):
    plain: dict[str, int] = {}
    with Counts(most_held=most) as counts:
        for text, count in added:
            counts.add(text, count)
            plain[text] = plain.get(text, 0) + count
        assert list(counts) == sorted(plain.items())
        assert list(counts) == sorted(plain.items())  # and once more


def test_very_many_spilled_runs_are_merged():
    with Counts(most_held=1) as counts:
        for i in range(300):
            counts.add(f"w{i % 150:03}", 1)
        assert list(counts) == [(f"w{i:03}", 2) for i in range(150)]
        folder = Path(counts._folder.name)
        assert len(list(folder.iterdir())) <= 64
    assert not folder.exists()


# Captions


def test_words_are_cut_where_matching_finds_them():
    assert words_of("A cat, New\tYork!") == ["A", "cat", ",", "", "New", "York", "!", ""]
    # Whatever is cut as a word is found as an entry.
    for text in (
        "dog's bowl (dog)",
        "U.S. photo",
        "“cat”?no",
        "a  b",
        "x\u00a0y\u3000z",
        "T-shirt/t",
    ):
        words = [word for word in dict.fromkeys(words_of(text)) if word and word not in ",.;:?!`"]
        assert EntryIndex.build(words).match([text]).entries.tolist() == list(range(len(words)))


CAPTIONS = ["a black cat", "a black  cat", "a black, cat", None, "", "a black cat on a mat", "cat"]


@pytest.fixture
def table(tmp_path) -> Path:
    rows = [json.dumps({"caption": text, "alt": ["dog run", "dog"]}) for text in CAPTIONS]
    return written(tmp_path / "captions.jsonl", *rows, "{broken")


def test_captions_are_counted(table):
    options = MetadataOptions(unigram_count=2, bigram_pmi=0)
    found = built(options, captions=(str(table),), text_column=("caption",))
    counts = {one.text: (one.source, one.count) for one in found.entries[100:]}
    assert counts["cat"] == ("u", 5)
    assert counts["a"] == ("u", 5)
    assert counts["a black"] == ("b", 4)
    assert counts["black cat"] == ("b", 2)
    assert "black  cat" not in counts
    assert "mat" not in counts
    report = found.report["sources"]["unigrams"]
    assert (report["rows"], report["rows_left_out"]) == (5, {"no text in it": 2})
    assert report["malformed"]["count"] == 1
    add_up(found)


def test_pairs_of_captions_are_found_by_matching(table):
    options = MetadataOptions(unigram_count=1, bigram_pmi=-99)
    found = built(options, captions=(str(table),), text_column=("caption",))
    listed = [one.text for one in found.entries if one.source == "b"]
    counts = EntryIndex.build(listed).match(CAPTIONS).counts(len(listed))
    assert counts.min() >= 1


def test_lists_of_texts_and_usual_names_are_taken(table):
    options = MetadataOptions(unigram_count=1)
    found = built(options, captions=(str(table),), text_column=("alt",))
    assert texts(found, "u") == ["dog", "run"]
    usual = built(options, captions=(str(table),))
    assert texts(usual, "u")[0] == "a"


def test_captions_exclude_what_would_mix(table):
    with pytest.raises(ValueError, match="counts of different texts"):
        MetadataSources(captions=(str(table),), unigrams=(Path("u.tsv"),))
    with pytest.raises(ValueError, match="text_column is a column of --captions"):
        MetadataSources(text_column=("caption",))
    with pytest.raises(UsageError, match="ja does not put between them"):
        built(MetadataOptions(language="ja"), captions=(str(table),))
    with pytest.raises(UsageError, match="no column 'nothing'"):
        built(captions=(str(table),), text_column=("nothing",))


def test_a_broken_table_is_told_and_what_was_read_counts(tmp_path):
    good = written(tmp_path / "a.csv", "caption", *["a dog"] * 3)
    bad = tmp_path / "b.csv.gz"
    bad.write_bytes(gzip.compress(b"caption\n" + b"a cat\n" * 3)[:-6])
    found = built(MetadataOptions(unigram_count=1), captions=(str(good), str(bad)))
    assert "dog" in texts(found, "u")
    assert len(found.broken) == 1
    assert "b.csv.gz" in found.broken[0]
    assert found.report["sources"]["unigrams"]["broken"] == found.broken


def test_coverage():
    told = coverage(["dog", "Cat", " dog ", "", "emu"], ["dog", "cat"])
    assert told == {
        "names": 3, "found": 1, "found_in_lower_case": 1, "missing": ["Cat", "emu"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"language": ""},
        {"language": "e n"},
        {"unigram_count": 0},
        {"unigram_share": 0.0},
        {"max_titles": -1},
        {"bigram_pmi": math.nan},
    ],
)
def test_options_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MetadataOptions(**wrong)
