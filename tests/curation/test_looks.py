from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from pyarrow import parquet

from annotary.curation.looks import (
    WORKING_SIDE,
    Look,
    Looker,
    LooksStep,
    PictureOptions,
    look_at,
    looks_batch,
    read_looks,
    sharpness,
    working_grey,
)
from annotary.curation.steps import StepOptions, run_step
from annotary.curation.tables import BrokenPart, find_parts
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.records import Item
from annotary.sources import SourceOptions
from annotary.tasks.perceptual_hash import distance


def photo(seed: int = 0, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Shapes with sharp edges on a background that changes slowly."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (6, 8, 3)).astype(np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).copy()
    for _ in range(40):
        x, y = int(rng.integers(0, size[0] - 8)), int(rng.integers(0, size[1] - 8))
        picture[y : y + size[1] // 8, x : x + size[0] // 10] = rng.integers(0, 256, 3)
    return Image.fromarray(picture)


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_look_of_a_photo() -> None:
    data = jpeg(photo())
    look = look_at(data)
    assert look.sha256 == hashlib.sha256(data).digest()
    assert look.size == len(data)
    assert (look.width, look.height) == (320, 240)
    assert look.error is None
    grey = np.asarray(photo().convert("L"))
    assert look.brightness == pytest.approx(grey.mean(), abs=1)
    assert look.contrast == pytest.approx(grey.std(), abs=2)
    assert look.chroma is not None
    assert look.chroma > 50
    assert look.phash is not None


def test_the_hash_is_that_of_annotary_duplicates() -> None:
    from annotary import images, preprocess
    from annotary.tasks.perceptual_hash import SPEC, perceptual_hashes

    data = jpeg(photo(1, (900, 700)))
    found = look_at(data).phash
    decoded = images.decode(data)
    small = preprocess.fit(decoded.pixels, SPEC)[None]
    assert found is not None
    assert distance(found, int(perceptual_hashes(small).values[0])) <= 2


def test_size_is_that_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    photo().save(file, "JPEG", exif=exif)
    look = look_at(file.getvalue())
    assert (look.width, look.height) == (240, 320)


def test_what_cannot_be_decoded_keeps_its_digest() -> None:
    look = look_at(b"\xff\xd8\xff no picture")
    assert look.sha256 == hashlib.sha256(b"\xff\xd8\xff no picture").digest()
    assert look.error
    assert look.width is look.sharpness is look.phash is None


def test_a_flat_picture_has_no_hash_and_no_sharpness() -> None:
    look = look_at(jpeg(Image.new("RGB", (300, 300), (200, 100, 50))))
    assert look.phash is None
    assert look.sharpness == look.contrast == 0.0
    assert look.chroma is not None
    assert look.chroma > 100


@pytest.mark.parametrize("size", [(512, 384), (1024, 768), (2048, 1536)])
def test_sharpness_does_not_depend_on_resolution(size: tuple[int, int]) -> None:
    original = photo(3, (4096 // 2, 3072 // 2))
    known = look_at(jpeg(original)).sharpness
    found = look_at(jpeg(original.resize(size, Image.Resampling.LANCZOS))).sharpness
    assert known is not None
    assert found == pytest.approx(known, rel=0.15)


def test_measures_of_a_reduced_decode_are_those_of_a_full_one() -> None:
    data = jpeg(photo(4, (2400, 1800)))
    reduced, full = look_at(data), look_at(data, DecodeOptions(reduce=False))
    assert (reduced.width, reduced.height) == (full.width, full.height)
    assert reduced.sharpness == pytest.approx(full.sharpness, rel=0.1)
    assert reduced.brightness == pytest.approx(full.brightness, abs=0.5)
    assert reduced.contrast == pytest.approx(full.contrast, abs=0.5)


def test_blur_lowers_sharpness_and_a_sharp_subject_keeps_it() -> None:
    sharp = photo(5, (512, 384))
    soft = sharp.filter(ImageFilter.GaussianBlur(5))
    with_subject = soft.copy()
    with_subject.paste(sharp.crop((128, 96, 256, 192)), (128, 96))
    measured = [look_at(jpeg(one)).sharpness for one in (sharp, soft, with_subject)]
    assert all(value is not None for value in measured)
    assert measured[1] < measured[0] / 20
    assert measured[2] > measured[1] * 10


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_sharpness_of_any_size(height: int, width: int, seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    found = sharpness(grey)
    assert 0.0 <= found <= (8 * 255) ** 2
    assert sharpness(grey[:, ::-1]) == pytest.approx(found) or width % 4 != 2
    if min(height, width) < 3:
        assert found == 0.0


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_working_size(width: int, height: int) -> None:
    if width * height > 2**21:
        width = max(1, 2**21 // height)
    grey = working_grey(np.zeros((height, width, 3), np.uint8))
    assert max(grey.shape) == min(WORKING_SIDE, max(width, height))
    scale = max(grey.shape) / max(width, height)
    assert abs(grey.shape[0] - height * scale) <= 1
    assert abs(grey.shape[1] - width * scale) <= 1


def written(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def looks_of(table: Path, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    step = LooksStep(**options)
    result = run_step(step, find_parts([table]), Path("looks"), StepOptions(workers=1))
    found = [
        row
        for file in sorted(Path("looks").glob("*.parquet"))
        for batch in read_looks(file)
        for row in batch.to_pylist()
    ]
    return found, result


def test_looks_of_a_table_stand_in_the_order_of_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        photo(number).save(folder / "images" / f"{number}.jpg")
    (folder / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    paths = ["images/2.jpg", "images/0.jpg", "images/gone.jpg", "images/broken.jpg", None]
    rows = [{"image": path, "text": "a"} for path in [*paths, "images/0.jpg"]]
    table = written(folder / "pairs.parquet", rows)
    found, result = looks_of(table)
    assert len(found) == len(rows)
    assert found[0]["sha256"] == hashlib.sha256((folder / "images/2.jpg").read_bytes()).digest()
    assert found[1] == found[5]
    assert [row["error"] is None for row in found] == [True, True, False, False, False, True]
    assert found[3]["sha256"] is not None
    assert found[2]["sha256"] is None
    assert result.total.rows_in == result.total.rows_out == 6
    assert result.total.beside["unreadable_images"] == 3
    assert len(result.total.failures) == 3
    assert result.total.failures[2].image.endswith("pairs.parquet/4")


def test_encoded_images_and_structs(tmp_path: Path) -> None:
    data = [jpeg(photo(number)) for number in range(3)]
    plain = written(tmp_path / "plain.parquet", [{"image_bytes": one} for one in data])
    found, _ = looks_of(plain)
    assert [row["sha256"] for row in found] == [hashlib.sha256(one).digest() for one in data]
    structs = [{"image": {"bytes": one, "path": f"{n}.jpg"}} for n, one in enumerate(data)]
    step = run_step(
        LooksStep(), find_parts([written(tmp_path / "s.parquet", structs)]), Path("of-structs")
    )
    (batch,) = read_looks(step.folder / "s.parquet")
    assert batch.column("sha256").to_pylist() == [row["sha256"] for row in found]


def test_paths_start_where_images_says(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    photo().save(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "pairs.csv"
    table.write_text("image,text\na.jpg,one\n")
    found, _ = looks_of(table, pictures=PictureOptions(images=tmp_path / "elsewhere"))
    assert found[0]["error"] is None


def tar_of(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_members_of_tars(tmp_path: Path, suffix: str) -> None:
    data = [jpeg(photo(number)) for number in range(4)]
    members = [
        (f"{n}.{end}", one if end == "jpg" else b"text")
        for n, one in enumerate(data)
        for end in ("jpg", "txt")
    ]
    tar = tar_of(tmp_path / f"shard{suffix}", members, "w:gz" if suffix.endswith("gz") else "w")
    digests = [hashlib.sha256(one).digest() for one in data]
    found, _ = looks_of(tar)
    assert [row["sha256"] for row in found] == digests
    # A table that was made of the tar names its members, maybe in another order and more than once.
    order = [3, 0, 0, 2, 1]
    rows = [{"image": f"{tar}/{n}.jpg"} for n in order] + [{"image": f"{tar}/9.jpg"}]
    table = written(tmp_path / "made.parquet", rows)
    result = run_step(LooksStep(), find_parts([table]), Path("of-made"))
    (batch,) = read_looks(result.folder / "made.parquet")
    assert batch.column("sha256").to_pylist() == [*(digests[n] for n in order), None]
    assert "no such member" in batch.column("error")[5].as_py()


def test_a_folder_may_be_called_like_a_tar(tmp_path: Path) -> None:
    folder = tmp_path / "old.tar"
    folder.mkdir()
    photo().save(folder / "a.jpg")
    tar_of(folder / "in.tar", [("b.jpg", jpeg(photo(1)))])
    rows = [{"image": f"{folder}/a.jpg"}, {"image": f"{folder}/in.tar/b.jpg"}]
    found, _ = looks_of(written(tmp_path / "t.parquet", rows))
    assert [row["error"] for row in found] == [None, None]


def test_a_tar_that_breaks_off_is_told_by_what_lies_behind(tmp_path: Path) -> None:
    data = [jpeg(photo(number)) for number in range(3)]
    tar = tar_of(tmp_path / "shard.tar", [(f"{n}.jpg", one) for n, one in enumerate(data)])
    os.truncate(tar, 512 + len(data[0]) + 1500)
    table = written(tmp_path / "made.parquet", [{"image": f"{tar}/{n}.jpg"} for n in range(3)])
    found, _ = looks_of(table)
    assert found[0]["error"] is None
    assert "damaged" in found[2]["error"]


def test_looks_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(BrokenPart, match="not measured"):
        list(read_looks(tmp_path / "shard.parquet"))


def test_addresses_are_fetched_and_told_in_order(tmp_path: Path, server: Any) -> None:
    names = [server(f"{n}.jpg", jpeg(photo(n))) for n in range(3)]
    lone = server("gone.jpg", None)
    rows = [{"url": name} for name in [names[2], names[0], lone, names[1], names[0]]]
    found, result = looks_of(
        written(tmp_path / "web.parquet", rows), source=SourceOptions(retries=0, timeout=5)
    )
    known = [hashlib.sha256(jpeg(photo(n))).digest() for n in range(3)]
    assert [row["sha256"] for row in found] == [known[2], known[0], None, known[1], known[0]]
    assert "404" in found[2]["error"]
    assert result.total.beside["unreadable_images"] == 1


@pytest.fixture
def server() -> Any:
    """Serves what it is given on the loopback address."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    files: dict[str, bytes | None] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()

    def add(name: str, data: bytes | None) -> str:
        files[f"/{name}"] = data
        return f"http://127.0.0.1:{serving.server_port}/{name}"

    yield add
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    table = written(tmp_path / "pairs.parquet", [{"number": 1, "words": ["a"]}])
    with pytest.raises(UsageError, match="--image-column"):
        LooksStep().run(find_parts([table])[0], tmp_path / "out.parquet")
    named = LooksStep(source=SourceOptions(image_column="number"))
    with pytest.raises(UsageError, match="neither a path"):
        named.run(find_parts([table])[0], tmp_path / "out.parquet")


def test_a_table_without_rows_has_looks_without_rows(tmp_path: Path) -> None:
    schema = pa.schema([("image", pa.string())])
    found, result = looks_of(written(tmp_path / "none.parquet", [], schema))
    assert found == []
    assert result.total.rows_out == 0
    assert (Path("looks") / "none.parquet").exists()


def test_files_named_again_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "a.jpg")
    item = Item.from_path(tmp_path / "a.jpg")
    with Looker(SourceOptions(), DecodeOptions()) as looker:
        (_, first), *_ = looker.looks([item])
        (tmp_path / "a.jpg").unlink()
        (_, again), *_ = looker.looks([item])
    assert first == again
    assert again.error is None


def test_looks_come_back_from_their_table(tmp_path: Path) -> None:
    looks = [look_at(jpeg(photo())), Look(error="why"), Look()]
    batch = looks_batch(looks)
    assert Look(**batch.to_pylist()[1]) == looks[1]
    assert batch.to_pylist()[0]["phash"] == looks[0].phash
    assert looks_batch([]).num_rows == 0
