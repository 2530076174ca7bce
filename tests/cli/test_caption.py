"""`annotary caption`, `annotary ask` and `annotary match` as a user meets them, with small models of BLIP's kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from annotary.cli import annotary as program
from annotary.errors import AnnotaryError, UsageError
from annotary.records import Annotation, from_line
from tests.blip import KINDS, make_blip
from tests.cli.test_tag import annotary, complaint

pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
NAMES = ("boats.jpg", "cat.jpg", "coffee.jpg")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("blip")
    return {kind: f"dir:{make_blip(root / kind, kind)}" for kind in KINDS}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(EXAMPLES / name, folder)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command in this process, which has torch already: exit code, what was printed, what was told."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        exact = ("--precision", "fp32", "--threads", "1") if "--model" in arguments else ()
        told = [str(argument) for argument in (*arguments, *exact)]
        code = program.main(told, prog_name="annotary", standalone_mode=False)
        printed = capfd.readouterr()
        return int(code or 0), printed.out, printed.err

    return call


def records(text: str) -> dict[str, Annotation]:
    found = [from_line(line) for line in text.splitlines()]
    return {Path(one.image).name: one for one in found if isinstance(one, Annotation)}


class TestCaption:
    def test_a_line_for_each_image(self, run, models, pictures):
        code, out, err = run("caption", pictures, "--model", models["captioning"])
        assert code == 0
        assert [Path(line.partition(": ")[0]).name for line in out.splitlines()] == list(NAMES)
        assert all(line.rsplit(" ", 1)[1].startswith("0.") for line in out.splitlines())
        assert "3 captioned in" in err

    def test_captions_are_judged_and_written(self, run, models, pictures, tmp_path):
        output = tmp_path / "captions.jsonl"
        command = ("caption", pictures, "--model", models["captioning"], "--captions", "4")
        command = (*command, "--matcher", models["itm"], "--output", output, "--quiet")
        assert run(*command)[0] == 0
        found = records(output.read_text())
        assert set(found) == set(NAMES)
        for record in found.values():
            matches = [caption.match for caption in record.captions]
            assert len(matches) > 1
            assert matches == sorted(matches, reverse=True)
            assert record.sources["captions"] == "captioning@unversioned+itm@unversioned"
        before = output.read_bytes()
        assert run(*command)[0] == 0
        assert output.read_bytes() == before
        with pytest.raises(AnnotaryError, match="prompt"):
            run(*command, "--prompt", "a photo of")

    def test_captions_beside_images(self, run, models, pictures):
        command = ("caption", pictures, "--model", models["captioning"], "--format", "caption")
        assert run(*command)[0] == 0
        assert all((pictures / name).with_suffix(".caption").read_text() for name in NAMES)

    def test_what_is_drawn_does_not_depend_on_the_other_images(self, run, models, pictures):
        drawn = ("--nucleus", "0.9", "--captions", "2", "--json", "--quiet")
        together = records(run("caption", pictures, "--model", models["captioning"], *drawn)[1])
        alone = run("caption", pictures / "cat.jpg", "--model", models["captioning"], *drawn)[1]
        texts = [caption.text for caption in records(alone)["cat.jpg"].captions]
        assert texts == [caption.text for caption in together["cat.jpg"].captions]

    def test_what_makes_no_sense(self, run, models, pictures):
        command = ("caption", pictures, "--model", models["captioning"])
        for told, match in (
            (("--captions", "3", "--beams", "2"), "--captions must be at most beams"),
            (("--nucleus", "2"), "--nucleus must be in"),
            (("--min-match", "0.5"), "--min-match needs --matcher"),
            (("--matcher", models["vqa"]), "vqa@unversioned does not judge texts"),
            (("--prompt", "a " * 30), "allow more, or say less"),
            (("--max-length", "100"), "must be at most 64"),
            (("--output", "vectors.npy"), "cannot hold captions|no captions|captions"),
        ):
            with pytest.raises(UsageError, match=match):
                run(*command, *told)
        with pytest.raises(UsageError, match="annotary pull blip-image-captioning-base"):
            run("caption", pictures, "--model", models["vqa"])
        assert not Path("vectors.npy").exists()


class TestAsk:
    def test_the_question_behind_the_image(self, run, models, pictures):
        image = pictures / "cat.jpg"
        code, out, err = run("ask", image, "what is this?", "--model", models["vqa"])
        assert code == 0
        assert out.startswith(f"{image}: what is this? ")
        assert "1 asked in" in err

    def test_answers_to_choose_from(self, run, models, pictures):
        questions = ("--question", "Is it RED?", "--question", "how many?")
        command = ("ask", pictures, *questions, "--model", models["vqa"], "--json", "--quiet")
        found = records(run(*command, "--answers", "yes, no, two cats", "--top", "2")[1])
        for record in found.values():
            assert [answer.question for answer in record.answers] == ["Is it RED?"] * 2 + [
                "how many?"
            ] * 2
            assert {answer.text for answer in record.answers} <= {"yes", "no", "two cats"}
        Path("answers.txt").write_text("yes\nno\n\ntwo cats\n")
        again = records(run(*command, "--answers-file", "answers.txt", "--top", "2")[1])
        assert again == found

    def table(self, pictures, suffix=".csv"):
        path = pictures.parent / f"questions{suffix}"
        rows = [
            {"image": "pictures/cat.jpg", "question": "what?", "answers": "yes, no"},
            {"image": "pictures/cat.jpg", "question": "why?", "answers": ""},
            {"image": "pictures/missing.jpg", "question": "who?", "answers": ""},
            {"image": "pictures/boats.jpg", "question": "how many?", "answers": ""},
        ]
        if suffix == ".csv":
            lines = ["image,question,answers"]
            lines += [f'{row["image"]},{row["question"]},"{row["answers"]}"' for row in rows]
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
    def test_the_images_of_a_table(self, run, models, pictures, suffix):
        """A missing one is a failure, and all others are asked."""
        table = self.table(pictures, suffix)
        command = ("ask", "--questions-from", table, "--model", models["vqa"])
        code, _, err = run(*command, "--output", "answers.jsonl")
        assert code == 1
        assert "2 asked in" in err
        assert "1 failed" in err
        found = records(Path("answers.jsonl").read_text())
        asked = {name: [one.question for one in record.answers] for name, record in found.items()}
        assert asked == {"cat.jpg": ["what?", "why?"], "boats.jpg": ["how many?"]}
        assert found["cat.jpg"].answers[0].text in ("yes", "no")
        failed = Path("failures.jsonl").read_text()
        assert "missing.jpg" in failed

    def test_images_that_are_not_in_the_table_and_rows_that_are_of_no_image(
        self, run, models, pictures
    ):
        table = self.table(pictures)
        command = ("ask", pictures, "--questions-from", table, "--model", models["vqa"])
        code, out, err = run(*command)
        assert code == 1
        lines = {Path(line.partition(": ")[0]).name: line for line in out.splitlines()}
        assert set(lines) == set(NAMES)
        assert "(no questions)" in lines["coffee.jpg"]
        assert "pictures/missing.jpg: " in err
        assert "no image of this name is among what was given" in err
        assert "nothing was asked: 1" in err

    def test_a_stopped_run_goes_on_and_other_questions_are_refused(self, run, models, pictures):
        command = ("ask", pictures, "--question", "what?", "--model", models["vqa"])
        command = (*command, "--output", "answers.jsonl")
        assert "2 asked" in run(*command, "--include-files", "[b-ca]*[st].jpg")[2]
        code, _, err = run(*command)
        assert code == 0
        assert "1 asked" in err
        assert "2 done before" in err
        with pytest.raises(AnnotaryError, match="questions"):
            run(*command, "--question", "why?")

    def test_what_makes_no_sense(self, run, models, pictures):
        cat, boats = pictures / "cat.jpg", pictures / "boats.jpg"
        for told, match in (
            ((cat,), 'say a question behind the image, such as "how many dogs'),
            ((cat, boats), "is a file or folder; with several images say --question TEXT"),
            (("--question", "what?"), "name at least one image"),
            ((cat, "--question", " "), "a question is empty"),
            ((cat, "what?", "--answers", ","), "holds no answer"),
            ((cat, "what?", "--answers", "a", "--answers-file", "b"), "not both"),
            ((cat, "what?", "--answers-file", "b"), "No such file"),
            (("--questions-from", "b.csv"), "No such file"),
            ((cat, "what?", "--answers", "a " * 60), "is longer than vqa@unversioned reads"),
        ):
            with pytest.raises(UsageError, match=match):
                run("ask", *told, "--model", models["vqa"])
        with pytest.raises(UsageError, match="annotary pull blip-vqa-base"):
            run("ask", cat, "what?")

    def test_long_questions_are_told(self, run, models, pictures):
        command = ("ask", pictures / "cat.jpg", "is it " * 40, "--model", models["vqa"])
        assert "longer than vqa@unversioned reads, so the end is left out" in run(*command)[2]


class TestMatch:
    def test_texts_behind_the_image(self, run, models, pictures):
        image = pictures / "cat.jpg"
        code, out, _ = run("match", image, "a cat", "two dogs", "--model", models["itm"])
        assert code == 0
        assert out.startswith(f"{image}: a cat 0.")
        assert "; two dogs 0." in out
        assert out.count("(cosine ") == 2

    def test_pairs_of_a_table(self, run, models, pictures):
        rows = "image,text\ncat.jpg,a cat\ncat.jpg,a dog\nboats.jpg,boats\nno.jpg,nothing\n"
        (pictures / "pairs.csv").write_text(rows)
        command = ("match", "--texts-from", pictures / "pairs.csv", "--model", models["itm"])
        code, out, err = run(*command, "--json")
        assert code == 1
        found = records("\n".join(line for line in out.splitlines() if '"error"' not in line))
        texts = {name: [one.text for one in record.matches] for name, record in found.items()}
        assert texts == {"cat.jpg": ["a cat", "a dog"], "boats.jpg": ["boats"]}
        assert "1 failed" in err

    def test_what_makes_no_sense(self, run, models, pictures):
        with pytest.raises(UsageError, match="say a text behind the image"):
            run("match", pictures, "--model", models["itm"])
        with pytest.raises(UsageError, match="a text to match is empty"):
            run("match", pictures, "--text", "", "--model", models["itm"])
        with pytest.raises(UsageError, match="annotary pull blip-itm-base-coco"):
            run("match", pictures, "--text", "a cat")


class TestSecondLook:
    def test_the_best_of_a_search_are_ordered_anew(self, run, models, pictures):
        """The order is that of the logit with the cosine added, of the second model."""
        pytest.importorskip("pyarrow")
        from annotary.models import load_model
        from annotary.runtime import RuntimeOptions
        from annotary.tasks import Picture
        from annotary.tasks.matching import SecondLook

        command = ("search", "a cat", "--in", pictures, "--model", models["itm"], "--json")
        command = (*command, "--no-reduce")
        first = [json.loads(line) for line in run(*command)[1].splitlines()]
        assert "match" not in first[0]
        _, out, _ = run(*command, "--rerank", models["itm"])
        found = [json.loads(line) for line in out.splitlines()]
        assert {row["image"] for row in found} == {row["image"] for row in first}
        cosines = {row["image"]: row["score"] for row in first}
        assert all(row["score"] == cosines[row["image"]] for row in found)
        model = load_model(
            models["itm"], RuntimeOptions(threads=1, precision="fp32", runtime="torch")
        )
        looked = {}
        from annotary import images, preprocess
        from annotary.records import Item

        spec = model.card.preprocess
        for row in found:
            pixels = images.decode(Path(row["image"]).read_bytes(), alpha=spec.alpha).pixels
            batch = preprocess.to_batch([preprocess.fit(pixels, spec)], spec)
            picture = Picture(Item(row["image"], data=b"x"), *pixels.shape[1::-1])
            (parts,) = SecondLook(model, "a cat").annotate([picture], batch)
            looked[row["image"]] = parts["match"]
            assert row["match"] == pytest.approx(parts["match"].score, abs=1e-4)
        sums = [looked[row["image"]].logit + looked[row["image"]].cosine for row in found]
        assert sums == sorted(sums, reverse=True)

    def test_lines_show_both_and_top_is_kept_to(self, run, models, pictures):
        command = ("search", "a cat", "--in", pictures, "--model", models["itm"])
        _, out, _ = run(*command, "--rerank", models["itm"], "--top", "2")
        assert len(out.splitlines()) == 2
        assert len(out.splitlines()[0].split()) == 4

    def test_what_makes_no_sense(self, run, models, pictures):
        command = ("search", "--in", pictures, "--model", models["itm"])
        with pytest.raises(UsageError, match="search for words alone"):
            run(*command, "--image", pictures / "cat.jpg", "--rerank", models["itm"])
        with pytest.raises(UsageError, match="search for words alone"):
            run(*command, "a cat", "--minus", "a dog", "--rerank", models["itm"])
        with pytest.raises(UsageError, match="does not judge texts"):
            run(*command, "a cat", "--rerank", models["vqa"])


def test_a_process_of_its_own_tells_what_to_pull(pictures):
    told = complaint(annotary("ask", pictures / "cat.jpg", "what is this?"))
    assert told.startswith("annotary: starter@")
    assert "annotary pull blip-vqa-base" in told
