"""`annotary pull`, and models of the hub by name: what is fetched, noted, checked and told."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from annotary import hub, weights
from annotary.cards import card_text, read_card
from annotary.cli import annotary
from annotary.errors import ModelError, UnknownName, UsageError
from annotary.models import find, load_model, pull
from annotary.runtime import RuntimeOptions
from tests.conftest import child_environment, make_colours
from tests.hub_server import COMMIT, running_hub
from tests.taggers import make_wd, move_weights_out

LATER = "b" * 40
TOP_TAGS = Path(__file__).parents[3] / "shared" / "data" / "joytag" / "top_tags.txt"


@pytest.fixture
def wd_files(tmp_path):
    folder = make_wd(tmp_path / "wd-source", size=448)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(monkeypatch, tmp_path, wd_files):
    with running_hub(monkeypatch, tmp_path / "cache") as server:
        server.add("SmilingWolf/wd-vit-tagger-v3", {**wd_files, "model.safetensors": b"unused"})
        yield server


def call(*arguments):
    return CliRunner().invoke(annotary, ["pull", *arguments])


def test_a_known_model_is_fetched_noted_and_told(server):
    result = call("wd-vit-tagger-v3")
    assert result.exit_code == 0, result.exception
    first, *files, last = result.output.splitlines()
    repository = "hf:SmilingWolf/wd-vit-tagger-v3"
    assert first == (f"wd-vit-tagger-v3: fetched, {repository} at {COMMIT}, licence Apache-2.0")
    assert [line.split()[0] for line in files] == ["model.onnx", "selected_tags.csv"]
    assert last.endswith(f"snapshots/{COMMIT}")
    assert not server.gets("model.safetensors")
    again = call("wd-vit-tagger-v3").output
    assert "here already" in again
    assert again.splitlines()[1:] == result.output.splitlines()[1:]
    assert len(server.gets("model.onnx")) == 1
    listed = CliRunner().invoke(annotary, ["models"]).output
    assert f"wd-vit-tagger-v3 {COMMIT[:12]}  Apache-2.0" in listed
    assert "on this machine" in listed


def test_what_was_fetched_runs_without_a_network(server, monkeypatch):
    call("wd-vit-tagger-v3")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(server.requests)
    model = load_model("wd-vit-tagger-v3")
    assert model.card.id == f"wd-vit-tagger-v3@{COMMIT[:12]}"
    assert len(server.requests) == before


def test_loading_fetches_and_says_so(server, capsys):
    assert find("wd-vit-tagger-v3").is_fetched
    said = capsys.readouterr().err
    assert said.startswith("annotary: fetching wd-vit-tagger-v3 (Apache-2.0): model.onnx, selected")
    assert said.count("\n") == 1
    assert not find("wd-vit-tagger-v3").is_fetched
    assert capsys.readouterr().err == ""
    licence = "mit\x1b[2J"
    server.add(
        "a/b", server.repositories["SmilingWolf/wd-vit-tagger-v3"].commits[COMMIT], licence=licence
    )
    find("hf:a/b")
    assert "(mit?[2J)" in capsys.readouterr().err


def test_offline_names_the_command(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="a network: annotary pull wd-vit-tagger-v3"):
        load_model("wd-vit-tagger-v3")
    assert not server.requests


def test_an_update_needs_a_network(server, monkeypatch):
    call("wd-vit-tagger-v3")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = call("wd-vit-tagger-v3", "--update")
    assert "HF_HUB_OFFLINE forbids to ask" in str(result.exception)
    assert "here already" in call("wd-vit-tagger-v3").output


def test_no_network_names_the_command(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ModelError,
        match="this machine: once there is a connection, annotary pull wd-vit-tagger-v3 fetches",
    ):
        load_model("wd-vit-tagger-v3")


def test_a_model_keeps_what_was_fetched_first_until_it_is_updated(server, wd_files):
    before = find("wd-vit-tagger-v3").fingerprint()
    repository = server.repositories["SmilingWolf/wd-vit-tagger-v3"]
    changed = wd_files["selected_tags.csv"].replace(b"1girl", b"1boy!")
    repository.commits[LATER] = {**wd_files, "selected_tags.csv": changed}
    repository.revisions["main"] = LATER
    assert "at aaaa" in call("wd-vit-tagger-v3").output
    assert load_model("wd-vit-tagger-v3").vocabulary.names[4] == "1girl"
    assert "at bbbb" in call("wd-vit-tagger-v3", "--update").output
    assert load_model("wd-vit-tagger-v3").vocabulary.names[4] == "1boy!"
    assert find("wd-vit-tagger-v3").fingerprint() != before


def test_a_file_that_was_damaged_on_the_disk(server):
    path = pull("wd-vit-tagger-v3").directory / "selected_tags.csv"
    path.write_bytes(path.read_bytes().replace(b"1girl", b"1boy!"))
    message = r"selected_tags\.csv is damaged: .*; annotary pull wd-vit-tagger-v3 fetches it anew"
    with pytest.raises(ModelError, match=message):
        load_model("wd-vit-tagger-v3")
    assert "fetched" in call("wd-vit-tagger-v3").output
    assert load_model("wd-vit-tagger-v3").vocabulary.names[4] == "1girl"


def test_a_wrong_file_is_refused_by_the_card(server):
    server.add("fancyfeast/joytag", {"model.onnx": b"wrong", "top_tags.txt": b"wrong"})
    result = call("joytag", "--runtime", "onnxruntime")
    assert isinstance(result.exception, ModelError)
    assert "top_tags.txt of hf:fancyfeast/joytag is another file" in str(result.exception)
    assert "expected 32b1963a" in str(result.exception)
    assert "\n" not in str(result.exception)
    assert hub.on_disk(hub.Repository("fancyfeast/joytag")) is None


def test_a_repository_without_a_card_is_known_by_its_files(server, wd_files):
    server.add("someone/anime", {**wd_files, "README.md": b"-"}, licence="mit")
    result = call("hf:someone/anime")
    assert "licence mit" in result.output
    model = load_model("hf:someone/anime")
    assert model.card.id == f"someone/anime@{COMMIT[:12]}"
    assert model.card.family == "wd"
    assert not server.gets("README.md")


def test_a_repository_with_a_card_of_ours(server, tmp_path):
    folder = make_colours(tmp_path / "colours")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.add(
        "someone/colours", {**files, "other.bin": b"x"}, revisions={"main": COMMIT, "v1": COMMIT}
    )
    assert call("hf:someone/colours@v1").exit_code == 0
    model = load_model("hf:someone/colours@v1")
    assert model.card.id == "colours@1.0"
    assert model.vocabulary.names == ("red", "green", "blue")
    assert not server.gets("other.bin")
    assert find("hf:someone/colours@v1").fingerprint() == find(f"dir:{folder}").fingerprint()


def test_a_damaged_card_is_fetched_anew(server, tmp_path):
    folder = make_colours(tmp_path / "colours")
    server.add("someone/colours", {path.name: path.read_bytes() for path in folder.iterdir()})
    card = pull("hf:someone/colours").directory / "card.toml"
    for content, message in (
        ("[", "cannot read"),
        (card.read_text() + "# x", r"card\.toml is damaged"),
    ):
        card.write_text(content)
        with pytest.raises(ModelError, match=message):
            load_model("hf:someone/colours")
        assert "fetched" in call("hf:someone/colours").output
        assert load_model("hf:someone/colours").card.id == "colours@1.0"


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\\\\b", "..", "sub/../x"])
def test_a_card_cannot_name_files_elsewhere(server, tmp_path, name):
    folder = make_colours(tmp_path / "colours")
    card = folder / "card.toml"
    card.write_text(card.read_text() + f'"{name}" = ""\n')
    server.add("someone/evil", {path.name: path.read_bytes() for path in folder.iterdir()})
    result = call("hf:someone/evil")
    assert isinstance(result.exception, ModelError)
    assert "cannot be the name of a model's file" in str(result.exception)


def test_a_repository_whose_card_lists_more_than_it_holds(server, tmp_path):
    folder = make_colours(tmp_path / "colours")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    del files["tags.csv"]
    server.add("someone/colours", files)
    message = "hf:someone/colours at aaaaaaaaaaaa cannot be used: it has no tags.csv"
    assert str(call("hf:someone/colours").exception) == message


@pytest.mark.parametrize("has_card", [False, True])
def test_weights_in_a_file_of_their_own_are_fetched(server, tmp_path, monkeypatch, has_card):
    """Only the network tells of them; the card need not list them."""
    folder = make_wd(tmp_path / "large")
    beside = move_weights_out(folder / "model.onnx")
    if has_card:
        (folder / "card.toml").write_text(card_text(find(f"dir:{folder}").card))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.add("someone/large", files, large={"model.onnx", beside.name})
    server.statuses = [503] * hub._ATTEMPTS * 2  # what was stopped goes on, and is nobody's before
    assert isinstance(call("hf:someone/large").exception, ModelError)
    assert hub.on_disk(hub.Repository("someone/large")) is None
    server.statuses = []
    assert f"  {beside.name}  " in call("hf:someone/large").output
    assert "here already" in call("hf:someone/large").output
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = find("hf:someone/large")
    assert found.card.files[beside.name] == hashlib.sha256(beside.read_bytes()).hexdigest()
    images = np.zeros((2, 16, 16, 3), np.float32)
    expected = load_model(f"dir:{folder}", RuntimeOptions(precision="fp32")).tag_scores(images)
    made = load_model(found, RuntimeOptions(precision="fp32"))
    assert made.tag_scores(images) == pytest.approx(expected, abs=1e-6)
    (found.directory / beside.name).write_bytes(b"\0" * len(beside.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.onnx\.data is damaged: .* where HF_HUB_OFFLINE"):
        load_model("hf:someone/large")
    (found.directory / beside.name).unlink()
    with pytest.raises(ModelError, match="is not on this machine"):
        load_model("hf:someone/large")


def test_weights_that_a_repository_lacks_are_named(server, tmp_path):
    folder = make_wd(tmp_path / "large")
    move_weights_out(folder / "model.onnx").unlink()
    server.add("someone/large", {path.name: path.read_bytes() for path in folder.iterdir()})
    message = "hf:someone/large at aaaaaaaaaaaa cannot be used: it has no model.onnx.data"
    assert str(call("hf:someone/large").exception) == message


def test_a_commit_that_cannot_be_used_is_not_kept(server, tmp_path):
    folder = make_colours(tmp_path / "colours")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = {
        "someone/a": {name: whole[name] for name in ("card.toml", "tags.csv")},
        "someone/b": {**whole, "card.toml": b"family = 5"},
        "someone/c": {
            **whole,
            "card.toml": whole["card.toml"].replace(b"[files]", b"[files]\nx=''"),
        },
    }
    for name, files in broken.items():
        repository = server.add(name, files)
        assert call(f"hf:{name}").exit_code == 1
        repository.commits[LATER] = whole
        repository.revisions["main"] = LATER
        assert f"fetched, at {LATER}" in call(f"hf:{name}").output


def test_what_cannot_run_is_not_called_fetched(server, tmp_path):
    folder = make_colours(tmp_path / "colours")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    card = files["card.toml"].replace(b"onnx_tagger", b"joytag").partition(b"[files]")[0]
    server.add("someone/colours", files)
    server.add("someone/lie", {"card.toml": card, "model.onnx": b"x"})
    server.add("someone/joytag", {"card.toml": card, "model.onnx": b"x", "top_tags.txt": b"a"})
    for name, message in (
        ("wd-vit-tagger-v3", "nothing in it runs in torch"),
        ("hf:someone/colours", "nothing in it runs in torch"),
        ("hf:someone/joytag", "nothing in it runs in torch"),
        ("hf:someone/lie", "not all files of a model of the family joytag: top_tags.txt with"),
    ):
        result = call(name, "--runtime", "torch")
        assert isinstance(result.exception, UsageError), result.output
        assert message in str(result.exception)
        assert not result.output


def test_a_card_says_which_network_is_its(server, tmp_path):
    folder = make_colours(tmp_path / "colours")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["mine.onnx"] = files.pop("model.onnx")
    files["card.toml"] = files["card.toml"].replace(b"model.onnx", b"mine.onnx")
    server.add("someone/colours", {**files, "model.onnx": b"of another model"})
    assert call("hf:someone/colours").exit_code == 0
    assert not server.gets("model.onnx")
    assert load_model("hf:someone/colours").vocabulary.names == ("red", "green", "blue")


def test_what_another_program_fetched_is_checked(server, wd_files, tmp_path):
    from huggingface_hub import hf_hub_download

    server.add("someone/anime", wd_files)
    where = {"cache_dir": tmp_path / "cache", "endpoint": server.address}
    paths = [Path(hf_hub_download("someone/anime", name, **where)) for name in wd_files]
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"x")
        with pytest.raises(ModelError, match=r"is damaged: .*; annotary pull hf:someone/anime"):
            load_model("hf:someone/anime")
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        assert find("hf:someone/anime").card.files[path.name] == digest
    (path.parent / "selected_tags.csv").write_bytes(b"damaged")
    assert "fetched" in call("hf:someone/anime").output
    assert "here already" in call("hf:someone/anime").output


def test_a_commit_that_was_replaced_is_still_checked(server, wd_files):
    path = pull("wd-vit-tagger-v3").directory / "selected_tags.csv"
    name = "hf:SmilingWolf/wd-vit-tagger-v3"
    repository = server.repositories[name.removeprefix("hf:")]
    repository.commits[LATER] = {**wd_files}
    repository.revisions["main"] = LATER
    assert LATER in call(name, "--update").output
    assert "licence apache-2.0" in call(f"{name}@{COMMIT}").output
    path.write_bytes(path.read_bytes().replace(b"1girl", b"1boy!"))
    with pytest.raises(ModelError, match="is damaged"):
        load_model(f"{name}@{COMMIT}")


def test_a_damaged_model_offline_is_called_so(server, monkeypatch):
    path = pull("wd-vit-tagger-v3").directory / "selected_tags.csv"
    path.write_bytes(b"damaged")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = str(call("wd-vit-tagger-v3").exception)
    assert "selected_tags.csv is damaged: sha256" in told
    assert told.endswith("fetches it anew, where HF_HUB_OFFLINE does not forbid it")
    told = str(call("wd-vit-tagger-v3", "--runtime", "torch").exception)
    assert told.startswith("wd-vit-tagger-v3 for torch is not on this machine")


def test_a_repository_of_no_family(server):
    server.add("someone/else", {"weights.bin": b"x"})
    result = call("hf:someone/else")
    assert isinstance(result.exception, UsageError)
    assert "no model in hf:someone/else" in str(result.exception)
    assert "wd: selected_tags.csv with model.onnx" in str(result.exception)
    assert "joytag: top_tags.txt with model.onnx" in str(result.exception)


def test_which_files_are_needed_follows_from_the_runtime(server):
    names = ("model.onnx", "model.safetensors", "config.json", "top_tags.txt")
    files = {name: name.encode() for name in names}
    server.add("someone/joytag", files)
    result = call("hf:someone/joytag", "--runtime", "onnxruntime")
    assert isinstance(result.exception, ModelError)  # there is no network in it
    assert not server.gets("model.safetensors")
    files["config.json"] = b'{"image_size": 32}'
    assert call("hf:someone/joytag", "--runtime", "torch", "--update").exit_code == 0
    assert server.gets("model.safetensors")
    server.add("someone/half", {name: files[name] for name in ("model.onnx", "top_tags.txt")})
    result = call("hf:someone/half", "--runtime", "torch")
    assert "cannot be used: nothing in it runs in torch" in str(result.exception)
    server.add("fancyfeast/joytag", {"README.md": b"moved"})
    result = call("joytag")
    assert isinstance(result.exception, UsageError)


def test_names_that_are_none_are_found_before_anything_is_fetched(server):
    for name, kind, message in (
        ("nothing", UnknownName, "unknown model 'nothing'; known: "),
        ("someone/else", UsageError, "of the hub it is hf:someone/else"),
        ("dir:here", UsageError, "nothing to pull"),
        ("hf:one", UsageError, "names no repository"),
    ):
        result = call("wd-vit-tagger-v3", name)
        assert isinstance(result.exception, kind)
        assert message in str(result.exception)
    assert not server.requests


def test_a_shipped_model_is_only_checked(server):
    assert call("starter").output.startswith("starter: here already, recipes/starter at 1.3")
    assert not server.requests


def test_two_processes_and_the_environment(server, tmp_path, photos):
    """What a user sets is respected: HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, in a process of its own."""
    environment = child_environment() | {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "home"),
    }
    for name in ("HF_HUB_CACHE", "HF_HUB_DISABLE_TELEMETRY"):
        environment.pop(name, None)

    def run(*arguments, **more):
        command = [sys.executable, "-m", "annotary", *arguments]
        return subprocess.run(
            command, env=environment | more, capture_output=True, text=True, check=False
        )

    server.cuts["model.onnx"] = [100]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "annotary", "pull", "wd-vit-tagger-v3"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate()
        assert (process.returncode, err) == (0, ""), err
        assert str(tmp_path / "home" / "hub") in out
    assert len([line for line in server.gets("model.onnx") if "bytes=" not in line]) == 1
    photos(1)
    tagged = run("tag", "photos", "--model", "wd-vit-tagger-v3", HF_HUB_OFFLINE="1")
    assert tagged.returncode == 0, tagged.stderr
    missing = run("tag", "photos", "--model", "wd-swinv2-tagger-v3", HF_HUB_OFFLINE="1")
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert "annotary pull wd-swinv2-tagger-v3" in missing.stderr
    assert all("SmilingWolf" in line for line in server.requests)  # and nothing else was asked


def test_the_card_of_joytag_has_the_hash_of_the_published_tags():
    if not TOP_TAGS.is_file():
        pytest.skip("JoyTag's list of tags is not beside the repository")
    card = read_card(weights.known()["joytag"])
    data = TOP_TAGS.read_bytes()
    assert card.files["top_tags.txt"] == hashlib.sha256(data).hexdigest()
    assert card.sizes["top_tags.txt"] == len(data)
