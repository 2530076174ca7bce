"""A dataset that is killed anywhere and begun again becomes what it would have been, byte for byte."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from annotary.datasets import Building, Dataset, DatasetOptions, Description
from annotary.datasets._images import Placer
from annotary.errors import OutputError
from tests.conftest import child_environment
from tests.datasets.conftest import make_dataset
from tests.datasets.spots import photo
from tests.small_encoder import SmallEncoder

ROOT = Path(__file__).parent.parent.parent

KILLED = """
import json, os, signal, sys
from pathlib import Path
from tests.datasets.conftest import make_dataset
from tests.datasets.spots import SpotFinder, composed, make_boxes

form, points, *inputs = sys.argv[1:]
here = Path.cwd()

def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes().hex() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "annotary.run.json"
    }

def in_child(work):
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        work()
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)

def make(output):
    split = "train=0.5,test=0.5"
    if form in ("coco", "voc", "yolo"):
        labels = ("red", "green", "blue")
        task = composed(SpotFinder(labels), labels)
        make_boxes(inputs, here / output, form, task=task, split=split)
    else:
        make_dataset(inputs, here / output, form, split=split)

def make_counting(output, least, pipe=None):
    count = 0
    def look(event, arguments):
        nonlocal count
        writes = event in ("os.rename", "os.link", "os.mkdir", "os.truncate", "os.rmdir", "os.remove")
        writes |= event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and str(here) in str(arguments[0]):
            count += 1
            if count == least:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)
    make(output)
    if pipe is not None:
        os.write(pipe, str(count).encode())

reading, writing = os.pipe()
assert in_child(lambda: make_counting("whole", -1, writing)) == 0
count = int(os.read(reading, 99))
whole = content(here / "whole")
killed = 0
for number in range(int(points)):
    output = f"killed-{number}"
    least = 1 + number * count // int(points)
    killed += os.WIFSIGNALED(in_child(lambda: make_counting(output, least)))
    assert in_child(lambda: make(output)) == 0, (least, count)
    found = content(here / output)
    assert found == whole, (least, set(found) ^ set(whole), [n for n in found if found[n] != whole.get(n)])
print(json.dumps([killed, count, len(whole)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("form", "points"), [("imagefolder", 10), ("csv", 4), ("yolo", 10), ("coco", 8), ("voc", 8)]
)
def test_killed_before_any_of_its_writes(colours_in, tmp_path, form, points):
    photos = colours_in(red=4, blue=3)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for path in sorted(colours_in("packed", green=3).iterdir()):
            archive.add(path, path.name)
    photo(photos / "spots.png", ("red", (8, 8, 30, 24)), ("blue", (32, 8, 60, 40)))
    with Image.open(photos / "spots.png") as opened:  # two that are stored anew, upright
        opened.transpose(Image.Transpose.ROTATE_90).save(photos / "t.jpg", exif=_turned())
        opened.transpose(Image.Transpose.ROTATE_90).save(photos / "t.png", exif=_turned())
    result = subprocess.run(
        [sys.executable, "-c", KILLED, form, str(points), photos, tmp_path / "shard.tar"],
        env={**child_environment(), "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    killed, writes, _ = json.loads(result.stdout.splitlines()[-1])
    assert writes > points
    assert killed == points


_SPOT = {"score": 0.5, "xyxy": [0.0, 0.0, 0.5, 1.0]}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(colours_in, tmp_path, monkeypatch):
    from annotary.datasets import _images

    photos = colours_in(red=6)
    write, count = _images.write_atomically, 0

    def full(path, content, **options):
        nonlocal count
        count += 1
        if count == 4:
            raise OutputError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
        write(path, content, **options)

    with monkeypatch.context() as patched:
        patched.setattr(_images, "write_atomically", full)
        with pytest.raises(OutputError, match="No space left"):
            make_dataset(photos, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3
    assert not json.loads((tmp_path / "out" / "dataset.json").read_text())["complete"]
    model = SmallEncoder()
    found = make_dataset(photos, tmp_path / "out", model=model)
    assert model.images == 0
    assert found["images"] == len(list((tmp_path / "out").rglob("*.png"))) == 6


def test_two_runs_do_not_write_one_dataset(colours_in, tmp_path):
    photos = colours_in(red=2)
    description = Description(("red",), "small@1.0")
    with (
        Dataset(tmp_path / "out", "folders", DatasetOptions(), description),
        pytest.raises(OutputError, match="another process is writing"),
    ):
        make_dataset(photos, tmp_path / "out")


@pytest.mark.parametrize(("task", "form"), [("classify", "csv"), ("detect", "coco")])
def test_memory_does_not_grow_with_what_is_known_of_images(tmp_path, task, form, monkeypatch):
    """So many bytes for each image stay, however much is said of it."""

    def peak(count: int) -> int:
        output = tmp_path / str(count)
        output.mkdir()
        description = Description(("a", "b"), "m@1", task=task)
        with Dataset(output, form, DatasetOptions(), description) as dataset:
            with dataset.journal.path.open("w") as file:
                for i in range(count):
                    name = f"../{'photos/' * 40}{i}.jpg"
                    labels = [{"name": "ab"[i % 2], "score": 0.5}, {"name": "x" * 500, "score": 0}]
                    line = {"image": name, "name": name, "suffix": "", "is_file": True, "width": 1}
                    line |= {"height": 1, "sha256": f"{i:064x}", "sources": {}}
                    boxes = [{**_SPOT, "label": "ab"[(i + n) % 2]} for n in range(8)]
                    line |= {"boxes": boxes} if task == "detect" else {"labels": labels}
                    file.write(json.dumps(line) + "\n")
            monkeypatch.setattr(Placer, "place", lambda *_: None)  # there are no such images
            building = Building(dataset)
            tracemalloc.start()
            try:
                for _ in building:
                    pass
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    few, many = 500, 2500
    grown = (peak(many) - peak(few)) / (many - few)
    assert grown < 200, grown  # a line of the journal has a thousand
