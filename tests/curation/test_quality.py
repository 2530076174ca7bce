from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from pyarrow import parquet

from annotary.cli._curate_quality import command
from annotary.curation import _languages
from annotary.curation._languages import MIN_LETTERS, Identifier, enough_letters, identifier
from annotary.curation.looks import Look, LooksStep, look_at
from annotary.curation.quality import (
    BLURRED,
    BRIGHT,
    DARK,
    ELONGATED,
    EMPTY_TEXT,
    FEW_CHARACTERS,
    FEW_WORDS,
    FLAT,
    MANY_CHARACTERS,
    MANY_WORDS,
    NO_TEXT,
    OTHER_LANGUAGE,
    PRESETS,
    SMALL,
    UNKNOWN_LANGUAGE,
    UNREADABLE,
    Limits,
    QualityOptions,
    QualityStep,
    filter_quality,
    look_reason,
    text_reason,
)
from annotary.curation.steps import StepOptions, read_report
from annotary.errors import MissingExtra, OutputError, UnknownName, UsageError
from annotary.sources import SourceOptions
from tests.curation.test_looks import jpeg, photo, tar_of, written

ONE = StepOptions(workers=1)
ENGLISH = "A dog runs across the wet grass with a ball in its mouth"
GERMAN = "Ein Hund läuft mit einem Ball im Maul über das nasse Gras"
GOOD = Look(b"", 1, 1, 100, 640, 480, 900.0, 120.0, 50.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, NO_TEXT),
        ("", EMPTY_TEXT),
        (" \n\t", EMPTY_TEXT),
        ("  a b ", FEW_CHARACTERS),
        ("12345 7", FEW_WORDS),
        ("one two three", None),
        ("one two three four five", MANY_WORDS),
        ("one two " + "x" * 40, MANY_CHARACTERS),
    ],
)
def test_reasons_of_texts(text: str | None, why: str | None) -> None:
    limits = Limits(min_words=3, max_words=4, min_characters=5, max_characters=40)
    assert text_reason(text, limits) == (why, None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"width": None, "height": None, "error": "gone"}, UNREADABLE),
        ({"width": 255}, SMALL),
        ({"width": 256}, None),
        ({"height": 1921}, ELONGATED),
        ({"height": 1920}, None),
        ({"brightness": 9.9}, DARK),
        ({"brightness": 240.1}, BRIGHT),
        ({"contrast": 4.9}, FLAT),
        ({"sharpness": 99.9}, BLURRED),
        ({"sharpness": 1.0, "brightness": 1.0, "width": 1}, SMALL),
    ],
)
def test_reasons_of_pictures(changes: dict[str, Any], why: str | None) -> None:
    limits = Limits(
        min_size=256,
        max_aspect=3.0,
        min_sharpness=100.0,
        min_brightness=10.0,
        max_brightness=240.0,
        min_contrast=5.0,
    )
    assert look_reason(GOOD._replace(**changes), limits) == why


@given(st.text(max_size=60))
def test_without_limits_only_empty_texts_have_a_reason(text: str) -> None:
    why, language = text_reason(text, Limits())
    assert why == (None if text.strip() else EMPTY_TEXT)
    assert language is None


@given(st.text(max_size=200), st.integers(1, 20), st.integers(0, 20))
def test_words_and_characters_are_held_to_their_limits(text: str, least: int, more: int) -> None:
    limits = Limits(min_words=least, max_words=least + more)
    why, _ = text_reason(text, limits)
    is_good = bool(text.strip()) and least <= len(text.split()) <= least + more
    assert (why is None) == is_good


def test_presets_have_the_numbers_of_their_sources() -> None:
    datacomp = QualityOptions(preset="datacomp").limits()
    assert (datacomp.min_size, datacomp.max_aspect) == (200, 3.0)
    assert (datacomp.min_words, datacomp.min_characters) == (3, 6)
    assert datacomp.languages == ("en",)
    assert datacomp.min_sharpness is None
    basic = QualityOptions(preset="basic").limits()
    assert basic.languages is None
    assert basic.min_sharpness == PRESETS["basic"]["min_sharpness"]


