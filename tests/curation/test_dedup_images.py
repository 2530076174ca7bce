from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from annotary.curation import _dedup_against, _dedup_groups
from annotary.curation.dedup import DedupOptions, check_dedup, dedup
from annotary.curation.looks import Look, LooksStep, PictureOptions, looks_batch
from annotary.curation.steps import StepOptions, read_report
from annotary.curation.tables import PartWriter, Rows, find_parts
from annotary.errors import NothingToDo, UsageError
from tests.curation.test_dedup import listed, read
from tests.curation.test_looks import jpeg, photo

ONE = StepOptions(workers=1)


def digest(number: int) -> bytes:
    return number.to_bytes(32, "little")


class Known(LooksStep):
    """Gives looks that the table itself tells."""

    def run(self, part: Any, target: Path) -> Any:
        from annotary.curation.steps import Tally

        tally = Tally()
        with PartWriter(target) as writer:
            for batch in Rows(part).batches():
                looks = [Look(*json.loads(cell)) for cell in batch.column("look").to_pylist()]
                told = [one._replace(sha256=one.sha256 and digest(one.sha256)) for one in looks]  # type: ignore[arg-type]
                writer.write(looks_batch(told))
            tally.rows_in = tally.rows_out = writer.rows
        return tally


def is_near(one: Look, other: Look, way: str, distance: int) -> float | None:
    """How far two images are from each other; None where they are not near."""
    if way == "exact":
        return 0.0 if one.sha256 is not None and one.sha256 == other.sha256 else None
    if one.phash is None or other.phash is None:
        return None
    known = [look.chroma for look in (one, other) if look.chroma is not None]
    if len(known) == 2 and min(known) <= 6 and max(known) >= 24:
        return None
    far = (one.phash ^ other.phash).bit_count()
    return far if far <= distance else None


def naive(
    looks: Sequence[Look], ways: Sequence[str], distance: int
) -> dict[int, tuple[str, int, float]]:
    """Images from the best to the worst: which go, by which way, for which, and how far it is."""
    order = sorted(
        range(len(looks)), key=lambda i: (-(looks[i].width or 0) * (looks[i].height or 0), i)
    )
    kept: list[int] = []
    goes = {}
    for i in order:
        for way in ways:
            near = [
                (far, rank, j)
                for rank, j in enumerate(kept)
                if (far := is_near(looks[i], looks[j], way, distance)) is not None
            ]
            if near:
                far, _, j = min(near)
                goes[i] = (way, j, far)
                break
        else:
            kept.append(i)
    return goes


def table_of(folder: Path, looks: Sequence[Look], parts: int) -> None:
    folder.mkdir(parents=True)
    for number in range(parts):
        start, end = len(looks) * number // parts, len(looks) * (number + 1) // parts
        table = pa.table(
            {
                "id": pa.array([str(i) for i in range(start, end)], pa.string()),
                "image": pa.array(["none"] * (end - start), pa.string()),
                "look": pa.array([json.dumps(look) for look in looks[start:end]], pa.string()),
            }
        )
        parquet.write_table(table, folder / f"{number:03d}.parquet")


