"""`annotary export` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import child_environment
from tests.taggers import make_wd, move_weights_out

pytest.importorskip("onnx")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "annotary", *arguments],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )


def test_a_model_is_exported_and_used(tmp_path, photos):
    photos(9)
    result = run("export", "starter", "--precision", "fp32", "--calibrate", "photos")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("starter-fp32@1.3: ")
    assert lines[1] == "compared on 3 photos"
    assert lines[-1] == "use it with --model dir:starter-fp32"
    parity = json.loads(Path("starter-fp32/parity.json").read_text())
    assert parity["compared_on"] == 3
    tagged = run("tag", "photos", "--model", "dir:starter-fp32", "--json", "--quiet")
    assert tagged.returncode == 0, tagged.stderr
    assert len(tagged.stdout.splitlines()) == 9
    assert json.loads(tagged.stdout.splitlines()[0])["sources"]["tags"] == "starter-fp32@1.3"


def test_int8_says_what_it_does(tmp_path, colours):
    if (
        find_spec("nncf") is None
    ):  # importing it here would make the folder that is looked for below
        pytest.skip("NNCF is not installed")
    Path("photos").mkdir()
    for i in range(12):
        Image.effect_noise((24, 24), 60 + i).convert("RGB").save(f"photos/{i}.png")
    result = run("export", f"dir:{colours}", "--calibrate", "photos", "--samples", "8")
    # A network without anything to multiply still becomes a model, or is refused in one line.
    assert result.stderr.startswith("calibrating dir:")
    assert not Path("intel").exists()  # where usage data would be kept before it is sent
    if result.returncode == 0:
        assert Path("colours-int8/card.toml").is_file()
    else:
        assert result.returncode == 2
        assert not Path("colours-int8").exists()
        assert len(result.stderr.splitlines()) == 2


def test_the_size_before_is_that_of_all_weights(tmp_path):
    folder = make_wd(tmp_path / "wd")
    beside = move_weights_out(folder / "model.onnx")
    with beside.open("ab") as file:
        file.write(bytes(300_000))
    result = run("export", f"dir:{folder}", "--precision", "fp32", "--output", "plain")
    assert result.returncode == 0, result.stderr
    assert "0.0 MB, of 0.3 MB" in result.stdout.splitlines()[0]


def test_halves_are_not_made_fp32(tmp_path):
    import onnx

    folder = make_wd(tmp_path / "wd")
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].input[0] = "wide"
    for name, before, kind in (("half", "logits", "FLOAT16"), ("wide", "half", "FLOAT")):
        number = getattr(onnx.TensorProto, kind)
        cast = onnx.helper.make_node("Cast", [before], [name], to=number)
        model.graph.node.insert(len(model.graph.node) - 1, cast)
    onnx.save(model, folder / "model.onnx")
    result = run("export", f"dir:{folder}", "--precision", "fp32")
    assert result.returncode == 2
    assert "computes in fp16, and fp32 cannot be made of it" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["starter"], "annotary: int8 needs --calibrate PHOTOS"),
        (["nothing", "--precision", "fp32"], "annotary: unknown model 'nothing'"),
        (["starter", "--calibrate", "."], "annotary: starter@1.3 computes in int8 already"),
        (["starter", "--samples", "3"], "annotary: --samples must be at least 8, but got 3"),
        (["starter", "--threshold", "7"], "annotary: --threshold must be in 0..1, but got 7"),
        (["starter", "--precision", "bf16"], "'bf16' is not one of 'int8', 'fp32'"),
    ],
)
def test_mistakes_are_one_line(arguments, told):
    result = run("export", *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr
