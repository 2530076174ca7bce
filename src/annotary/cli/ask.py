"""`annotary ask`: ask questions about images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._annotating import Annotating, loaded, model_option, running_options
from annotary.cli._options import SectionedCommand
from annotary.cli._writing import writing_options
from annotary.errors import UsageError

if TYPE_CHECKING:
    from annotary.tasks.answering import Question
    from annotary.tasks.own_texts import OwnTexts


@click.command("ask", cls=SectionedCommand, short_help="Ask questions about images.")
@click.argument("paths", nargs=-1, metavar="PATH... [QUESTION]")
@model_option
@click.option(
    "--question",
    "questions",
    multiple=True,
    metavar="TEXT",
    help="Ask this of every image; may be given several times.",
)
@click.option(
    "--questions-from",
    type=click.Path(path_type=Path),
    metavar="TABLE",
    help="A .csv, .jsonl or .parquet with the columns image and question, and perhaps answers to choose from.",
)
@click.option(
    "--answers",
    metavar="LIST",
    help='Choose from these answers, such as "yes, no", instead of finding words.',
)
@click.option(
    "--answers-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same from a text file with one answer on each line.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of the answers to choose from are told, the best first.",
)
@click.option(
    "--shortlist",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="How many of the answers to choose from are looked at to their end: those that begin the likeliest.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="Tokens that an answer in the model's own words has at most.",
)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Ask questions about images, such as `annotary ask photo.jpg "how many dogs are there?"`.

    With --question or --questions-from all arguments are images; without arguments the images of the table are asked.
    Without --format and --output, the answers are printed. A run that was stopped goes on when the same command is
    given again.
    """
    click.get_current_context().exit(_ask(paths, values))


def _ask(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line
    from annotary.cli._output import tell
    from annotary.cli._texts import told_cut, with_unmet
    from annotary.tasks.answering import ANSWERS, Answering
    from annotary.tasks.writing import Decoding, answerer

    paths, questions, own = _asked(paths, values)
    annotating = Annotating(paths, values)
    annotating.check("answers")
    annotating.pass_items(partial(with_unmet, own=own, table=values["questions_from"]))
    decoding = Decoding(ANSWERS.beams, min_length=1, max_length=values["max_length"])
    found = loaded(values["model"], annotating.runtime)
    task = Answering(
        answerer(found.model),
        questions,
        decoding,
        shortlist=values["shortlist"],
        top=values["top"],
        of_image=own,
    )
    if task.truncated and not values["quiet"]:
        tell(told_cut(task.truncated, task.source))
    settings = {
        "command": "ask",
        "model": task.source,
        "weights": found.weights,
        **task.settings(),
    }
    code = annotating.run([task], settings, ("asking", "asked"), as_line("answers"))
    if task.unasked and not values["quiet"]:
        tell(
            f"of images that are not in {values['questions_from']} nothing was asked: {task.unasked:,}"
        )
    return code


def _asked(
    paths: tuple[str, ...], values: dict[str, Any]
) -> tuple[tuple[str, ...], list[Question], OwnTexts[Question] | None]:
    """The images, what all are asked, and what single ones are asked.

    Raises:
        UsageError: Nothing is asked, or of nothing.
    """
    from annotary.cli._texts import text_behind
    from annotary.tasks.answering import Question, read_questions

    table, texts = values["questions_from"], values["questions"]
    if table is None and not texts:
        paths, texts = text_behind(paths, "question")
    if not paths and table is None:
        raise UsageError("name at least one image, folder, list of images or web address")
    answers = _answers(values)
    own = None if table is None else read_questions(table, answers)
    return paths or (str(table),), [Question(text, answers) for text in texts], own


def _answers(values: dict[str, Any]) -> tuple[str, ...] | None:
    """The answers that may be given, each once; None where the model finds its own words.

    Raises:
        UsageError: The file cannot be read, or there is none.
    """
    from annotary.tasks.label_sets import split_labels

    told, path = values["answers"], values["answers_file"]
    if told is None and path is None:
        return None
    if told is not None and path is not None:
        raise UsageError("say --answers or --answers-file, not both")
    try:
        lines = split_labels(told) if path is None else path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8") from error
    answers = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not answers:
        raise UsageError(f"{path or '--answers'} holds no answer")
    return answers
