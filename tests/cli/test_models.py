"""`annotary models`: the list, and the card that `annotary models add` writes for any tagger in ONNX."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from annotary import weights
from annotary.cards import PreprocessSpec, read_card, read_vocabulary
from annotary.cli import annotary
from annotary.cli import models as models_command
from annotary.errors import ModelError, UsageError
from annotary.models import load_model, told_size
from annotary.preprocess import to_batch
from tests.conftest import make_colours
from tests.taggers import WD_TAGS, make_wd, move_weights_out

COMPLETE = (
    *("--licence", "MIT", "--channel-order", "bgr", "--fit", "pad", "--activation", "none"),
    *("--scale", "1", "--mean", "0,0,0", "--std", "1,1,1"),
)
"""Everything that the file does not tell."""


@pytest.fixture
def folder(tmp_path):
    """A folder as people have it: a network and a list of tags, and no card."""
    folder = make_wd(tmp_path / "flowers")
    (folder / "selected_tags.csv").unlink()
    (folder / "tags.txt").write_text("\n".join(name for name, _ in WD_TAGS))
    return folder


def call(*arguments, **options):
    return CliRunner().invoke(annotary, ["models", *map(str, arguments)], **options)


def add(folder, *arguments, **options):
    return call("add", folder, "--tags", folder / "tags.txt", *arguments, **options)


# The list


def test_the_list_says_what_is_here_and_how_to_get_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    shown = call().output
    shipped = sum(file.stat().st_size for file in weights.shipped()["starter"].iterdir())
    size = f"{(shipped - (weights.shipped()['starter'] / 'card.toml').stat().st_size) / 1e6:.1f} MB"
    assert f"\nstarter 1.3  Apache-2.0  {size}, in the package\n" in shown
    assert "joytag  Apache-2.0  366.2 MB, not here: annotary pull joytag\n" in shown
    assert "\n  family wd, from hf:SmilingWolf/wd-vit-tagger-v3\n" in shown
    rows = {row["name"]: row for row in json.loads(call("--json").output)}
    assert set(rows) == set(weights.known())
    assert rows["starter"]["is_shipped"]
    assert rows["starter"]["is_here"]
    assert not rows["joytag"]["is_here"]
    assert rows["joytag"]["bytes"] == 366_192_906
    assert rows["wd-vit-tagger-v3"]["bytes"] is None
    keys = ("name", "version", "licence", "bytes", "description", "family", "source")
    assert all({*keys, "is_here", "is_shipped"} == set(row) for row in rows.values())


def test_every_known_model_says_its_licence_and_source():
    for name, folder in weights.known().items():
        card = read_card(folder)
        assert card.name == name
        assert card.licence in ("Apache-2.0", "BSD-3-Clause", "MIT", "CC-BY-NC-4.0")
        assert card.source


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (76_752, "76.8 kB"),
        (366_116_154, "366.1 MB"),
        (1.26e9, "1.3 GB"),
    ],
)
def test_sizes(size, told):
    assert told_size(int(size)) == told


# Adding


def test_a_folder_becomes_a_model(folder):
    result = add(folder, *COMPLETE, "--source", "my garden", "--threshold", "0.3")
    assert result.exit_code == 0, result.exception
    assert result.output.startswith("flowers@1.0: 8 tags; a grey image scores 0.5")
    assert result.output.endswith(f"use it with --model dir:{folder}\n")
    card = read_card(folder)
    assert card.preprocess == PreprocessSpec(
        (16, 16),
        fit="pad",
        channel_order="bgr",
        layout="nhwc",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    assert (card.name, card.licence, card.source) == ("flowers", "MIT", "my garden")
    assert set(card.files) == {"model.onnx", "tags.csv"}
    assert read_vocabulary(folder).names == tuple(name for name, _ in WD_TAGS)
    model = load_model(f"dir:{folder}")
    pixels = np.full((16, 16, 3), (10, 20, 30), np.uint8)
    scores = model.tag_scores(to_batch([pixels], card.preprocess))
    assert scores[0, :3] == pytest.approx(
        1 / (1 + np.exp(2 - np.array([30, 20, 10]) / 64)), abs=1e-6
    )
    assert model.vocabulary.thresholds["balanced"] == (0.3,) * 8
    (folder / "tags.csv").write_text("name\nother\n")
    with pytest.raises(ModelError, match=r"tags\.csv is damaged"):
        load_model(f"dir:{folder}")


TABLES = {
    "tags.csv": "name,category\n" + "".join(f"{n},c\n" for n, _ in WD_TAGS),
    "list.csv": "id,name,category\n" + "".join(f"0,{n},c\n" for n, _ in WD_TAGS),
    "list.json": json.dumps([name for name, _ in WD_TAGS]),
    "index.json": json.dumps({i: name for i, (name, _) in reversed(list(enumerate(WD_TAGS)))}),
    "names.json": json.dumps({name: i for i, (name, _) in enumerate(WD_TAGS)}),
    "lines.txt": "\ufeff" + "\r\n".join(name for name, _ in WD_TAGS) + "\r\n\r\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tags_in_any_form(folder, name):
    (folder / name).write_text(TABLES[name], encoding="utf-8")
    result = call("add", folder, "--tags", folder / name, *COMPLETE, "--overwrite")
    assert result.exit_code == 0, result.exception
    vocabulary = read_vocabulary(folder)
    assert vocabulary.names == tuple(name for name, _ in WD_TAGS)
    assert set(vocabulary.categories) == ({"c"} if name.endswith("csv") else {""})


def test_a_table_that_is_there_stays_as_it_is_written(folder):
    for table in (
        "name,category\r\n" + "".join(f"{name},c\r\n" for name, _ in WD_TAGS),
        "category,name,count\n" + "".join(f"c,{name},7\n" for name, _ in WD_TAGS),
        '"name"\n' + "".join(f'"{name}"\n' for name, _ in WD_TAGS),
    ):
        (folder / "tags.csv").write_bytes(table.encode())
        for more in ((), ("--overwrite",)):
            result = call("add", folder, *COMPLETE, *more)
            assert result.exit_code == 0, result.exception
            assert (folder / "tags.csv").read_bytes() == table.encode()
        assert load_model(f"dir:{folder}").vocabulary.names[4] == "1girl"
        (folder / "card.toml").unlink()


def test_categories_of_a_wd_tagger_get_their_names(tmp_path):
    folder = make_wd(tmp_path / "flowers")
    table = folder / "selected_tags.csv"
    assert call("add", folder, "--tags", table, *COMPLETE).exit_code == 0
    assert read_vocabulary(folder).categories == (
        *("rating",) * 4,
        *("general",) * 3,
        "character",
    )


def test_weights_in_a_file_of_their_own_are_on_the_card(folder):
    beside = move_weights_out(folder / "model.onnx")
    assert add(folder, *COMPLETE).exit_code == 0
    assert set(read_card(folder).files) == {"model.onnx", beside.name, "tags.csv"}
    beside.write_bytes(b"\0" * beside.stat().st_size)
    with pytest.raises(ModelError, match=r"model\.onnx\.data is damaged"):
        load_model(f"dir:{folder}")


def test_a_run_does_not_mix_two_networks(folder, photos):
    """A card that lists nothing is no way around it."""
    photos(1)
    beside = move_weights_out(folder / "model.onnx")
    assert add(folder, *COMPLETE).exit_code == 0
    card = folder / "card.toml"
    card.write_text(card.read_text().partition("[files]")[0])
    tag = ["tag", "photos", "--model", f"dir:{folder}", "--output", "tags.jsonl", "--quiet"]
    assert CliRunner().invoke(annotary, tag).exit_code == 0
    beside.write_bytes(b"\0" * beside.stat().st_size)
    photos(2)
    assert "holds results of other settings" in str(CliRunner().invoke(annotary, tag).exception)


def test_a_network_for_several_images_at_once(tmp_path):
    folder = make_wd(tmp_path / "flowers", fixed_batch=4)
    result = call("add", folder, "--tags", folder / "selected_tags.csv", *COMPLETE)
    assert result.exit_code == 0, result.exception
    pixels = np.full((16, 16, 3), 10, np.uint8)
    model = load_model(f"dir:{folder}")
    assert model.tag_scores(to_batch([pixels] * 5, model.card.preprocess)).shape == (5, 8)


def test_thresholds_of_a_table_are_kept(folder):
    rows = "".join(f"{name},0.25\n" for name, _ in WD_TAGS)
    (folder / "tags.csv").write_text("name,balanced\n" + rows)
    assert call("add", folder, *COMPLETE).exit_code == 0
    assert load_model(f"dir:{folder}").vocabulary.thresholds["balanced"] == (0.25,) * 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{", "cannot read the tags"),
        ("x.json", "5", "neither a list"),
        ("x.json", '{"0": "a", "2": "b"}', "its indices are not 0 to 1"),
        ("x.json", "[1, 2]", "not all of its tags are texts"),
        ("x.txt", "\n\n", "it has no tags"),
        ("x.txt", "a\na\n", "unique"),
        ("x.csv", "tag\na\n", "no column 'name'"),
        ("x.csv", "name\n", "it has no tags"),
        ("x.csv", "name,balanced\na,much\n", "cannot read the tags"),
    ],
)
def test_tags_that_are_none(folder, name, content, message):
    (folder / name).write_text(content)
    result = call("add", folder, "--tags", folder / name, *COMPLETE)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not (folder / "card.toml").exists()


def refused(folder, *arguments):
    """The message of an error after which nothing is written."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = add(folder, *arguments)
    assert isinstance(result.exception, UsageError | ModelError), result.output
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    return str(result.exception)