# Hashes around a few centres, so that chains are likely.
hashes = st.tuples(
    st.sampled_from([0, 2**64 - 1, 0x123456789ABCDEF0]), st.sets(st.integers(0, 12), max_size=4)
).map(lambda found: found[0] ^ sum(1 << bit * 5 for bit in found[1]))
looks = st.builds(
    Look,
    sha256=st.none() | st.integers(1, 6),
    phash=st.none() | hashes,
    chroma=st.sampled_from([None, 0, 6, 7, 15, 23, 24, 200]),
    width=st.none() | st.integers(1, 3),
    height=st.integers(1, 2),
    **dict.fromkeys(("size", "sharpness", "brightness", "contrast", "error"), st.none()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    looks=st.lists(looks, max_size=25),
    ways=st.sampled_from([["phash"], ["exact"], ["exact", "phash"], ["phash", "exact"]]),
    distance=st.sampled_from([0, 2, 3, 6]),
    parts=st.sampled_from([1, 3]),
    size=st.sampled_from([3, 1000]),
)
def test_same_as_every_pair(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    looks: list[Look],
    ways: list[str],
    distance: int,
    parts: int,
    size: int,
) -> None:
    monkeypatch.setattr(_dedup_groups, "BUCKET_ROWS", size)
    monkeypatch.setattr(_dedup_groups, "_ROWS_OF_FILE", 0)
    work = tmp_path / str(time.monotonic_ns())
    table_of(work / "in", looks, parts)
    options = DedupOptions(by=",".join(ways), distance=distance)
    dedup([work / "in"], work / "out", options, ONE, looks=Known())
    goes = naive(looks, ways, distance)
    found = {
        int(row["id"]): (row["by"], int(row["of_id"]), row["distance"])
        for row in listed(work / "out")
    }
    assert found == goes
    stays = [str(i) for i in range(len(looks)) if i not in goes]
    assert [row["id"] for row in read(work / "out")] == stays


def test_a_way_after_another_stage(tmp_path: Path) -> None:
    """Texts first: what they let go is no longer there for pictures, and the other way round."""
    looks = [Look(sha256=n, phash=n, width=1, height=1) for n in (1, 2, 2, 3)]  # type: ignore[arg-type]
    table_of(tmp_path / "in", looks, 1)
    path = tmp_path / "in" / "000.parquet"
    table = parquet.read_table(path).append_column("text", pa.array(["a", "a", "b", "b"]))
    parquet.write_table(table, path)
    for by, stays in (("text,exact", ["0", "2"]), ("exact,text", ["0", "3"])):
        dedup([tmp_path / "in"], tmp_path / by, DedupOptions(by=by), ONE, looks=Known())
        assert [row["id"] for row in read(tmp_path / by)] == stays


def pictures(folder: Path) -> Path:
    """Photos, copies of them, and what is no picture."""
    folder.mkdir()
    one, two, three = (photo(seed) for seed in (1, 2, 3))
    files = {
        "one-small.jpg": jpeg(one.resize((160, 120))),
        "one.jpg": jpeg(one),
        "one-again.jpg": jpeg(one),
        "one-rough.jpg": jpeg(one, quality=30),
        "two.jpg": jpeg(two),
        "two-grey.jpg": jpeg(two.convert("L")),
        "three.jpg": jpeg(three),
        "broken.jpg": jpeg(three)[:300],
        "broken-again.jpg": jpeg(three)[:300],
        "text.jpg": b"no picture",
        "white.png": flat((255, 255, 255)),
        "black.png": flat((0, 0, 0)),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def flat(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def pairs(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [{"image": name, "text": f"text {i}"} for i, name in enumerate(names)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return folder


ALL = [
    "one-small.jpg", "one.jpg", "one-again.jpg", "one-rough.jpg", "two.jpg", "two-grey.jpg", "three.jpg",
    "broken.jpg", "broken-again.jpg", "text.jpg", "white.png", "black.png", "missing.jpg",
]  # fmt: skip


def looking(folder: Path) -> LooksStep:
    return LooksStep(pictures=PictureOptions(images=folder))


def test_real_pictures(tmp_path: Path) -> None:
    where = looking(pictures(tmp_path / "photos"))
    pairs(tmp_path / "in", ALL)
    options = DedupOptions(by="exact,phash")
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE, looks=where)
    why = {row["id"]: (row["by"], row["of_id"]) for row in listed(tmp_path / "out")}
    assert why == {
        "one-small.jpg": ("phash", "one.jpg"),
        "one-again.jpg": ("exact", "one.jpg"),
        "one-rough.jpg": ("phash", "one.jpg"),
    }
    assert [row["image"] for row in read(tmp_path / "out")] == [
        name for name in ALL if name not in why
    ]
    assert result.total.dropped == {"near image (phash)": 2, "duplicate image (exact)": 1}
    assert result.total.beside["unreadable_images"] == 4
    told = {failure.image: failure.message for failure in result.total.failures}
    assert sorted(told) == [f"{tmp_path / 'in' / 'pairs.parquet'}/{row}" for row in (12, 7, 8, 9)]
    (near,) = (row for row in listed(tmp_path / "out") if row["id"] == "one-small.jpg")
    assert near["why"] == f"near image (phash, distance {int(near['distance'])})"


def test_measures_are_kept_for_other_steps(tmp_path: Path) -> None:
    where = looking(pictures(tmp_path / "photos"))
    pairs(tmp_path / "in", ["one.jpg", "two.jpg", "one-again.jpg"])
    shared = tmp_path / "looks"
    for by in ("exact", "phash"):
        options = DedupOptions(by=by)
        dedup([tmp_path / "in"], tmp_path / by, options, ONE, looks=where, looks_folder=shared)
        assert [row["image"] for row in read(tmp_path / by)] == ["one.jpg", "two.jpg"]
    written = {path: path.stat().st_mtime_ns for path in shared.glob("*.parquet")}
    dedup(
        [tmp_path / "in"],
        tmp_path / "a",
        DedupOptions(by="exact"),
        ONE,
        looks=where,
        looks_folder=shared,
    )
    assert {path: path.stat().st_mtime_ns for path in shared.glob("*.parquet")} == written


def test_images_of_evaluation_sets(tmp_path: Path) -> None:
    """A photo and its copies go, also those without colours; what cannot be read stays."""
    where = looking(pictures(tmp_path / "photos"))
    test = tmp_path / "test"
    test.mkdir()
    (test / "held out.jpg").write_bytes(jpeg(photo(1).resize((200, 150)), quality=80))
    (test / "other.jpg").write_bytes(jpeg(photo(2)))
    (test / "broken.jpg").write_bytes(b"no picture")
    pairs(tmp_path / "in", ALL)
    options = DedupOptions(against=("test",))
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE, looks=where)
    gone = {row["id"]: row for row in listed(tmp_path / "out")}
    assert sorted(gone) == [
        "one-again.jpg", "one-rough.jpg", "one-small.jpg", "one.jpg", "two-grey.jpg", "two.jpg",
    ]  # fmt: skip
    assert result.total.dropped == {"in evaluation set test": 6}
    report = read_report(tmp_path / "out")
    assert (report["evaluation_images"], report["evaluation_images_unreadable"]) == (3, 1)
    assert gone["two.jpg"]["by"] == "exact"
    assert gone["two.jpg"]["why"] == "in evaluation set test (same bytes)"
    assert gone["one.jpg"]["by"] == "phash"
    assert gone["one.jpg"]["of_evaluation"] == str(test / "held out.jpg")
    assert gone["one.jpg"]["why"].startswith("in evaluation set test (distance ")
    assert gone["one.jpg"]["of_table"] is None
    again = dedup([tmp_path / "in"], tmp_path / "out", options, ONE, looks=where)
    assert again.done_before == 1
    (test / "third.jpg").write_bytes(
        jpeg(photo(3))
    )  # the set has grown: what was written is written again
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE, looks=where)
    assert result.total.dropped == {"in evaluation set test": 7}
    assert not {row["image"] for row in read(tmp_path / "out")} & {*gone, "three.jpg"}


def test_evaluation_sets_that_are_tables(tmp_path: Path) -> None:
    where = looking(pictures(tmp_path / "photos"))
    pairs(tmp_path / "in", ALL)
    pairs(tmp_path / "test", ["two.jpg"])
    parquet.write_table(
        pa.table({"image": [jpeg(photo(3).resize((128, 96)))]}), tmp_path / "held-out.parquet"
    )
    options = DedupOptions(against=("test", "held-out.parquet"), by="exact,phash")
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE, looks=where)
    assert result.total.dropped == {
        "in evaluation set test": 2,
        "in evaluation set held-out.parquet": 1,
        "near image (phash)": 2,
        "duplicate image (exact)": 1,
    }
    of = {row["id"]: row["of_evaluation"] for row in listed(tmp_path / "out")}
    assert of["three.jpg"] == str(tmp_path / "held-out.parquet/0")
    assert of["two-grey.jpg"] == str(tmp_path / "test/pairs.parquet/0")


def test_an_evaluation_set_that_is_none(tmp_path: Path) -> None:
    pairs(tmp_path / "in", ["a.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToDo, match="neither an image nor a table in empty"):
        dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(against=("empty",)), ONE)
    write_broken = tmp_path / "test.parquet"
    write_broken.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"\(--against test.parquet\)"):
        dedup([tmp_path / "in"], tmp_path / "broken", DedupOptions(against=("test.parquet",)), ONE)
    with pytest.raises(UsageError, match="no such file or folder: 'nowhere'"):
        dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(against=("nowhere",)), ONE)
    assert not (tmp_path / "out").exists()


