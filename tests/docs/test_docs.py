"""The documentation says what the code does: its commands and examples run, and nothing public is left out."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import mailbox
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from email.message import EmailMessage
from pathlib import Path

import click
import pytest
from PIL import Image

import annotary
from annotary import errors, registry, sinks, weights
from annotary.cards import read_card, read_vocabulary
from annotary.pipeline import local
from annotary.records import Annotation, Failure, Item, from_line
from annotary.sinks import SinkOptions
from annotary.sources.folder import IMAGE_SUFFIXES
from annotary.sources.lists import LIST_SUFFIXES
from tests.blip import make_blip
from tests.conftest import child_environment, make_colours
from tests.owl import make_owl
from tests.test_imports import MAY_IMPORT

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
TAG, PYTHON, DESIGN, EXTENDING, CHOOSING, SOURCES, RUNNING = (
    ROOT / "docs" / f"{name}.md"
    for name in ("tag", "python", "design", "extending", "choosing-tags", "sources", "running")
)
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith((".", "build", "dist")) for part in page.relative_to(ROOT).parts)
)
COMMAND = "pip install . && annotary tag examples"
TOLERANCE = 0.02
"""Of scores: platforms decode JPEGs with different libraries."""


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M)
    assert found, f"{page.name} has no block of {language}"
    return found


def output_of(what: str) -> str:
    """The output that the README shows for something."""
    marked = rf"<!-- output of: {re.escape(what)} -->\n```text\n(.*?)```\n<!-- end of output -->"
    (found,) = re.findall(marked, README.read_text("utf-8"), re.S)
    return found


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**child_environment(), **variables}
    if "ANNOTARY_CORE_PYTHON" in os.environ and command[0] != sys.executable:
        del environment["PYTHONPATH"]  # the core install finds its own files
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=300,
    )


def as_installed() -> tuple[list[str], str]:
    """annotary and Python as a user has them: of the core install where `scripts/test` made one."""
    if python := os.environ.get("ANNOTARY_CORE_PYTHON"):
        return [str(Path(python).parent / "annotary")], python
    return [sys.executable, "-m", "annotary"], sys.executable


def flags(command: click.Command) -> set[str]:
    """How the options of a command, and of those in it, are called; both ways of what can be switched off."""
    own = {
        flag
        for option in command.params
        if isinstance(option, click.Option)
        for flag in (*option.opts, *option.secondary_opts)
    }
    inner = ()
    if isinstance(command, click.Group):
        context = click.Context(command)
        inner = [command.get_command(context, name) for name in command.list_commands(context)]
    return own.union(*(flags(one) for one in inner))


def options_in(page: Path) -> set[str]:
    """The options in the tables of a page."""
    cells = [
        line.split("|")[1]
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("| `-")
    ]
    return {flag for cell in cells for flag in re.findall(r"`(-[-\w]+)", cell)} - {"-h", "--help"}


def scores(line: str) -> tuple[str, dict[str, float]]:
    """The image of a printed line, and its tags with their scores."""
    image, _, tags = line.partition(": ")
    pairs = (tag.rpartition(" ") for tag in tags.split(", ") if tag != "(no tags)")
    return image, {name: float(score) for name, _, score in pairs}


# The README


def test_the_command_of_the_readme_prints_what_the_readme_shows(tmp_path):
    assert COMMAND in "".join(blocks(README, "sh"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    result = run([*as_installed()[0], *COMMAND.rpartition("annotary ")[2].split()])
    assert result.returncode == 0, result.stderr
    *shown, counts = output_of("annotary tag examples").splitlines()
    printed = result.stdout.splitlines()
    vocabulary = read_vocabulary(weights.shipped()["starter"])
    thresholds = dict(zip(vocabulary.names, vocabulary.thresholds["balanced"], strict=True))
    assert [scores(line)[0] for line in printed] == [scores(line)[0] for line in shown]
    for said, expected in zip(map(scores, printed), map(scores, shown), strict=True):
        for name in {*said[1], *expected[1]}:
            # A tag that hardly reaches its threshold may miss it on another processor.
            least = thresholds[name] - TOLERANCE
            found = said[1].get(name, least), expected[1].get(name, least)
            assert found[0] == pytest.approx(found[1], abs=2 * TOLERANCE), (said[0], name)
    form = r"(\d+) tagged in \d+\.\d s, \d+\.\d/s"
    assert re.fullmatch(form, counts)
    assert re.fullmatch(form, result.stderr.strip())
    assert counts.split()[0] == result.stderr.split()[0] == str(len(shown))


def test_the_labels_and_the_search_of_the_readme_are_what_is_printed(tmp_path):
    shell = "".join(blocks(README, "sh"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in ("classify", "search"):
        found = re.search(rf"^annotary ({name} .*)$", shell, re.M)
        assert found is not None
        result = run([*as_installed()[0], *shlex.split(found.group(1))])
        assert result.returncode == 0, result.stderr
        shown = output_of(f"annotary {name}").splitlines()
        printed = result.stdout.splitlines()
        # Where two labels are about as good, processors may disagree; the best images and labels are clear.
        if name == "search":
            assert printed[0].split()[-1] == shown[0].split()[-1]
        else:
            pairs = zip(map(scores, printed), map(scores, shown[:-1]), strict=True)
            for (image, said), (expected_image, expected) in pairs:
                assert image == expected_image
                for label, score in expected.items():
                    assert said.get(label, 0.0) == pytest.approx(score, abs=0.1), (image, label)


def test_the_python_of_the_readme_prints_what_the_readme_shows(tmp_path):
    (code,) = blocks(README, "python")
    assert len(code.splitlines()) == 6
    assert "photo.ok" in code
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    result = run([as_installed()[1], "-c", code])
    assert result.returncode == 0, result.stderr

    def parsed(text: str) -> list[tuple[str, list[str]]]:
        lines = (line.split(" ", 1) for line in text.splitlines())
        return [(image, sorted(ast.literal_eval(tags))) for image, tags in lines]

    assert parsed(result.stdout) == parsed(output_of("the Python above"))


def test_the_test_command_of_the_readme_is_the_one_that_is_run():
    pattern = re.compile(r"^## Running the tests\n(.*?)^## ", re.S | re.M)
    (section,) = pattern.findall(README.read_text("utf-8"))
    (command,) = re.findall(r"^```sh\n(.*)\n```$", section, re.M)
    called = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert called[-1] == command
    assert os.access(ROOT / command, os.X_OK)


def test_the_map_of_the_readme_has_every_room():
    (drawn,) = (block for block in blocks(README, "text") if block.startswith("src/annotary/"))
    named = {line.split()[0].rstrip("/") for line in drawn.splitlines()[1:]}
    package = ROOT / "src" / "annotary"
    rooms = {
        path.name
        for path in package.iterdir()
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())
    }
    missing = rooms - named - {"__init__.py", "__main__.py"}
    assert not missing
    for name in named:
        assert any((parent / name).exists() for parent in (package, ROOT)), name


def test_examples_are_small_and_credited():
    listed = (ROOT / "examples" / "CREDITS.md").read_text("utf-8")
    photos = sorted((ROOT / "examples").glob("*.jpg"))
    assert re.findall(r"^\| `(.+?)` ", listed, re.M) == [photo.name for photo in photos]
    assert {path.suffix for path in (ROOT / "examples").iterdir()} == {".jpg", ".md", ".toml"}
    assert sum(photo.stat().st_size for photo in photos) < 500_000
    for photo in photos:
        assert photo.stat().st_size < 100_000
        with Image.open(photo) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 640


# Nothing is left out


@pytest.mark.parametrize("name", registry.names("cli"))
def test_every_command_and_its_options_are_documented(name):
    page = ROOT / "docs" / f"{name}.md"
    text = page.read_text("utf-8")
    assert text.startswith(f"# annotary {name}\n")
    known = flags(registry.load("cli", name).command)
    shared = set().union(*map(options_in, (RUNNING, SOURCES)))
    if name == "tags":  # its `apply` has those of tag.md
        assert known <= options_in(page) | shared | options_in(TAG) | options_in(CHOOSING)
        return
    own = options_in(page) | (options_in(CHOOSING) if name == "tag" else set())
    for part in (ROOT / "docs").glob(f"{name}-*.md"):  # a page for each command of a group
        own |= options_in(part)
        text += part.read_text("utf-8")
    assert own <= known
    if "running.md#options" in text:  # those of all runs are told there
        own |= shared & known
    assert own == known
    assert re.search(r"`-h`.* `--help`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_only_options_and_commands_that_exist_are_shown(page):
    text = page.read_text("utf-8")
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M))
    inline = re.findall(r"`(annotary [a-z][^`]*)`", text) if page != EXTENDING else []
    for line in (*shell.splitlines(), *inline):
        called = re.search(r"\bannotary (.*)", line.partition("#")[0])
        if called is not None:
            name, *arguments = called.group(1).split()
            if name.startswith("-"):
                continue
            assert name in registry.names("cli"), line
            known = flags(registry.load("cli", name).command)
            assert {word for word in arguments if word.startswith("--")} <= known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_only_models_that_exist_are_shown(page):
    named = re.findall(
        r"--(?:model|ensemble) ([a-z][\w,.-]*)(?=[\s`|]|$)", page.read_text("utf-8"), re.M
    )
    named += re.findall(r'annotary\.load\("([a-z][\w.-]*)"\)', page.read_text("utf-8"))
    known = {*weights.known(), "no-such-model"}
    assert {name for names in named for name in names.split(",")} <= known


def test_every_format_and_suffix_is_documented():
    text = RUNNING.read_text("utf-8")
    pages = text + "".join(
        (ROOT / "docs" / f"formats-{kind}.md").read_text("utf-8")
        for kind in ("sidecars", "tables", "boxes")
    )
    for name in sinks.formats():
        assert re.search(rf"^###? {name}$", pages, re.M), name
        assert f"\n| `{name}` |" in text
        for suffix in registry.load("sinks", name).SUFFIXES:
            assert f"`{suffix}`" in text
    inputs = SOURCES.read_text("utf-8")
    (folders,) = re.findall(r"^## Folders\n\n(.*?)\n\n", inputs, re.S | re.M)
    assert set(re.findall(r"`(\.\w+)`", folders)) == IMAGE_SUFFIXES
    for suffix in LIST_SUFFIXES:
        assert f"`{suffix}`" in inputs


def test_every_public_name_and_error_is_documented():
    text = PYTHON.read_text("utf-8")
    for name in annotary.__all__:
        assert f"`{name}`" in text or f"annotary.{name}" in text, name
    for name, found in vars(errors).items():
        if inspect.isclass(found) and issubclass(found, errors.AnnotaryError):
            assert f"\n| `{name}` |" in text, name
    for name in inspect.signature(annotary.Annotator.tag).parameters.keys() - {"self", "images"}:
        assert f"`{name}`" in text, name
    for name in inspect.signature(annotary.load).parameters:
        assert f"`{name}`" in text or f" {name}=" in text, name


def test_the_records_of_the_docs_are_records():
    single, array, failure = blocks(RUNNING, "json")
    dog = from_line(single)
    assert isinstance(dog, Annotation)
    assert len(json.loads(array)) == 2
    assert all(from_line(json.dumps(entry)).ok for entry in json.loads(array))
    assert isinstance(from_line(failure), Failure)
    assert hasattr(errors, from_line(failure).error)
    table = blocks(ROOT / "docs" / "formats-tables.md", "csv")[0]
    sink = sinks.open_sink("csv", Path("out.csv"), SinkOptions())
    sink.write(Item(dog.image, data=b"-"), dog)
    sink.close(complete=True)
    assert Path("out.csv").read_text("utf-8").splitlines() == table.splitlines()


def test_the_counts_of_the_docs_are_those_of_the_examples(tmp_path):
    page = ROOT / "docs" / "tags.md"
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    annotary_command, _ = as_installed()
    for line in blocks(page, "sh")[0].splitlines():
        result = run([*annotary_command, *line.removeprefix("annotary ").split()])
        assert result.returncode == 0, result.stderr
    shown, printed = (text.splitlines() for text in (blocks(page, "text")[0], result.stdout))
    assert printed[0].split(";")[0] == shown[0].split(";")[0]
    # Scores, and tags near their thresholds, are others on other processors.
    assert printed[1].split()[0] == shown[1].split()[0]
    assert printed[1].split()[-1] == shown[1].split()[-1]
    assert len(printed) == len(shown)


# The design


def test_the_table_of_rooms_is_the_one_that_is_tested():
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \| .* \| (.*) ?\|$", DESIGN.read_text("utf-8"), re.M)
    table = {
        room: {"*"} if allowed.strip() == "all" else set(re.findall(r"`(\w+)`", allowed))
        for room, allowed in rows
    }
    assert table == MAY_IMPORT


def test_the_drawing_of_the_threads_is_that_of_the_code():
    drawing = re.findall(r"^    .*feeder.*\n.*$", local.__doc__ or "", re.M)
    assert drawing
    assert drawing[0] in DESIGN.read_text("utf-8")


# Examples


@pytest.fixture
def published(tmp_path: Path) -> dict[str, Path]:
    """Small networks in the place of published ones, by name."""
    kinds = {"image-captioning-base": "captioning", "vqa-base": "vqa", "itm-base-coco": "itm"}
    made = {
        f"blip-{name}": make_blip(tmp_path / "models" / kind, kind) for name, kind in kinds.items()
    }
    made["owlv2-base-patch16-ensemble"] = make_owl(tmp_path / "models" / "owl", "owlv2")
    return made


def test_the_python_of_the_docs_runs(photos, colours, published):
    folder = photos(3)
    for name in ("logo.png", "shelf.jpg"):
        Image.new("RGB", (200, 300), (200, 40, 40)).save(folder.parent / name)
    for code in blocks(PYTHON, "python"):
        if "classify" not in code:
            code = code.replace('"starter"', repr(f"dir:{colours}"))
        for name, place in published.items():
            code = code.replace(repr(name).replace("'", '"'), repr(f"dir:{place}"))
        result = run([sys.executable, "-W", "error", "-c", code])
        assert result.returncode == 0, f"{code}\n{result.stderr}"


@pytest.fixture
def extras(tmp_path: Path) -> dict[str, str]:
    """The package of docs/extending.md, as pip would install it."""
    site = tmp_path / "site"
    site.mkdir()
    for code in blocks(EXTENDING, "python"):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None
        (site / name.group(1)).write_text(code, encoding="utf-8")
    project, card = blocks(EXTENDING, "toml")
    metadata = tomllib.loads(project)["project"]
    about = site / f"annotary_extras-{metadata['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {metadata['name']}\nVersion: {metadata['version']}\n"
    )
    (about / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in metadata["entry-points"].items()
        )
    )
    model = tmp_path / "brightness"
    model.mkdir()
    (model / "card.toml").write_text(card)
    (model / "tags.csv").write_text(blocks(EXTENDING, "text")[-1])
    return {"PYTHONPATH": os.pathsep.join((str(site), child_environment()["PYTHONPATH"]))}


def call(extras: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-W", "error", "-m", "annotary", *arguments], **extras)


def test_the_format_of_the_docs_works_and_continues(extras, photos, colours):
    folder = photos(4)
    command = ("tag", folder.name, "--output", "tags.sqlite", "--model", f"dir:{colours}")
    command = (*command, "--threshold", "0")
    first = call(extras, *command, "--include-files", "*[01].png")
    assert first.returncode == 0, first.stderr
    (folder / "bad.png").write_bytes(b"")
    second = call(extras, *command)
    assert second.returncode == 1, second.stderr
    assert "2 tagged" in second.stderr
    assert "2 done before; 1 failed" in second.stderr
    with_other = call(extras, *command, "--top", "1")
    assert with_other.returncode == 2
    assert "top was not said, now 1" in with_other.stderr
    database = sqlite3.connect("tags.sqlite")
    assert database.execute("SELECT count(*) FROM images").fetchone() == (4,)
    assert database.execute("SELECT count(*) FROM tags").fetchone() == (12,)
    database.close()
    Path("file").write_bytes(b"")
    broken = call(extras, *command[:2], "--output", "file/x.db", "--model", f"dir:{colours}")
    assert broken.returncode == 2
    assert broken.stderr.startswith("annotary: cannot write file/x.db")


def test_the_source_the_family_and_the_command_of_the_docs_work(extras, photos):
    folder = photos(2)
    Image.new("RGB", (20, 20), "black").save(folder / "0.png")
    Image.new("RGB", (20, 20), "white").save(folder / "1.png")
    with contextlib.closing(mailbox.mbox("letters.mbox")) as box:
        for name in ("0.png", "1.png"):
            letter = EmailMessage()
            letter["Subject"] = "A picture"
            letter.set_content("Look!")
            letter.add_attachment((folder / name).read_bytes(), "image", "png", filename=name)
            box.add(letter)
    tagged = call(extras, "tag", "letters.mbox", "--model", "dir:brightness", "--quiet")
    assert tagged.returncode == 0, tagged.stderr
    lines = dict(map(scores, tagged.stdout.splitlines()))
    assert lines == {"letters.mbox/0.2": {"dark": 1.0}, "letters.mbox/1.2": {"bright": 1.0}}
    Path("empty.mbox").write_bytes(b"")
    empty = call(extras, "tag", "empty.mbox", "--model", "dir:brightness")
    assert empty.returncode == 2
    assert "no images in empty.mbox: looked for mails with pictures" in empty.stderr
    large = call(extras, "tag", "letters.mbox", "--model", "dir:brightness", "--max-bytes", "9")
    assert large.returncode == 1
    assert "larger than 9 bytes" in large.stderr
    listed = call(extras, "vocabulary", "dir:brightness")
    assert listed.stdout.splitlines() == ["dark", "bright"]
    assert "vocabulary" in call(extras, "--help").stdout


def test_the_card_of_the_docs_is_a_card(tmp_path):
    page = ROOT / "docs" / "models.md"
    (card,) = blocks(page, "toml")
    folder = make_colours(tmp_path / "model")
    (folder / "card.toml").write_text(card)
    table = next(block for block in blocks(page, "text") if block.startswith("name,category"))
    (folder / "tags.csv").write_text(table)
    assert read_card(folder).id == "my-model@1.0"
    assert read_vocabulary(folder).thresholds["precise"] == (0.72, 0.70)


# All pages


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(.+?)\] - \d{4}-\d\d-\d\d$", text, re.M)
    assert versions[0] == annotary.__version__
    assert len(versions) == len(re.findall(r"^## ", text, re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        linked = (page.parent / place).resolve() if place else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, target


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "index.md"
    linked = set(re.findall(r"^\| \[.*?\]\((.+?)\) \|", index.read_text("utf-8"), re.M))
    pages = {page.relative_to(index.parent).as_posix() for page in index.parent.rglob("*.md")}
    assert pages - {"index.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_no_place_of_one_machine(page):
    text = page.read_text("utf-8")
    assert not re.findall(r"(?<![\w.:/*])/(?:home|work|tmp|opt|root|Users|mnt|var)/\S*", text)
    assert not re.findall(r"index-url|https?://\S*(?:registry|pypi|npmjs|/simple)\S*", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_fits_the_page(page):
    is_code = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        is_code ^= line.startswith("```")
        is_prose = not (is_code or line.startswith(("|", "<!--", "  ")) or "](" in line)
        assert not is_prose or len(line) <= 120, f"{page.name}:{number}"