def test_a_network_that_does_not_fit_is_not_written(folder, tmp_path):
    text = (folder / "tags.txt").read_text()
    (folder / "tags.txt").write_text(text + "\none more")
    told = refused(folder, *COMPLETE)
    assert "gives scores (1, 8) for 9 tags (tried with a grey image; nothing was written)" in told
    (folder / "tags.txt").write_text(text)
    make_wd(tmp_path / "logits", is_logit=True).joinpath("model.onnx").replace(
        folder / "model.onnx"
    )
    told = refused(folder, *COMPLETE[:-4], "--mean", "300,300,300", "--std", "1,1,1")
    assert 'does its card lack activation = "sigmoid"?' in told
    result = add(folder, *COMPLETE, "--activation", "sigmoid")
    assert result.exit_code == 0, result.exception


def test_what_is_written_is_not_written_over(folder):
    assert add(folder, *COMPLETE).exit_code == 0
    assert "card.toml exists; --overwrite replaces it" in refused(folder, *COMPLETE)
    (folder / "card.toml").unlink()
    (folder / "tags.csv").write_text("mine")
    assert "tags.csv exists and holds something else" in refused(folder, *COMPLETE)
    assert add(folder, *COMPLETE, "--overwrite", "--name", "new").output.startswith("new@1.0")