@settings(max_examples=30)
@given(
    own=st.lists(looks, max_size=20),
    known=st.lists(looks, max_size=8),
    distance=st.sampled_from([0, 2, 5]),
    block=st.sampled_from([1, 1000]),
)
def test_leaks_as_every_pair_has_them(
    tmp_path_factory: pytest.TempPathFactory,
    own: list[Look],
    known: list[Look],
    distance: int,
    block: int,
) -> None:
    work = tmp_path_factory.mktemp("leaks")
    table_of(work / "in", own, 2)
    table_of(work / "test", known, 1)
    expected = {}
    for i, one in enumerate(own):
        same = [
            j for j, two in enumerate(known) if one.sha256 is not None and one.sha256 == two.sha256
        ]
        near = sorted(
            ((one.phash ^ two.phash).bit_count(), j)
            for j, two in enumerate(known)
            if one.phash is not None and two.phash is not None
        )
        if same:
            expected[i] = ("exact", same[0], 0)
        elif near and near[0][0] <= distance:
            expected[i] = ("phash", near[0][1], near[0][0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dedup_against, "_BLOCK", block)
        options = DedupOptions(against=(str(work / "test"),), distance=distance)
        dedup([work / "in"], work / "out", options, ONE, looks=Known())
    found = {
        int(row["id"]): (row["by"], int(row["of_evaluation"].rpartition("/")[2]), row["distance"])
        for row in listed(work / "out")
    }
    assert found == expected


def vector_table(folder: Path, vectors: Sequence[Any], parts: int = 1) -> None:
    folder.mkdir()
    for number in range(parts):
        start, end = len(vectors) * number // parts, len(vectors) * (number + 1) // parts
        table = pa.table(
            {
                "id": [str(i) for i in range(start, end)],
                "vector": pa.array(vectors[start:end], pa.list_(pa.float32())),
            }
        )
        parquet.write_table(table, folder / f"{number}.parquet")


def test_vectors_of_a_column(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 16))
    vectors: list[Any] = []
    for i in range(120):
        vector = centres[i % 12] + 0.15 * rng.normal(size=16)
        vectors.append((vector * rng.uniform(0.1, 9)).tolist() if i % 10 else None)
    vectors += [vectors[5], [0.0] * 16, vectors[7], [float("nan")] * 16, vectors[5]]
    vector_table(tmp_path / "in", vectors, 3)
    options = DedupOptions(by="embedding", vector_column="vector", cosine=0.97)
    dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
    kept: list[int] = []
    expected: dict[int, int] = {}
    unit = [
        None if v is None else np.array(v, np.float32) / np.linalg.norm(v) if any(v) else None
        for v in vectors
    ]
    for i, vector in enumerate(unit):
        if vector is None or not np.isfinite(vector).all():
            continue
        likeness = [(float(vector @ unit[j]), -j) for j in kept]  # type: ignore[operator]
        best = max(likeness, default=(0.0, 0))
        assert abs(best[0] - 0.97) > 5e-6
        if best[0] >= 0.97:
            expected[i] = -best[1]
        else:
            kept.append(i)
    found = {int(row["id"]): int(row["of_id"]) for row in listed(tmp_path / "out")}
    assert len(expected) > 20
    assert found == expected
    assert "near image (embedding, cosine 1.000)" in {
        row["why"] for row in listed(tmp_path / "out")
    }


