"""Images with tags are found wherever they stand, with the categories that their source tells."""

from __future__ import annotations

import io
import json
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotary.errors import UsageError
from annotary.records import Annotation, Failure, Item, Tag, to_line
from annotary.training.dataset.posts import Post, PostOptions, read_posts, split_tags
from tests.training.dataset.making import encoded

PNG = encoded(np.zeros((4, 4, 3), np.uint8), "PNG")
MD5 = "0123456789abcdef0123456789abcdef"


def posts(place: Path | str, **options: object) -> list[Post]:
    return list(read_posts([str(place)], PostOptions(**options)))  # type: ignore[arg-type]


def names(post: Post) -> list[str]:
    return [name for name, _ in post.tags]


def image(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG)
    return path


def test_a_folder_with_sidecars(tmp_path):
    for name in ("a.png", "b.png", "in/c.png", "d.png", "e.png"):
        image(tmp_path, name)
    (tmp_path / "a.txt").write_text("red car, 2 \\(two\\),\n")
    (tmp_path / "b.png.txt").write_text("red\nblue car\n")
    record = Annotation("c.png", 4, 4, tags=(Tag("cat", 0.9, "animal"), Tag("dog", 0.5)))
    (tmp_path / "in/c.json").write_text(to_line(record))
    (tmp_path / "e.json").write_text("[1]")
    a, b, d, e, c = posts(tmp_path)
    assert [one.id for one in (a, b, c, d)] == ["a.png", "b.png", "in/c.png", "d.png"]
    assert names(a) == ["red car", "2 (two)"]
    assert names(b) == ["red", "blue car"]
    assert c.tags == (("cat", "animal"), ("dog", ""))
    assert d.tags == ()
    assert isinstance(e.item, Failure)
    assert "no JSON object" in e.item.message


def test_namespaces_of_hydrus_are_categories(tmp_path):
    image(tmp_path, "a.png")
    (tmp_path / "a.png.txt").write_text(
        "character:samus aran\nseries:metroid\ncreator:some one\nrating:safe\n:3\nre:zero\nmeta:\nhat\n"
    )
    expected = (
        ("samus aran", "character"),
        ("metroid", "copyright"),
        ("some one", "artist"),
        ("rating:safe", "rating"),
        (":3", ""),
        ("re:zero", ""),
        ("meta:", ""),
        ("hat", ""),
    )
    (one,) = posts(tmp_path)
    assert one.tags == expected
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"image": "a.png", "tags": ["character:samus aran", "hat"]}) + "\n"
    )
    (one,) = posts(tmp_path / "t.jsonl")
    assert one.tags == (("samus aran", "character"), ("hat", ""))


def test_texts_are_split_as_told():
    assert split_tags("a b, c\nd", "auto") == ["a b", "c", "d"]
    assert split_tags("a b, c\nd", "comma") == ["a b", "c d"]
    assert split_tags("a b, c\nd", "line") == ["a b, c", "d"]
    assert split_tags("a_(b)  c\n", "space") == ["a_(b)", "c"]


