"""What `annotary tag` writes is read again, whatever the format is, and what others lay out in other columns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotary.errors import UsageError
from annotary.models import _finding
from annotary.records import Annotation, Failure, Item, Tag
from annotary.sinks import SinkOptions, caption, hydrus, imagefolder, txt, xmp
from annotary.sources import SourceOptions
from annotary.training.dataset.posts import Post, PostOptions, read_posts, without_namespace
from tests.training.dataset.making import encoded

PNG = encoded(np.zeros((4, 4, 3), np.uint8), "PNG")
TAGS = (Tag("bear", 0.9, "animal"), Tag("photo", 0.8, "style"), Tag("re:zero", 0.7, ""))


def posts(place: Path, source: SourceOptions | None = None, **options: object) -> list[Post]:
    return list(read_posts([str(place)], PostOptions(**options), source))  # type: ignore[arg-type]


def image(folder: Path, name: str) -> Item:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG)
    return Item.from_path(str(path), name)


def written(item: Item, sink_module: object, output: Path | None = None) -> None:
    """Have a sink write the tags of an image."""
    annotation = Annotation(item.image, 4, 4, tags=TAGS)
    sink = sink_module.open(output, SinkOptions(), ("tags",))  # type: ignore[attr-defined]
    sink.write(item, annotation)
    sink.close(complete=True)


@pytest.mark.parametrize("sink", [txt, caption, hydrus, xmp, imagefolder])
def test_every_format_gives_the_same_names(tmp_path, sink):
    item = image(tmp_path, "in/a.png")
    written(item, sink, tmp_path / "metadata.jsonl" if sink is imagefolder else None)
    (post,) = posts(tmp_path)
    assert isinstance(post.item, Item)
    assert [name for name, _ in post.tags] == ["bear", "photo", "re:zero"]
    if sink in (hydrus, xmp):
        assert [category for _, category in post.tags] == ["animal", "style", ""]


def test_categories_of_the_starter_are_namespaces():
    rows = (Path(_finding.__file__).parents[1] / "weights/starter/tags.csv").read_text()
    categories = {line.split(",")[1] for line in rows.splitlines()[1:]}
    assert len(categories) > 10
    for category in categories:
        assert without_namespace(f"{category}:a b") == ("a b", category)


def test_the_first_of_several_files_counts(tmp_path):
    item = image(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,tags\na.png,of csv\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "tags": ["of jsonl"]}\n')
    written(item, xmp)
    (tmp_path / "a.png.caption").write_text("of full caption")
    (tmp_path / "a.caption").write_text("of caption")
    (tmp_path / "a.json").write_text('{"tags": ["of json", null]}')
    (tmp_path / "a.png.txt").write_text("of full txt")
    (tmp_path / "a.txt").write_text("of txt\r\nmore")
    files = {
        "a.txt": ["of txt", "more"],
        "a.png.txt": ["of full txt"],
        "a.json": ["of json"],
        "a.caption": ["of caption"],
        "a.png.caption": ["of full caption"],
        "a.xmp": ["bear", "photo", "re:zero"],
        "metadata.jsonl": ["of jsonl"],
        "metadata.csv": ["of csv"],
    }
    for name, expected in files.items():
        (post,) = posts(tmp_path)
        assert [tag for tag, _ in post.tags] == expected
        (tmp_path / name).unlink()
    (post,) = posts(tmp_path)
    assert (post.tags, type(post.item)) == ((), Item)


def test_keywords_that_others_wrote_and_packets_that_are_damaged(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path, name)
    (tmp_path / "a.png.xmp").write_text(
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag>'
        "<rdf:li>sea  shore</rdf:li><rdf:li>character:ann</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF>"
    )
    (tmp_path / "b.xmp").write_text("<rdf:RDF")
    (tmp_path / "c.xmp").write_text("")
    a, b, c = posts(tmp_path)
    assert a.tags == (("sea shore", ""), ("ann", "character"))
    assert isinstance(b.item, Failure)
    assert "b.xmp cannot be read: is damaged XML" in b.item.message
    assert (c.tags, type(c.item)) == ((), Item)


def test_the_nearest_table_of_an_imagefolder_counts(tmp_path):
    for name in ("a.png", "train/b.png", "train/c.png", "train/d.png"):
        image(tmp_path, name)
    rows = [{"file_name": name, "tags": ["outer"]} for name in ("a.png", "train/b.png", "no.png")]
    rows.append({"file_name": "./train/c.png", "tags": ["outer"]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train/metadata.csv").write_text("file_name,tags\nb.png,inner\nd.png,1\n")
    (
        tmp_path / "other"
    ).mkdir()  # where --images says that tables' images are, and those of folders are not
    found = {
        post.id: [tag for tag, _ in post.tags]
        for post in posts(tmp_path, images=tmp_path / "other")
    }
    assert found == {
        "a.png": ["outer"], "train/b.png": ["inner"], "train/c.png": ["outer"], "train/d.png": ["1"],
    }  # fmt: skip
    left_out = SourceOptions(exclude_files=("train/metadata.csv",))
    assert posts(tmp_path, left_out)[1].tags == (("outer", ""),)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "tags": [true]}\n')
    first, *_ = posts(tmp_path)
    assert isinstance(first.item, Failure)
    assert "a tag must be text" in first.item.message


def test_null_is_no_tag(tmp_path):
    image(tmp_path, "a.png")
    row = {"image": "a.png", "tags": ["x", None, {"name": "y"}, {"name": None}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert posts(tmp_path / "t.jsonl")[0].tags == (("x", ""), ("y", ""))
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "tags": ["x", {"label": "y"}]}')
    assert "a tag must be text or have a name" in posts(tmp_path / "t.jsonl")[0].item.message  # type: ignore[union-attr]


def test_columns_of_tags_by_category(tmp_path):
    image(tmp_path, "pictures/0345/12345.webp")
    image(tmp_path, "pictures/7.png")
    columns = {
        "image_id": [12345, 7, 8],
        "rating": ["g", "sensitive", None],
        "general_tags": [["1girl", "long_hair"], ["solo", None], []],
        "character_tags": [["miku"], None, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "seed.parquet")
    first, second, third = posts(tmp_path / "seed.parquet", images=tmp_path / "pictures")
    assert (first.id, first.item.path) == ("12345", tmp_path / "pictures/0345/12345.webp")  # type: ignore[union-attr]
    assert first.tags == (
        ("1girl", "general"), ("long_hair", "general"), ("miku", "character"), ("rating:general", "rating"),
    )  # fmt: skip
    assert second.item.path == tmp_path / "pictures/7.png"  # type: ignore[union-attr]
    assert second.tags == (("solo", "general"), ("rating:sensitive", "rating"))
    assert isinstance(third.item, Failure)
    (tmp_path / "texts.csv").write_text(
        'image_id,general_tags,character_tags\n7,1girl solo,"a b, c d"\n'
    )
    (post,) = posts(tmp_path / "texts.csv", images=tmp_path / "pictures")
    assert post.tags == (
        ("1girl", "general"), ("solo", "general"), ("a b", "character"), ("c d", "character"),
    )  # fmt: skip
    (post,) = posts(
        tmp_path / "texts.csv", images=tmp_path / "pictures", image_column="image_id", tag_column="general_tags",
        tag_separator="space",
    )  # fmt: skip
    assert (post.id, post.tags) == ("7", (("1girl", ""), ("solo", "")))


def test_a_failure_says_which_option_helps(tmp_path):
    (tmp_path / "posts.jsonl").write_text('{"id": 1, "md5": "ab12", "tag_string": "a"}\n')
    (tmp_path / "t.csv").write_text("photo,tags\na.png,x\n")
    (tmp_path / "u.csv").write_text("image,tags\na.png,x\n")
    coco = {
        "images": [{"id": 1, "file_name": "1.png"}], "annotations": [], "categories": [{"id": 1, "name": "c"}],
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(coco))
    expected = {
        "posts.jsonl": "has no ab/ab12.jpg nor other usual names of it; say where the images are with --images",
        "t.csv": "this row names no image; choose a column with --image-column: 'photo', 'tags'",
        "u.csv": "nor in the current folder; say where the images are with --images",
        "c.json": "nor in the current folder; say where the images are with --images",
    }
    for name, ending in expected.items():
        (post,) = posts(tmp_path / name)
        assert isinstance(post.item, Failure)
        assert post.item.message.endswith(ending)
    (post,) = posts(tmp_path / "c.json", images=tmp_path)
    assert "--images" not in post.item.message  # type: ignore[union-attr]


def test_images_that_are_not_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.jsonl").write_text('{"image": "a.png", "tags": ["x"]}\n')
    (post,) = posts(Path("c.jsonl"))
    assert post.item.message.startswith("nothing has this name in the current folder; say where")  # type: ignore[union-attr]
    image(tmp_path, "a.png")
    assert isinstance(posts(Path("c.jsonl"))[0].item, Item)


def test_columns_need_an_input_that_has_some(tmp_path):
    folder = tmp_path / "photos"
    image(folder, "a.png")
    (folder / "a.txt").write_text("x")
    for name in ("image_column", "tag_column"):
        flag = "--" + name.replace("_", "-")
        with pytest.raises(UsageError, match=f"^{flag} foo has no effect: no input "):
            posts(folder, **{name: "foo"})
    (folder / "a.txt").unlink()
    (folder / "a.json").write_text('{"foo": "x", "tags": "y"}')
    assert posts(folder, tag_column="foo")[0].tags == (("x", ""),)
    with pytest.raises(UsageError, match="--image-column bar has no effect: no input is a table"):
        posts(folder, image_column="bar")
    (folder / "a.json").unlink()
    (folder / "metadata.jsonl").write_text('{"bar": "a.png", "tags": "y"}')
    assert posts(folder, image_column="bar")[0].tags == (("y", ""),)
