"""The hub: what is fetched, what goes on after a break, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary import hub
from annotary.errors import ModelError, UsageError
from annotary.hub import Repository
from tests.hub_server import COMMIT, FakeHub, running_hub, serving

CONTENT = bytes(range(256)) * 4000
"""A megabyte."""

REPOSITORY = Repository("owner/name")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(monkeypatch, tmp_path):
    with running_hub(monkeypatch, tmp_path / "cache") as server:
        server.add(
            "owner/name",
            {"model.onnx": CONTENT, "tags.txt": b"a\nb\n", "sub/x": b"x", "a/b/c": b"y"},
        )
        yield server


def pulled(expected=None, **options):
    listing = hub.list_files(REPOSITORY)
    snapshot = hub.fetch(REPOSITORY, listing, expected or {"model.onnx": ""}, **options)
    hub.note(REPOSITORY, snapshot)
    return snapshot


def partial_files(tmp_path):
    return list(tmp_path.rglob("*annotary-part*"))


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("hf:owner/name", "owner/name", "main"),
        ("hf:a/b-c.d@v1.0", "a/b-c.d", "v1.0"),
        ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1"),
        (f"hf:a/b@{COMMIT}", "a/b", COMMIT),
    ],
)
def test_names_of_repositories(text, name, revision):
    repository = Repository.parse(text)
    assert (repository.name, repository.revision) == (name, revision)
    assert str(repository) == text
    assert repository.is_pinned == (revision == COMMIT)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "hf:",
            "hf:name",
            "hf:a/b/c",
            "hf:../x",
            "hf:a/..",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a/b@x y",
        ),
        *("hf:a /b", "hf:/b", "hf:a/b@/x", "hf:a\\b/c", "hf:a/b\n"),
    ],
)
def test_names_that_are_none(text):
    with pytest.raises(UsageError, match=r"names no repository|cannot be a revision"):
        Repository.parse(text)


@given(st.text())
def test_no_name_leaves_the_cache(text):
    with contextlib.suppress(UsageError):
        repository = Repository.parse(text)
        folder = hub._folder(repository)
        assert folder.resolve().parent == folder.parent.resolve()
        assert ".." not in repository.revision.split("/")


def test_a_listing(server):
    listing = hub.list_files(REPOSITORY)
    assert listing.commit == COMMIT
    assert listing.sizes == {"model.onnx": len(CONTENT), "tags.txt": 4, "sub/x": 1}
    assert listing.licence == "apache-2.0"


def test_files_are_fetched_once_and_found_without_a_network(server, monkeypatch):
    told = []
    expected = {"model.onnx": sha256(CONTENT), "tags.txt": ""}
    assert hub.on_disk(REPOSITORY) is None
    first = pulled(expected, progress=lambda *state: told.append(state))
    assert (first.directory / "model.onnx").read_bytes() == CONTENT
    assert (first.directory / "tags.txt").read_bytes() == b"a\nb\n"
    assert not (first.directory / "sub").exists()
    assert first.files == {"model.onnx": sha256(CONTENT), "tags.txt": sha256(b"a\nb\n")}
    assert told[-1] == ("tags.txt", 4, 4)
    assert ("model.onnx", len(CONTENT), len(CONTENT)) in told
    assert pulled(expected).directory == first.directory
    assert len(server.gets("model.onnx")) == len(server.gets("tags.txt")) == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.on_disk(REPOSITORY) == first
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        hub.list_files(REPOSITORY)


def test_the_cache_is_the_hubs_own(server, tmp_path):
    """Other programs find what annotary fetched, and annotary what they fetched."""
    from huggingface_hub import hf_hub_download, scan_cache_dir

    first, cache = pulled(), tmp_path / "cache"
    path = hf_hub_download(
        "owner/name", "model.onnx", revision=COMMIT, cache_dir=cache, local_files_only=True
    )
    assert path == str(first.directory / "model.onnx")
    (found,) = scan_cache_dir(cache).repos
    assert (found.repo_id, found.size_on_disk) == ("owner/name", len(CONTENT))
    (first.directory.parent.parent / hub.RECORD_FILE).unlink()
    assert hub.on_disk(REPOSITORY) is None  # whose commit is nobody's main
    hf_hub_download("owner/name", "tags.txt", cache_dir=cache, endpoint=server.address)
    found = hub.on_disk(REPOSITORY)
    assert (found.directory, found.files) == (first.directory, {})


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path):
    server.cuts["model.onnx"] = [300_000, 200_000]
    assert (pulled().directory / "model.onnx").read_bytes() == CONTENT
    ranges = [line.partition("bytes=")[2] for line in server.gets("model.onnx")]
    assert ranges == ["", "300000-", "500000-"]
    assert not partial_files(tmp_path)


def test_a_download_that_was_stopped_goes_on_with_the_next_pull(server, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(name, done, total):
        if done >= 400_000:
            raise StoppedError

    with pytest.raises(StoppedError):
        pulled(progress=stop)
    (part,) = partial_files(tmp_path)
    here = part.stat().st_size
    assert 400_000 <= here < len(CONTENT)
    assert hub.on_disk(REPOSITORY) is None
    assert (pulled().directory / "model.onnx").read_bytes() == CONTENT
    assert server.gets("model.onnx")[-1].endswith(f"bytes={here}-")
    assert not partial_files(tmp_path)


def test_a_server_without_ranges_begins_anew(server):
    server.no_ranges = True
    server.cuts["model.onnx"] = [300_000]
    assert (pulled().directory / "model.onnx").read_bytes() == CONTENT


def test_a_server_that_is_unwell_for_a_moment(server):
    server.statuses = [503, 429]
    assert (pulled().directory / "model.onnx").read_bytes() == CONTENT


def test_a_server_that_stays_unwell(server):
    server.statuses = [503] * 50
    with pytest.raises(ModelError, match=r"answers 503 for hf:owner/name"):
        pulled()


def test_a_server_that_always_breaks_at_one_place_is_given_up(server):
    server.no_ranges = True
    server.cuts["model.onnx"] = [300_000, 100_000] * 20
    with pytest.raises(ModelError, match="cannot fetch hf:owner/name"):
        pulled()
    assert len(server.gets("model.onnx")) == 1 + hub._ATTEMPTS


def test_a_connection_that_never_holds_is_given_up(server, tmp_path):
    server.cuts["model.onnx"] = [1000] + [0] * 50
    with pytest.raises(ModelError, match=r"cannot fetch hf:owner/name .* annotary pull goes on"):
        pulled()
    assert len(server.gets("model.onnx")) == 1 + hub._ATTEMPTS
    (part,) = partial_files(tmp_path)
    assert part.stat().st_size == 1000


@pytest.mark.parametrize("name", ["model.onnx", "tags.txt"])
def test_a_damaged_file_is_thrown_away_and_fetched_anew(server, tmp_path, name):
    server.damaged = {name}
    with pytest.raises(
        ModelError, match=rf"{name} of hf:owner/name came damaged .* fetches it anew"
    ):
        pulled({name: ""})
    assert not partial_files(tmp_path)
    assert hub.on_disk(REPOSITORY) is None
    server.damaged = set()
    assert (pulled({name: ""}).directory / name).is_file()


def test_another_file_than_expected_is_not_even_fetched(server):
    with pytest.raises(ModelError, match=rf"sha256 {sha256(CONTENT)}, expected {'0' * 64}"):
        pulled({"model.onnx": "0" * 64})
    assert not server.gets("model.onnx")
    with pytest.raises(ModelError, match=r"tags\.txt of .* is another file .* than it should be"):
        pulled({"tags.txt": "0" * 64})  # only git's sha1 of it was known before


def test_what_was_damaged_on_the_disk_is_fetched_anew(server):
    path = pulled().directory / "model.onnx"
    path.write_bytes(b"damaged")
    assert (pulled().directory / "model.onnx").read_bytes() == CONTENT
    assert len(server.gets("model.onnx")) == 2


def test_a_name_stands_for_the_commit_that_was_fetched(server):
    first = pulled()
    later = "b" * 40
    repository = server.repositories["owner/name"]
    repository.commits[later] = {"model.onnx": b"another"}
    repository.revisions["main"] = later
    assert hub.on_disk(REPOSITORY) == first
    second = pulled()
    assert second.commit == later
    assert hub.on_disk(REPOSITORY) == second
    assert hub.on_disk(Repository("owner/name", COMMIT)).directory == first.directory


def test_the_files_of_a_commit_are_known_whatever_name_they_were_fetched_by(server):
    first = pulled()
    repository = server.repositories["owner/name"]
    repository.commits["b" * 40] = {"model.onnx": b"another"}
    assert hub.on_disk(Repository("owner/name", COMMIT)) == first
    repository.revisions["main"] = "b" * 40
    pulled()
    assert hub.on_disk(Repository("owner/name", COMMIT)) == first


def test_nothing_is_noted_before_all_is_here(server):
    hub.fetch(REPOSITORY, hub.list_files(REPOSITORY), {"tags.txt": ""})
    assert hub.on_disk(REPOSITORY) is None


def test_what_is_fetched_later_adds_to_what_is_noted(server):
    assert pulled({"tags.txt": ""}).files.keys() == {"tags.txt"}
    pulled({"model.onnx": ""})
    assert hub.on_disk(REPOSITORY).files.keys() == {"tags.txt", "model.onnx"}


def test_the_cache_itself_tells_checksums(server, tmp_path):
    directory = pulled({"model.onnx": "", "tags.txt": ""}).directory
    large, small = directory / "model.onnx", directory / "tags.txt"
    assert hub.cached_digest(large) == sha256(CONTENT)
    assert hub.cached_digest(small) == sha256(b"a\nb\n")
    large.write_bytes(b"damaged")
    assert hub.cached_digest(large) == sha256(CONTENT)  # what it must have
    small.write_bytes(b"a\nc\n")
    with pytest.raises(ModelError, match=r"tags\.txt is damaged"):
        hub.cached_digest(small)
    (tmp_path / "plain").write_bytes(b"x")  # a cache without links
    assert hub.cached_digest(tmp_path / "plain") == ""


def test_pauses_double_from_the_first_on(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(hub, "_PAUSE", 1.0)
    monkeypatch.setattr(hub.time, "sleep", pauses.append)
    server.cuts["model.onnx"] = [0, 0, 1000, 0, 0]
    pulled()
    assert pauses == [1, 2, 1, 2, 4]


def test_errors_are_one_line_and_say_what_to_do(server, tmp_path):
    cases = {
        Repository("owner/none"): "has no owner/none",
        Repository("owner/name", "v9"): "owner/name has no revision 'v9'",
        Repository(
            "owner/gated"
        ): r"accepted its terms: do so at .*/owner/gated, then set HF_TOKEN",
    }
    server.add("owner/gated", {"a": b"a"}, is_gated=True)
    for repository, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            hub.list_files(repository)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="has not all files of the model"):
        pulled({"missing.bin": ""})


def test_no_network(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ModelError, match=r"cannot fetch hf:owner/name from http://127\.0\.0\.1:9: "
    ):
        hub.list_files(REPOSITORY)


def test_a_full_disk(server, monkeypatch, tmp_path):
    listing = hub.list_files(REPOSITORY)
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match=r"the disk of .* is full: .* HF_HOME names another place"):
        hub.fetch(REPOSITORY, listing, {"model.onnx": ""})
    assert not server.gets("model.onnx")


def test_a_disk_that_fills_on_the_way(server, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "_receive", fail)
    with pytest.raises(ModelError, match="is full"):
        pulled()


def test_a_server_that_is_no_hub(server, monkeypatch):
    monkeypatch.setattr(
        FakeHub, "_about", lambda self, request, *_: self._send(request, 200, b"<p>", {})
    )
    with pytest.raises(ModelError, match="gives no sense for hf:owner/name"):
        hub.list_files(REPOSITORY)


FULL = {"id": "owner/name", "sha": COMMIT, "siblings": []}


@pytest.mark.parametrize(
    "told",
    [
        *({}, [], None, "text", 5),
        *({**FULL, "siblings": held} for held in (5, [5], [{}], [{"rfilename": 5}])),
        {**FULL, "cardData": [1]},
        {**FULL, "sha": 5},
    ],
)
def test_an_answer_of_another_kind_is_one_line(server, monkeypatch, told):
    answer = json.dumps(told).encode()
    monkeypatch.setattr(
        FakeHub, "_about", lambda self, request, *_: self._send(request, 200, answer, {})
    )
    with pytest.raises(ModelError, match=r"gives no (sense|commit) for hf:owner/name") as raised:
        hub.list_files(REPOSITORY)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("licence", "told"),
    [("mit", "mit"), (["mit", "other"], "mit, other"), (5, "5"), ([5], "5"), (None, "")],
)
def test_a_licence_of_any_kind_is_text(server, licence, told):
    server.repositories["owner/name"].licence = licence
    assert hub.list_files(REPOSITORY).licence == told


def test_a_size_that_is_none_is_not_known(server, monkeypatch):
    files = [{"rfilename": "model.onnx", "size": "large"}, {"rfilename": "tags.txt"}]
    answer = json.dumps({**FULL, "siblings": files}).encode()
    monkeypatch.setattr(
        FakeHub, "_about", lambda self, request, *_: self._send(request, 200, answer, {})
    )
    assert hub.list_files(REPOSITORY).sizes == {"model.onnx": 0, "tags.txt": 0}


@pytest.mark.parametrize("commit", ["../../../etc", "", "main"])
def test_a_commit_that_is_none_is_refused(server, commit):
    repository = server.repositories["owner/name"]
    repository.commits[commit] = {"model.onnx": CONTENT}
    repository.revisions["main"] = commit
    with pytest.raises(ModelError, match="gives no commit"):
        hub.list_files(REPOSITORY)


@pytest.mark.parametrize("note", ["", "[]", '{"main": 5}', '{"main": {"commit": "../x"}}'])
def test_a_note_that_is_none_is_as_if_there_were_none(server, note):
    folder = pulled().directory.parent.parent
    (folder / hub.RECORD_FILE).write_text(note)
    assert hub.on_disk(REPOSITORY) is None
    assert pulled().commit == COMMIT
    assert json.loads((folder / hub.RECORD_FILE).read_text())["main"]["commit"] == COMMIT


def test_no_telemetry_is_sent(server):
    pulled()
    assert all("/owner/name" in line for line in server.requests)
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"]


def test_files_in_another_storage_get_no_token(server, monkeypatch):
    """Large files really are elsewhere: the hub leads there, and the token must not go with it."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving() as storage:
        storage.repositories = server.repositories
        storage.cuts["model.onnx"] = [300_000]
        server.storage = storage
        assert (pulled().directory / "model.onnx").read_bytes() == CONTENT
    assert server.authorised
    assert not storage.authorised
    ranges = [line.partition("bytes=")[2] for line in storage.gets("model.onnx")]
    assert ranges == ["", "300000-"]
