"""Reading and searching a catalogue."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from annotary.catalog import Catalog, Note, is_catalog
from annotary.catalog._columns import recovered, stored
from annotary.catalog._nearest import among
from annotary.catalog.query import SearchOptions, Term, combined
from annotary.errors import OutputError, UsageError

pytest.importorskip("lancedb")

NOTE = Note({"embedding": {"model": "small@1.0", "name": "small", "weights": "1"}})


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def row(number: int, vector=None, **columns):
    return {
        "id": number,
        "image": f"{number}.png",
        "path": "",
        "width": number,
        "height": 1,
        "sources": "{}",
        **({} if vector is None else {"embedding": vector}),
        **columns,
    }


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 32))
    return unit(centres[generator.integers(0, 40, 6000)] + 0.6 * generator.normal(size=(6000, 32)))


@pytest.fixture(scope="module")
def large(tmp_path_factory, vectors):
    """A catalogue of 6,000 vectors in several pieces, with an index; the last hundred came after it was made."""
    path = tmp_path_factory.mktemp("large") / "c"
    catalog = Catalog.create(path, NOTE, 32)
    for start in range(0, 5900, 1000):
        stop = min(start + 1000, 5900)
        catalog.append([row(i, vectors[i]) for i in range(start, stop)])
    catalog.build_index()
    catalog.append([row(i, vectors[i]) for i in range(5900, 6000)])
    catalog.mark_deleted([3, 5950])
    return Catalog.open(path)


def expected(vectors, query, top, allowed=None):
    scores = vectors @ query
    order = [i for i in np.argsort(-scores, kind="stable").tolist() if i not in (3, 5950)]
    return [i for i in order if allowed is None or allowed(i)][:top]


def test_searching_all_gives_what_numpy_gives(large, vectors):
    for number in (0, 17, 5990):
        found = large.search(vectors[number], 25, is_exact=True)
        assert [one for one, _ in found] == expected(vectors, vectors[number], 25)
        scores = [score for _, score in found]
        assert scores == pytest.approx((vectors @ vectors[number])[[i for i, _ in found]], abs=2e-6)


def test_searching_by_the_index_finds_the_same(large, vectors):
    assert large.has_index
    hits = 0
    for number in range(0, 6000, 200):
        found = large.search(vectors[number], 10)
        wanted = set(expected(vectors, vectors[number], 10))
        hits += len(wanted & {one for one, _ in found})
        for one, score in found:
            assert score == pytest.approx(float(vectors[one] @ vectors[number]), abs=2e-6)
    assert hits >= 0.95 * 300


def test_rows_that_came_after_the_index_are_found(large, vectors):
    assert large.search(vectors[5990], 1)[0][0] == 5990


def test_the_index_goes_on_with_the_table(tmp_path, vectors):
    catalog = Catalog.create(tmp_path / "c", NOTE, 32)
    catalog.append([row(i, vectors[i]) for i in range(5000)])
    catalog.build_index()
    catalog.append([row(i, vectors[i]) for i in range(5000, 6000)])
    catalog.replace([row(7, vectors[5999])])
    catalog.mark_deleted([5998])
    catalog.compact()
    again = Catalog.open(tmp_path / "c")
    assert {one for one, _ in again.search(vectors[5999], 2)} == {7, 5999}
    assert again.search(vectors[7], 1)[0][0] != 7
    assert again.search(vectors[5998], 1)[0][0] != 5998
    assert again.search(vectors[5500], 1)[0][0] == 5500


def test_what_is_gone_is_not_found(large, vectors):
    for is_exact in (True, False):
        for gone in (3, 5950):
            found = large.search(vectors[gone], 10, is_exact=is_exact)
            assert gone not in [one for one, _ in found]


@pytest.mark.parametrize("is_exact", [True, False])
def test_conditions_are_kept_before_the_best_are_chosen(large, vectors, is_exact):
    found = large.search(vectors[100], 10, where="width < 50", is_exact=is_exact)
    wanted = expected(vectors, vectors[100], 10, lambda i: i < 50)
    assert [one for one, _ in found] == wanted
    cut = found[4][1]
    kept = large.search(vectors[100], 10, where="width < 50", threshold=cut, is_exact=is_exact)
    assert kept == found[:5]


def test_a_narrow_condition_is_looked_for_everywhere(large, vectors, monkeypatch):
    from annotary.catalog import _nearest

    monkeypatch.setattr(_nearest, "EXACT_UP_TO", 0)
    for condition, keep in (
        ("width IN (17, 4000, 5990)", lambda i: i in (17, 4000, 5990)),
        ("width % 3 = 0", lambda i: i % 3 == 0),
    ):
        found = large.search(vectors[100], 40, where=condition, nprobes=1)
        wanted = expected(vectors, vectors[100], 40, keep)
        assert len(found) == len(wanted)
        assert all(keep(one) for one, _ in found)
    few = large.search(vectors[100], 40, where="width IN (17, 4000, 5990)", nprobes=1)
    assert {one for one, _ in few} == {17, 4000, 5990}


def test_rows_are_streamed_and_fetched(large):
    batches = list(large.rows(["id", "width"], batch_size=500))
    assert max(batch.num_rows for batch in batches) <= 500
    ids = [one for batch in batches for one in batch["id"].to_pylist()]
    assert sorted(ids) == [i for i in range(6000) if i not in (3, 5950)]
    assert len(large) == large.count() == 5998
    assert large.count(with_deleted=True) == 6000
    assert large.count("width >= 5000") == 999
    table = large.fetch([9, 2, 10**9, 5], ["width"])
    assert table.to_pydict() == {"id": [9, 2, 5], "width": [9, 2, 5]}
    assert large.fetch([], ["width"]).num_rows == 0
    with pytest.raises(UsageError, match="No field named colour"):
        list(large.rows(["colour"]))


def test_vectors_of_another_length_are_refused(large):
    with pytest.raises(UsageError, match=r"vectors of 32 numbers, but got \[7\]"):
        large.search(np.ones(7, np.float32), 3)


def test_equal_images_are_found_in_the_order_of_their_ids(tmp_path):
    vector = unit(np.random.default_rng(1).normal(size=16))
    catalog = Catalog.create(tmp_path / "c", NOTE, 16)
    for start in (20, 0, 10):
        catalog.append([row(i, vector) for i in range(start, start + 7)])
    found = [one for one, _ in catalog.search(vector, 9)]
    assert found == [0, 1, 2, 3, 4, 5, 6, 10, 11]
    with pytest.raises(UsageError, match="an index needs 5,000 vectors or more"):
        catalog.build_index()


@given(
    st.lists(st.integers(-3, 3), min_size=0, max_size=60),
    st.integers(1, 12),
    st.integers(1, 20),
)
def test_the_best_of_a_stream_do_not_depend_on_how_it_is_cut(values, top, size):
    angles = np.array(values, np.float64)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ids = np.arange(len(values), dtype=np.int64)[::-1].copy()
    query = np.array([1.0, 0.0], np.float32)
    cut = [(ids[i : i + size], vectors[i : i + size]) for i in range(0, len(ids), size)]
    order = sorted(zip(ids.tolist(), np.round(vectors @ query, 6).tolist(), strict=True))
    order.sort(key=lambda pair: -pair[1])
    assert among(cut, query, top) == order[:top]


def test_images_without_vectors_are_no_hindrance(tmp_path):
    catalog = Catalog.create(tmp_path / "c", Note())
    catalog.append([row(0), row(1)])
    assert catalog.dimensions is None
    assert catalog.model is None
    with pytest.raises(UsageError, match="holds no vectors; add them with: annotary embed"):
        catalog.search(np.ones(3, np.float32), 1)
    catalog.add_vectors_column(3)
    catalog.append([row(2, np.array([1, 0, 0], np.float32))])
    axis = np.array([1, 0, 0], np.float32)
    assert catalog.search(axis, 5) == [(2, 1.0)]
    catalog.append([row(3), row(4, axis), row(5)])
    catalog.append([row(6)])
    catalog.replace([row(0, axis), row(2)])
    assert catalog.search(axis, 5) == [(0, 1.0), (4, 1.0)]
    catalog.replace([row(0), row(4)])
    assert catalog.search(axis, 5) == []
    assert len(catalog) == 7


def test_what_is_no_catalogue(tmp_path):
    with pytest.raises(UsageError, match="no catalogue in"):
        Catalog.open(tmp_path / "missing")
    with pytest.raises(UsageError, match="is no catalogue"):
        Catalog.open(tmp_path)
    (tmp_path / "catalog.json").write_text('{"something": "else"}')
    with pytest.raises(OutputError, match="is not one of annotary's"):
        Catalog.open(tmp_path)
    assert not is_catalog(tmp_path / "missing")


def test_a_catalogue_whose_table_is_gone_or_of_another_version(tmp_path, monkeypatch):
    import shutil

    from annotary.catalog import _columns

    Catalog.create(tmp_path / "c", NOTE)
    assert is_catalog(tmp_path / "c")
    with pytest.raises(UsageError, match="is a catalogue already"):
        Catalog.create(tmp_path / "c", NOTE)
    shutil.rmtree(tmp_path / "c" / "images.lance")
    with pytest.raises(OutputError, match="has no table"):
        Catalog.open(tmp_path / "c")
    monkeypatch.setattr(_columns, "VERSION", 99)
    Catalog.create(tmp_path / "d", NOTE)
    with pytest.raises(OutputError, match="another version of annotary"):
        Catalog.open(tmp_path / "d")


@given(st.binary(min_size=1, max_size=20))
def test_names_of_any_bytes_come_back(name):
    text = name.decode("utf-8", "surrogateescape")
    held = stored(text)
    held.encode("utf-8")
    if "\\udc" not in text:
        assert recovered(held) == text


def test_the_arithmetic_of_queries():
    one, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert combined([Term(one, 3.0)]).tolist() == [1, 0]
    assert combined([Term(one, 1.0), Term(other, 1.0)]) == pytest.approx([0.5**0.5, 0.5**0.5])
    assert combined([Term(one, 0.6), Term(other, -0.8)]) == pytest.approx([0.6, -0.8])
    with pytest.raises(UsageError, match="cancel"):
        combined([Term(one, 1.0), Term(one, -1.0)])
    with pytest.raises(UsageError, match="cancel"):
        combined([])


def test_options_out_of_range():
    for options in ({"top": 0}, {"threshold": 1.5}, {"minus_weight": -1}, {"where": " "}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
            SearchOptions(**options)