def test_tables_of_anybody_and_of_ours(tmp_path):
    image(tmp_path, "a.png")
    rows = [{"file": "a.png", "tags": ["x", "y"]}, {"file": "no.png", "tags": []}]
    lines = [json.dumps(row) for row in rows] + ["{broken"]
    (tmp_path / "index.jsonl").write_text("\n".join(lines))
    first, second, third = posts(tmp_path / "index.jsonl")
    assert (first.id, names(first), first.item.path) == ("a.png", ["x", "y"], tmp_path / "a.png")  # type: ignore[union-attr]
    assert isinstance(second.item, Failure)
    assert isinstance(third.item, Failure)
    assert "not JSON" in third.item.message

    record = Annotation("a.png", 4, 4, tags=(Tag("cat", 0.9, "animal"),))
    (tmp_path / "ours.jsonl").write_text(to_line(record) + "\n")
    assert posts(tmp_path / "ours.jsonl")[0].tags == (("cat", "animal"),)
    (tmp_path / "list.json").write_text(f"[{to_line(record)}]")
    assert posts(tmp_path / "list.json")[0].tags == (("cat", "animal"),)

    (tmp_path / "t.csv").write_text('image,words,tags\na.png,"p, q","r, s"\n')
    assert names(posts(tmp_path / "t.csv")[0]) == ["r", "s"]
    assert names(posts(tmp_path / "t.csv", tag_column="words")[0]) == ["p", "q"]
    with pytest.raises(UsageError, match=r"has no column 'no' \(--tag-column\)"):
        posts(tmp_path / "t.csv", tag_column="no")

    table = pa.table(
        {"image": [{"bytes": PNG, "path": "x.png"}], "tags": [[{"name": "n", "category": "c"}]]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (post,) = posts(tmp_path / "t.parquet")
    assert isinstance(post.item, Item)
    assert (post.item.data, post.tags) == (PNG, (("n", "c"),))


def test_posts_of_danbooru(tmp_path):
    image(tmp_path, f"original/01/{MD5}.png")
    image(tmp_path, "original/0345/12345.jpg")
    rows = [
        {
            "id": 0, "md5": MD5, "file_ext": "png", "rating": "s", "tag_string": "1girl miku vocaloid odd",
            "tag_string_general": "1girl", "tag_string_character": "miku", "tag_string_copyright": "vocaloid",
            "tag_string_artist": "", "tag_string_meta": "",
        },
        {"id": "12345", "md5": "ff" * 16, "file_ext": "jpg", "tag_string": "solo"},
        {"id": 9, "md5": "../../x", "file_ext": "../y", "tag_string": "solo"},
        {"id": "12345", "file_ext": "jpg", "rating": "q", "tags": [{"id": "1", "name": "a b", "category": "4"}]},
    ]  # fmt: skip
    path = tmp_path / "posts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third, fourth = posts(path, images=tmp_path / "original")
    assert first.id == "0"
    assert first.tags == (
        ("1girl", "general"), ("miku", "character"), ("vocaloid", "copyright"), ("odd", ""),
        ("rating:sensitive", "rating"),
    )  # fmt: skip
    assert first.item.path == tmp_path / f"original/01/{MD5}.png"  # type: ignore[union-attr]
    assert second.item.path == tmp_path / "original/0345/12345.jpg"  # type: ignore[union-attr]
    assert isinstance(third.item, Failure)
    assert fourth.tags == (("a b", "character"), ("rating:questionable", "rating"))


def test_an_address_counts_only_where_no_folder_is_named(tmp_path):
    row = {
        "id": 1,
        "md5": MD5,
        "file_ext": "png",
        "tag_string": "a",
        "file_url": "http://127.0.0.1:1/a.png",
    }
    path = tmp_path / "posts.jsonl"
    path.write_text(json.dumps(row))
    (post,) = posts(path)
    assert isinstance(post.item, Item)
    assert post.item.url == "http://127.0.0.1:1/a.png"
    (post,) = posts(path, images=tmp_path)
    assert isinstance(post.item, Failure)


def test_the_database_of_deepdanbooru(tmp_path):
    image(tmp_path, f"images/01/{MD5}.png")
    connection = sqlite3.connect(tmp_path / "d.sqlite")
    connection.execute(
        "CREATE TABLE posts (id INTEGER, md5 TEXT, file_ext TEXT, tag_string TEXT, tag_count_general INTEGER)"
    )
    rows = [(5, "f" * 32, "jpg", "a", 1), (3, MD5, "png", "1girl ^_^", 2)]
    connection.executemany("INSERT INTO posts VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    first, second = posts(tmp_path / "d.sqlite")
    assert (first.id, names(first)) == ("3", ["1girl", "^_^"])
    assert first.item.path == tmp_path / f"images/01/{MD5}.png"  # type: ignore[union-attr]
    assert isinstance(second.item, Failure)
    sqlite3.connect(tmp_path / "e.sqlite").close()
    with pytest.raises(UsageError, match="has no table of posts"):
        posts(tmp_path / "e.sqlite")


def test_webdataset(tmp_path):
    members = [
        ("x/1.png", PNG), ("x/1.json", b'{"tags": [{"name": "j", "category": "k"}]}'), ("x/1.txt", b"not, these"),
        ("x/2.txt", b"a, b"), ("x/2.png", PNG), ("x/3.txt", b"alone"), ("x/4.png", PNG), ("x/4.json", b"{"),
    ]  # fmt: skip
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    first, second, third = posts(tmp_path / "s.tar")
    assert (first.id, first.tags) == ("x/1.png", (("j", "k"),))
    assert (second.id, names(second)) == ("x/2.png", ["a", "b"])
    assert isinstance(third.item, Failure)
    (tmp_path / "t.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:1400])
    *_, last = posts(tmp_path / "t.tar")
    assert isinstance(last.item, Failure)
    assert "not all of this archive can be read" in last.item.message


def test_coco_and_kohya(tmp_path):
    image(tmp_path, "val/1.png")
    coco = {
        "images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
        "annotations": [{"image_id": 1, "category_id": c} for c in (3, 3, 4)],
        "categories": [
            {"id": 3, "name": "cat", "supercategory": "animal"},
            {"id": 4, "name": "cup"},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    first, second = posts(tmp_path / "c.json", images=tmp_path / "val")
    assert first.tags == (("cat", "animal"), ("cup", ""))
    assert (second.tags, type(second.item)) == ((), Failure)

    meta = {
        str(tmp_path / "val/1"): {"tags": "a, b"},
        str(tmp_path / "val/1.png"): {"caption": "c"},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    first, second = posts(tmp_path / "meta.json")
    assert names(first) == ["a", "b"]
    assert first.item.path == second.item.path == tmp_path / "val/1.png"  # type: ignore[union-attr]
    (tmp_path / "n.json").write_text("3")
    with pytest.raises(UsageError, match="neither COCO nor"):
        posts(tmp_path / "n.json")


def test_what_is_no_input_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "a.doc").write_text("")
    with pytest.raises(UsageError, match="holds no images with tags"):
        read_posts([str(tmp_path), str(tmp_path / "a.doc")], PostOptions())
    with pytest.raises(UsageError, match="no such file or folder"):
        read_posts([str(tmp_path / "no")], PostOptions())