def test_options_stand_above_a_preset_and_0_takes_a_limit_away() -> None:
    chosen = QualityOptions(preset="datacomp", min_size=64, max_aspect=0, languages="any").limits()
    assert chosen.min_size == 64
    assert chosen.max_aspect is None
    assert chosen.languages is None
    assert chosen.min_words == 3


@pytest.mark.parametrize(
    "options",
    [
        {"min_size": -1},
        {"max_aspect": 0.5},
        {"min_sharpness": float("nan")},
        {"min_language_score": 1.5},
        {"min_words": 9, "max_words": 3},
        {"min_brightness": 300},
        {"min_contrast": 128},
        {"preset": "best"},
        {"unknown_language": "maybe"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        QualityOptions(**options)


def test_an_option_against_the_preset_is_told() -> None:
    with pytest.raises(UsageError, match="--min-words 3 and --max-words 2"):
        QualityOptions(preset="basic", max_words=2).limits()


@pytest.mark.parametrize("told", [{"unknown_language": "drop"}, {"min_language_score": 0.5}])
def test_options_of_languages_need_languages(told: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="only with --languages"):
        QualityOptions(min_words=2, **told).limits()
    assert QualityOptions(languages="en", **told).limits().languages == ("en",)


def test_languages() -> None:
    limits = QualityOptions(languages="en").limits()
    assert text_reason(ENGLISH, limits) == (None, "en")
    assert text_reason(GERMAN, limits) == (OTHER_LANGUAGE, "de")
    both = QualityOptions(languages=" DE, en").limits()
    assert both.languages == ("de", "en")
    assert text_reason(GERMAN, both) == (None, "de")


def test_languages_of_short_texts_are_unknown_and_kept_unless_asked() -> None:
    kept = QualityOptions(languages="en").limits()
    dropped = QualityOptions(languages="en", unknown_language="drop").limits()
    for text in ("Ein Hund", "12345 67890 12345 67890", "IMG_2034.JPG"):
        assert text_reason(text, kept) == (None, "unknown")
        assert text_reason(text, dropped) == (UNKNOWN_LANGUAGE, "unknown")


def test_a_language_that_is_not_probable_enough_is_unknown() -> None:
    limits = QualityOptions(languages="en", min_language_score=1.0).limits()
    assert text_reason(GERMAN, limits) == (None, "unknown")


def test_other_codes_and_unknown_ones() -> None:
    assert identifier().codes("nb,zh-CN") == {"no", "zh"}
    with pytest.raises(UnknownName, match="'xx'"):
        QualityOptions(languages="en,xx").limits()


def test_letters_of_dense_scripts_count_more() -> None:
    assert enough_letters("a" * MIN_LETTERS)
    assert not enough_letters("a" * (MIN_LETTERS - 1) + "1234567890")
    assert enough_letters("草の上を犬が走る")
    assert not enough_letters("犬")


@given(st.text(max_size=80))
def test_any_text_has_a_language_and_a_score(text: str) -> None:
    language, score = identifier().language(text)
    assert language in identifier().languages
    assert 0.0 <= score <= 1.0


@given(
    st.lists(st.one_of(st.text(max_size=60), st.sampled_from([ENGLISH, GERMAN, "OLD", "П" * 900])))
)
def test_many_texts_at_once_are_told_as_each_alone(texts: list[str]) -> None:
    together = identifier().of_all(texts)
    assert len(together) == len(texts)
    for text, (language, score) in zip(texts, together, strict=True):
        alone, known = identifier().language(text)
        assert score == pytest.approx(known, abs=1e-4)
        # Where two languages are as good as equally likely, rounding decides.
        assert language == alone or known < 0.5


def test_a_model_of_another_make_is_asked_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _languages._model()

    class Without:
        labels = real.labels
        classify = staticmethod(real.classify)

    class Other(Without):
        classify = staticmethod(lambda text: ("en", 0.5))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    assert _languages._Walker.of(real) is not None
    assert _languages._Walker.of(Without()) is None
    assert _languages._Walker.of(Other()) is None
    monkeypatch.setattr(_languages, "_model", Without)
    told = Identifier().of_all([GERMAN, "", ENGLISH])
    assert [language for language, _ in told][::2] == ["de", "en"]


def test_without_the_package_the_message_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(MissingExtra, match=r"annotary\[curate\]"):
        Identifier()


def pairs(folder: Path) -> Path:
    """A table with a row for each reason, and a good one."""
    folder.mkdir(parents=True, exist_ok=True)
    good = photo(1, (320, 240))
    pictures = {
        "good": good,
        "blurred": good.filter(ImageFilter.GaussianBlur(6)),
        "dark": ImageEnhance.Brightness(good).enhance(0.05),
        "small": good.resize((64, 48)),
        "long": photo(2, (900, 210)),
        "flat": Image.new("RGB", (300, 300), (128, 128, 128)),
    }
    for name, picture in pictures.items():
        (folder / f"{name}.jpg").write_bytes(jpeg(picture))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0\0")
    texts = dict.fromkeys([*pictures, "broken", "gone"], ENGLISH)
    rows = [{"id": name, "image": f"{name}.jpg", "caption": text} for name, text in texts.items()]
    rows += [
        {"id": "no text", "image": "good.jpg", "caption": None},
        {"id": "few words", "image": "good.jpg", "caption": "photograph"},
        {"id": "german", "image": "good.jpg", "caption": GERMAN},
    ]
    return written(folder / "pairs.parquet", rows)


REASONS = {
    "good": None,
    "blurred": BLURRED,
    "dark": DARK,
    "small": SMALL,
    "long": ELONGATED,
    "flat": FLAT,
    "broken": UNREADABLE,
    "gone": UNREADABLE,
    "no text": NO_TEXT,
    "few words": FEW_WORDS,
    "german": OTHER_LANGUAGE,
}

ALL = QualityOptions(preset="basic", languages="en")


def test_rows_are_dropped_with_reasons_that_are_counted(tmp_path: Path) -> None:
    result = filter_quality([pairs(tmp_path / "data")], tmp_path / "out", ALL, steps=ONE)
    left = parquet.read_table(tmp_path / "out" / "pairs.parquet")
    assert left.column("id").to_pylist() == ["good"]
    assert left.column_names == ["id", "image", "caption"]
    expected = [why for why in REASONS.values() if why]
    assert result.total.dropped == {why: expected.count(why) for why in set(expected)}
    assert (result.total.rows_in, result.total.rows_out) == (11, 1)
    report = read_report(tmp_path / "out")
    assert report["dropped"] == result.total.dropped
    assert report["language de"] == 1
    told = (tmp_path / "out" / "_failures.jsonl").read_text()
    assert "broken.jpg" in told
    assert "gone.jpg" in told


def test_dropped_rows_can_stay_with_their_reason(tmp_path: Path) -> None:
    result = filter_quality(
        [pairs(tmp_path / "data")], tmp_path / "out", replace(ALL, keep_dropped=True), steps=ONE
    )
    rows = parquet.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert {row["id"]: row["dropped"] for row in rows} == REASONS
    assert result.total.dropped == {}
    assert result.total.beside["marked unreadable image"] == 2
    with pytest.raises(UsageError, match="'dropped' already"):
        filter_quality(
            [tmp_path / "out"], tmp_path / "again", replace(ALL, keep_dropped=True), steps=ONE
        )


def test_texts_alone_read_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr("annotary.curation.looks.look_at", refuse)
    table = pairs(tmp_path / "data")
    result = filter_quality([table], tmp_path / "out", QualityOptions(min_words=2), steps=ONE)
    assert result.total.dropped == {NO_TEXT: 1, FEW_WORDS: 1}
    # And of rows that the text drops, no image is read.
    rows = [{"image": "good.jpg", "caption": ""}]
    empty = written(tmp_path / "data" / "empty.parquet", rows)
    options = QualityOptions(min_words=2, min_size=10)
    result = filter_quality([empty], tmp_path / "other", options, steps=ONE)
    assert result.total.dropped == {EMPTY_TEXT: 1}


def test_images_alone_need_no_text(tmp_path: Path) -> None:
    table = written(tmp_path / "images.parquet", [{"image": jpeg(photo())}, {"image": b"none"}])
    result = filter_quality([table], tmp_path / "out", QualityOptions(need_image=True), steps=ONE)
    assert result.total.dropped == {UNREADABLE: 1}
    assert parquet.read_table(tmp_path / "out" / "images.parquet").num_rows == 1


def test_what_was_measured_serves_other_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, looks = pairs(tmp_path / "data"), tmp_path / "looks"
    first = filter_quality([table], tmp_path / "first", ALL, looks_folder=looks, steps=ONE)
    assert parquet.read_table(tmp_path / "first" / "pairs.parquet")["id"].to_pylist() == ["good"]
    assert parquet.read_table(looks / "pairs.parquet").num_rows == first.total.rows_in

    def refuse(*_: Any) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr("annotary.curation.looks.look_at", refuse)
    again = filter_quality(
        [table], tmp_path / "again", QualityOptions(min_size=200), looks_folder=looks, steps=ONE
    )
    assert again.total.dropped == {SMALL: 1, UNREADABLE: 2}


def test_a_row_with_several_texts_stays_when_one_is_good(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"captions": ["one", "one two three"]},
        {"captions": ["one", "two"]},
        {"captions": []},
        {"captions": None},
    ]
    table = written(tmp_path / "lists.parquet", rows)
    result = filter_quality([table], tmp_path / "out", QualityOptions(min_words=3), steps=ONE)
    assert result.total.dropped == {FEW_WORDS: 1, NO_TEXT: 2}
    kinds = [{"texts": [["alt", "one"], ["title", "one two three"]]}, {"texts": [["alt", "one"]]}]
    table = written(tmp_path / "kinds.parquet", kinds)
    result = filter_quality([table], tmp_path / "kinds", QualityOptions(min_words=3), steps=ONE)
    assert result.total.dropped == {FEW_WORDS: 1}


def test_texts_of_a_dictionary_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    words = pa.array(["one two", "one", None]).dictionary_encode()
    parquet.write_table(pa.table({"text": words}), tmp_path / "d.parquet")
    result = filter_quality(
        [tmp_path / "d.parquet"], tmp_path / "out", QualityOptions(min_words=2), steps=ONE
    )
    assert result.total.dropped == {FEW_WORDS: 1, NO_TEXT: 1}
    (tmp_path / "latin.csv").write_bytes(b"text\ncaf\xe9 au lait\n")
    result = filter_quality(
        [tmp_path / "latin.csv"], tmp_path / "csv", QualityOptions(min_words=2), steps=ONE
    )
    assert result.total.rows_in == 1 or result.failed  # told, whichever way the reader takes


def test_samples_of_tars(tmp_path: Path) -> None:
    members = []
    for number in range(6):
        picture = photo(number) if number % 2 else photo(number).filter(ImageFilter.GaussianBlur(8))
        members += [(f"{number}.jpg", jpeg(picture)), (f"{number}.txt", ENGLISH.encode())]
    tar = tar_of(tmp_path / "shard.tar", members)
    result = filter_quality([tar], tmp_path / "out", ALL, steps=ONE)
    left = parquet.read_table(tmp_path / "out" / "shard.parquet")
    assert left["__key__"].to_pylist() == ["1", "3", "5"]
    # What was written can be filtered again: its images are in the tar.
    again = filter_quality([result.folder], tmp_path / "again", ALL, steps=ONE)
    assert (again.total.rows_in, again.total.rows_out) == (3, 3)


def test_the_result_does_not_depend_on_processes_or_shards(tmp_path: Path) -> None:
    pairs(tmp_path / "data")
    rows = parquet.read_table(tmp_path / "data" / "pairs.parquet").to_pylist()
    for number in range(3):
        written(tmp_path / "data" / f"pairs-{number}.parquet", rows[number::3])
    (tmp_path / "data" / "pairs.parquet").unlink()

    def kept(folder: Path) -> list[str]:
        return sorted(row["image"] for row in parquet.read_table(folder).to_pylist())

    tables = [tmp_path / "data"]
    options = QualityOptions(preset="basic")
    filter_quality(tables, tmp_path / "one", options, steps=ONE)
    filter_quality(tables, tmp_path / "two", options, steps=StepOptions(workers=2))
    for share in ("1/2", "2/2"):
        steps = StepOptions(workers=1, shard=share)
        filter_quality(tables, tmp_path / "shares", options, steps=steps)
    assert kept(tmp_path / "one") == kept(tmp_path / "two") == kept(tmp_path / "shares")
    totals = [read_report(tmp_path / name)["dropped"] for name in ("one", "two", "shares")]
    assert totals[0] == totals[1] == totals[2]


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    encoded = [jpeg(photo(seed, (640, 480))) for seed in range(6)]
    for number in range(12):
        rows = [{"id": f"{number}-{n}", "image": encoded[n % 6]} for n in range(15)]
        written(data / f"{number:02}.parquet", rows)
    arguments = ["curate", "quality", str(data), "--output", "out", "--preset", "basic"]
    arguments += ["--min-words", "0", "--min-characters", "0", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "annotary", *arguments])
    deadline = time.monotonic() + 60
    while len(list(Path("out").glob("*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {
        path.name: path.stat().st_mtime_ns for path in Path("out/_state/parts").glob("*.json")
    }
    assert before
    assert len(before) < 12
    ended = subprocess.run([sys.executable, "-m", "annotary", *arguments], check=False)
    assert ended.returncode == 0
    after = {path.name: path.stat().st_mtime_ns for path in Path("out/_state/parts").glob("*.json")}
    assert {name: after[name] for name in before} == before
    ids = parquet.read_table("out")["id"].to_pylist()
    assert sorted(ids) == sorted(f"{number}-{n}" for number in range(12) for n in range(15))
    assert read_report(Path("out"))["rows_in"] == 180


def test_the_step_can_go_to_other_processes() -> None:
    step = QualityStep(ALL.limits(), LooksStep(source=SourceOptions(retries=7)), Path("looks"))
    again = pickle.loads(pickle.dumps(step))
    assert again == step
    assert json.loads(json.dumps(again.settings())) == again.settings() | {"languages": ["en"]}


def test_other_limits_are_not_mixed_in(tmp_path: Path) -> None:
    table = pairs(tmp_path / "data")
    filter_quality([table], tmp_path / "out", QualityOptions(min_words=2), steps=ONE)
    with pytest.raises(OutputError, match="min_words"):
        filter_quality([table], tmp_path / "out", QualityOptions(min_words=3), steps=ONE)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (QualityOptions(), "nothing is asked"),
        (QualityOptions(min_words=1, text_column="words"), "no column 'words'"),
        (QualityOptions(min_words=1, text_column="id"), "not text"),
        (QualityOptions(min_size=1), "--image-column"),
        (QualityOptions(min_words=1), "--text-column"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is(
    tmp_path: Path, options: QualityOptions, told: str
) -> None:
    table = written(tmp_path / "t.parquet", [{"id": 1, "number": 2.0}])
    with pytest.raises(UsageError, match=told):
        filter_quality([table], tmp_path / "out", options, steps=ONE)
    assert not (tmp_path / "out").exists()


def test_a_broken_table_is_listed_and_the_others_are_done(tmp_path: Path) -> None:
    pairs(tmp_path / "data")
    (tmp_path / "data" / "a-broken.parquet").write_bytes(b"PAR1 no table PAR1")
    result = filter_quality([tmp_path / "data"], tmp_path / "out", ALL, steps=ONE)
    assert result.failed == ("a-broken",)
    assert result.total.rows_out == 1


def test_broken_rows_are_counted_and_looks_stay_in_step(tmp_path: Path) -> None:
    pairs(tmp_path / "data")
    lines = ['{"image": "good.jpg", "caption": "one two"}', "no json", '{"image": "small.jpg"}']
    table = tmp_path / "data" / "lines.jsonl"
    table.write_text("\n".join(lines))
    for measured in (None, tmp_path / "looks"):
        folder = tmp_path / f"out-{measured is None}"
        options = QualityOptions(min_size=200)
        result = filter_quality([table], folder, options, looks_folder=measured, steps=ONE)
        assert result.total.dropped == {SMALL: 1, "broken row": 1}
        assert parquet.read_table(folder / "lines.parquet")["image"].to_pylist() == ["good.jpg"]


def test_looks_of_another_table_are_refused(tmp_path: Path) -> None:
    from annotary.curation.steps import run_step
    from annotary.curation.tables import find_parts

    for folder in ("few", "many"):
        (tmp_path / folder).mkdir()
    few = written(tmp_path / "few" / "t.parquet", [{"image": jpeg(photo())}])
    table = written(tmp_path / "many" / "t.parquet", [{"image": jpeg(photo())}] * 3)
    run_step(LooksStep(), find_parts([few]), tmp_path / "looks", ONE)
    step = QualityStep(Limits(needs_image=True), measured=tmp_path / "looks")
    result = run_step(step, find_parts([table]), tmp_path / "out", ONE)
    assert result.failed == ("t",)
    assert "another table" in result.total.failures[0].message


def test_the_command(tmp_path: Path) -> None:
    table = pairs(tmp_path / "data")
    arguments = [str(table), "--output", "out", "--preset", "basic", "--languages", "en"]
    result = CliRunner().invoke(command, [*arguments, "--workers", "1", "--json"])
    assert result.exit_code == 1  # images that cannot be read
    report = json.loads(result.stdout)
    assert report["rows_out"] == 1
    assert "too blurred" in result.stderr
    kept = CliRunner().invoke(
        command, [str(table), "--output", "kept", "--min-words", "2", "--keep-dropped"]
    )
    assert kept.exit_code == 0
    assert "2 are marked in the column 'dropped'" in kept.stderr
    arguments = [str(table), "--output", "l", "--min-size", "10", "--looks", "looks"]
    looked = CliRunner().invoke(command, arguments)
    assert looked.exit_code == 1
    assert "listed in looks/_failures.jsonl" in looked.stderr
    wrong = CliRunner().invoke(command, [str(table), "--output", "w", "--min-size", "-3"])
    assert isinstance(wrong.exception, UsageError)
    assert str(wrong.exception).startswith("--min-size must not be negative")


PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco" / "images"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not beside the repository")
def test_basic_keeps_photos_and_drops_blurred_and_dark_ones() -> None:
    limits = QualityOptions(preset="basic", min_size=0, max_aspect=0).limits()
    whys: dict[str, list[str | None]] = {"clean": [], "blurred": [], "dark": []}
    for path in sorted(PHOTOS.glob("*.jpg"))[::5]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        changed = {
            "clean": image,
            "blurred": image.filter(ImageFilter.GaussianBlur(0.01 * max(image.size))),
            "dark": ImageEnhance.Brightness(image).enhance(0.1),
        }
        for name, picture in changed.items():
            whys[name].append(look_reason(look_at(jpeg(picture)), limits))
    count = len(whys["clean"])
    assert count > 30
    assert sum(why is not None for why in whys["clean"]) <= 1
    assert whys["blurred"].count(BLURRED) > 0.9 * count
    assert sum(why is not None for why in whys["dark"]) > 0.9 * count