def test_without_a_terminal_all_that_is_missing_is_named(folder):
    named = "--channel-order, --fit, --mean, --std, --activation, --licence"
    assert refused(folder).endswith(f"does not tell everything; these are needed, too: {named}")
    assert refused(folder, *COMPLETE[2:]).endswith("too: --licence")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "32"), "--size 32x32, but"),
        (("--layout", "nchw"), "--layout nchw, but"),
        (("--std", "1,0,1"), "std > 0"),
        (("--scale", "0"), "scale must be a number above 0"),
        (("--pad-colour", "1,2,300"), "pad_colour must be"),
        (("--threshold", "2"), "in 0..1: 2.0"),
        (("--network", "other.onnx"), "cannot read"),
        (("--network", "../other.onnx"), "--network takes the name of a file in"),
        (("--scale", "inf"), "scale must be a number above 0"),
        (("--mean", "nan,0,0"), "mean and std"),
    ],
)
def test_values_that_make_no_sense(folder, arguments, message):
    assert message in refused(folder, *COMPLETE, *arguments)


NO_NUMBERS = (
    *(("--mean", "1,2"), ("--size", "large"), ("--size", "1x2x3")),
    *(("--pad-colour", "1.5,2,3"), ("--pad-colour", "1,2")),
)


def test_numbers_that_are_none(folder):
    for option, value in NO_NUMBERS:
        result = add(folder, *COMPLETE, option, value)
        assert result.exit_code == 2
        assert option in result.output
    assert not (folder / "card.toml").exists()


def test_folders_that_are_no_model(tmp_path):
    for folder, message in ((tmp_path / "none", "no folder"), (tmp_path, "has none; --network")):
        result = call("add", folder, *COMPLETE)
        assert message in str(result.exception)
    folder = make_wd(tmp_path / "two")
    (folder / "b.onnx").write_bytes((folder / "model.onnx").read_bytes())
    assert "has 2: b.onnx, model.onnx" in str(call("add", folder, *COMPLETE).exception)
    assert "has no tags.csv; --tags" in str(
        call("add", folder, "--network", "b.onnx", *COMPLETE).exception
    )


def test_one_of_several_networks(folder):
    (folder / "b.onnx").write_bytes((folder / "model.onnx").read_bytes())
    assert add(folder, "--network", "b.onnx", *COMPLETE).exit_code == 0
    (folder / "model.onnx").write_bytes(b"no network")
    assert len(load_model(f"dir:{folder}").vocabulary) == 8


def test_networks_of_whole_numbers_are_not_asked_for_a_mean(tmp_path):
    folder = make_colours(tmp_path / "colours")
    (folder / "card.toml").unlink()
    result = call("add", folder, *COMPLETE[:6], "--activation", "none", "--overwrite")
    assert result.exit_code == 0, result.exception
    assert read_card(folder).preprocess == PreprocessSpec(
        (16, 16), fit="pad", channel_order="bgr", layout="nhwc", dtype="uint8"
    )
    assert read_vocabulary(folder).thresholds["precise"] == (0.8,) * 3


def test_a_person_is_asked(folder, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr(models_command.sys, "stdin", Terminal())
    numbers = ("1,2", "0.5,0.5,0.5", "0.5,0.5,half", "0.5,0.5,0.5")  # what is wrong is asked again
    answers = iter(["rgb", "pad", *numbers, "none", "Apache-2.0"])
    asked = []

    def answer(question):
        asked.append(question)
        return next(answers)

    monkeypatch.setattr("click.termui.visible_prompt_func", answer)
    # The callback itself: click's test runner takes the place of the terminal.
    context = models_command.add.make_context(
        "add", [str(folder), "--tags", str(folder / "tags.txt")]
    )
    with context:
        models_command.add.invoke(context)
    assert [question.split()[0] for question in asked] == [
        *("Order", "What", "Mean", "Mean", "Deviation", "Deviation", "What", "Licence")
    ]
    spec = read_card(folder).preprocess
    assert (spec.channel_order, spec.fit, spec.mean) == ("rgb", "pad", (0.5, 0.5, 0.5))
    assert spec.scale == 255.0
