"""The published files of numbers come back as they were written, and what they say of means is found."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import UsageError
from annotary.evaluation import TagCounts
from annotary.evaluation.tagging_files import (
    ModelRates,
    TagRecord,
    counts_of,
    detailed_metrics_text,
    full_metrics_text,
    mean_rates,
    read_detailed_metrics,
    read_full_metrics,
    records_of,
)

HEAD = Path(__file__).parents[3] / "shared" / "data" / "joytag" / "full-metrics.head.txt"

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1
).filter(lambda name: name == name.strip())
COUNTS = st.integers(0, 40_000)
RECORDS = st.builds(TagRecord, NAMES, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)


@given(st.lists(RECORDS, min_size=1, max_size=8))
def test_records_come_back(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("files") / "full-metrics.txt"
    path.write_text(full_metrics_text(records), encoding="utf-8")
    assert read_full_metrics(path) == records


def test_a_record_looks_as_published(tmp_path):
    record = TagRecord("saber_(fate)", 1024, 9000, 36, 32719, 4, 9)
    assert full_metrics_text([record]) == (
        "Tag: saber_(fate) (1024) (cnt: 9000)\nPrecision: 0.9000\nRecall: 0.8000\nF1: 0.8471\n"
        "TP: 36, TN: 32719, FP: 4, FN: 9\n\n"
    )


@pytest.mark.skipif(not HEAD.exists(), reason="the published file is not here")
def test_the_published_file_is_written_as_it_is_read(tmp_path):
    text = HEAD.read_text()
    records = read_full_metrics(HEAD)
    assert len(records) >= 5
    assert records[0] == TagRecord("go-toubun_no_hanayome", 2335, 4900, 34, 32734, 0, 0)
    assert all(sum(one[3:]) == 32_768 for one in records)
    whole = full_metrics_text(records)
    assert text.startswith(whole)
    assert len(text) - len(whole) < 200  # a record at the end is cut off


def test_counts_and_their_means_survive(tmp_path):
    generator = np.random.default_rng(0)
    counts = TagCounts(12)
    counts.update(generator.random((300, 12)) < 0.3, generator.random((300, 12)) < 0.2)
    names = [f"tag_({i})" for i in range(12)]
    records = records_of(counts, names, range(100, 112), range(12))
    assert [one.f1 for one in records] == sorted((one.f1 for one in records), reverse=True)
    path = tmp_path / "full-metrics.txt"
    path.write_text(full_metrics_text(records))
    found = counts_of(read_full_metrics(path))
    for mean in ("macro", "micro", "weighted"):
        one, other = getattr(found, mean)(), getattr(counts, mean)()
        np.testing.assert_allclose(
            [one.precision, one.recall, one.f1], [other.precision, other.recall, other.f1]
        )
    rates = counts.rates()
    for record in records:
        tag = record.place - 100
        assert record.precision == pytest.approx(rates.precision[tag])
        assert record.recall == pytest.approx(rates.recall[tag])
        assert record.f1 == pytest.approx(rates.f1[tag])
        assert record.trained == tag


@pytest.mark.parametrize(
    "text",
    [
        "nonsense\n",
        "Tag: a (1)\nPrecision: 0.0000\nRecall: 0.0000\nF1: 0.0000\nTP: 0, TN: 1, FP: 0, FN: 0\n",
        "Tag: a (1) (cnt: 2)\nPrecision: x\nRecall: 0.0000\nF1: 0.0000\nTP: 0, TN: 1, FP: 0, FN: 0\n",
        "Tag: a (1) (cnt: 2)\nPrecision: 0.9000\nRecall: 0.0000\nF1: 0.0000\nTP: 0, TN: 1, FP: 0, FN: 0\n",
        "Tag: a (1) (cnt: 2)\nPrecision: 0.0000\nRecall: 0.0000\nF1: 0.0000\nTP: 0, TN: 1\n",
    ],
)
def test_something_else_is_refused(tmp_path, text):
    path = tmp_path / "full-metrics.txt"
    path.write_text("\n" + text)
    with pytest.raises(UsageError, match="line 2"):
        read_full_metrics(path)


def test_a_file_that_is_not_there_is_a_line(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_full_metrics(tmp_path / "none.txt")


def test_detailed_metrics_come_back_and_give_the_table(tmp_path):
    rates = {
        "1girl": {
            "SmilingWolf": ModelRates(0.97, 0.95, 0.96, 0.99),
            "JoyTag": ModelRates(0.9, 1.0, 2 * 0.9 / 1.9, 0.98),
        },
        "steins;gate: (x)": {
            "SmilingWolf": ModelRates(0.0, 0.0, 0.0, math.nan),
            "JoyTag": ModelRates(1e-07, 0.5, 0.25, 0.1),
        },
    }
    text = detailed_metrics_text(rates)
    assert (
        text.split("\n")[1] == "SmilingWolf         : Precision 0.97, Recall 0.95, F1 0.96, AP 0.99"
    )
    path = tmp_path / "detailed_metrics.txt"
    path.write_text(text)
    found = read_detailed_metrics(path)
    assert list(found) == list(rates)
    assert found["1girl"] == rates["1girl"]
    assert found["steins;gate: (x)"]["JoyTag"] == rates["steins;gate: (x)"]["JoyTag"]
    means = mean_rates(found)
    assert means["SmilingWolf"].precision == pytest.approx(0.485)
    assert means["SmilingWolf"].average_precision == pytest.approx(0.99)
    assert means["JoyTag"].f1 == pytest.approx((1.8 / 1.9 + 0.25) / 2)


@pytest.mark.parametrize(
    "text", ["tag\n", "tag\nJoyTag : Precision 1\n", "t\nA : Precision x, Recall 1, F1 1, AP 1\n"]
)
def test_other_details_are_refused(tmp_path, text):
    path = tmp_path / "detailed_metrics.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match="line 1"):
        read_detailed_metrics(path)