def test_vectors_of_different_lengths(tmp_path: Path) -> None:
    vector_table(tmp_path / "in", [[1.0, 0.0], [1.0, 0.0, 0.0]], 2)
    options = DedupOptions(by="embedding", vector_column="vector")
    with pytest.raises(UsageError, match=r"vectors of 2 and of 3 numbers"):
        dedup([tmp_path / "in"], tmp_path / "out", options, ONE)


def test_vectors_of_a_model(tmp_path: Path) -> None:
    """The model of the package: copies of pictures that were compressed again."""
    where = tmp_path / "photos"
    pictures(where)
    (where / "three-small.jpg").write_bytes(jpeg(photo(3).resize((300, 225))))
    (where / "one-fine.jpg").write_bytes(jpeg(photo(1), quality=95))
    pairs(tmp_path / "in", ["one-fine.jpg", "broken.jpg", "one.jpg", "three-small.jpg"])
    test = tmp_path / "test"
    test.mkdir()
    (test / "three.jpg").write_bytes(jpeg(photo(3)))
    options = DedupOptions(
        by="embedding", model="starter", cosine=0.99, against=("test",), distance=0
    )
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE, looks=looking(where))
    gone = {row["id"]: row for row in listed(tmp_path / "out")}
    assert {name: row["of_id"] for name, row in gone.items()} == {
        "one.jpg": "one-fine.jpg",
        "three-small.jpg": None,
    }
    assert gone["one.jpg"]["by"] == "embedding"
    assert 0 < gone["one.jpg"]["distance"] <= 0.01
    assert gone["three-small.jpg"]["of_evaluation"] == str(test / "three.jpg")
    assert result.total.dropped == {"near image (embedding)": 1, "in evaluation set test": 1}
    assert result.total.beside["unreadable_images"] == 1
    stays = ["one-fine.jpg", "broken.jpg"]
    assert [row["image"] for row in read(tmp_path / "out")] == stays


def test_a_model_that_is_none(tmp_path: Path) -> None:
    pairs(tmp_path / "in", ["one.jpg"])
    options = DedupOptions(by="embedding", model="no-such-model")
    with pytest.raises(UsageError, match="no-such-model"):
        dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
    with pytest.raises(UsageError, match="no-such-model"):
        check_dedup(find_parts([tmp_path / "in"]), options)
    assert not (tmp_path / "out").exists()


def test_vectors_of_evaluation_sets(tmp_path: Path) -> None:
    """Tables of which both have the column."""
    where = looking(pictures(tmp_path / "photos"))
    for name, images, vectors in (
        ("in", ["one.jpg", "two.jpg", "three.jpg"], [[1.0, 0.0], [0.0, 2.0], [-1.0, 0.5]]),
        ("test", ["white.png"], [[0.1, 3.0]]),
    ):
        (tmp_path / name).mkdir()
        table = pa.table({"image": images, "vector": vectors})
        parquet.write_table(table, tmp_path / name / "a.parquet")
    options = DedupOptions(by="embedding", vector_column="vector", against=("test",))
    dedup([tmp_path / "in"], tmp_path / "out", options, ONE, looks=where)
    (gone,) = listed(tmp_path / "out")
    assert (gone["id"], gone["by"]) == ("two.jpg", "embedding")
    assert gone["of_evaluation"] == str(tmp_path / "test" / "a.parquet/0")
