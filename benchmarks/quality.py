"""What the measures of pictures tell apart, and how often languages are told rightly.

    python -m benchmarks.quality --photos ../shared/data/coco ../shared/data/flickr8k
    python -m benchmarks.quality --stamps usr/share/tuxpaint/stamps --captions ../shared/data/flickr8k/index.jsonl
    python -m benchmarks.quality --stamps usr/share/tuxpaint/stamps --lingua --fasttext lid.176.ftz --captions ...

Photos are blurred (Gaussian, by a share of the longer side), darkened and washed out; of each kind it is told how many
a preset drops. `--stamps` is the folder of Debian's package tuxpaint-stamps-default, with sentences in 70 languages;
`--captions` is JSON Lines with lists of English captions. `--lingua` and `--fasttext` compare with the packages
lingua-language-detector and fasttext-predict, on a sample.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

from annotary.curation._languages import ALIASES, enough_letters, identifier
from annotary.curation.looks import Look, look_at, sharpness, working_grey
from annotary.curation.quality import PRESETS, QualityOptions, look_reason
from annotary.images import from_pillow

Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    """Measure what is named, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, nargs="+", default=[], help="folders of good photos")
    parser.add_argument("--preset", default="basic", choices=list(PRESETS))
    parser.add_argument("--stamps", type=Path, help="folder of tuxpaint's stamps")
    parser.add_argument("--captions", type=Path, help="JSON Lines with English captions")
    parser.add_argument("--lingua", action="store_true", help="compare with lingua")
    parser.add_argument("--fasttext", type=Path, metavar="MODEL", help="compare with fastText")
    options = parser.parse_args()
    if options.photos:
        show_photos(options.photos, options.preset)
    if options.stamps:
        captions = [] if options.captions is None else english(options.captions)
        show_languages(options.stamps, captions)
        if options.lingua or options.fasttext is not None:
            show_rivals(options.stamps, captions[:4000], options.lingua, options.fasttext)


def blurred(share: float) -> Change:
    """A Gaussian blur with a standard deviation of this share of the longer side."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(share * max(image.size)))


def darker(factor: float) -> Change:
    """All values times a factor."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def washed_out(share: float) -> Change:
    """A mixture with white, of which this is the share."""
    return lambda image: Image.blend(image, Image.new("RGB", image.size, "white"), share)


def smaller(side: int) -> Change:
    """The longer side at this many pixels."""

    def reduce(image: Image.Image) -> Image.Image:
        scale = side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        return image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image

    return reduce


CHANGES: dict[str, Change] = {
    "as they are": lambda image: image,
    "JPEG of quality 30": lambda image: image,
    "reduced to 256 pixels": smaller(256),
    "reduced to 128 pixels": smaller(128),
    "blurred by 0.25 % of the longer side": blurred(0.0025),
    "blurred by 0.5 %": blurred(0.005),
    "blurred by 1 %": blurred(0.01),
    "blurred by 2 %": blurred(0.02),
    "darkened to 0.5": darker(0.5),
    "darkened to 0.2": darker(0.2),
    "darkened to 0.1": darker(0.1),
    "darkened to 0.05": darker(0.05),
    "washed out to 0.5": washed_out(0.5),
    "washed out to 0.1": washed_out(0.9),
    "washed out to 0.05": washed_out(0.95),
}


def show_photos(folders: Sequence[Path], preset: str) -> None:
    """Print what of changed photos a preset drops, without regard to their size."""
    limits = QualityOptions(**{**PRESETS[preset], "min_size": 0}).limits()
    for folder in folders:
        paths = sorted(folder.rglob("*.jpg"))
        print(f"\n{len(paths):,} photos of {folder.name}\n")
        print("| photos | sharpness: 1 %, median | brightness | contrast | dropped | why |")
        print("|---|---|---|---|---|---|")
        pictures = [Image.fromarray(from_pillow(Image.open(path))) for path in paths]
        for name, change in CHANGES.items():
            quality = 30 if name.startswith("JPEG") else 90
            looks = [look_at(_jpeg(change(picture), quality)) for picture in pictures]
            whys = [look_reason(look, limits) for look in looks]
            count = {why: whys.count(why) for why in dict.fromkeys(whys) if why}
            told = ", ".join(f"{why} {number:,}" for why, number in count.items())
            share = sum(count.values()) / len(looks)
            numbers = [_values(looks, field) for field in ("sharpness", "brightness", "contrast")]
            low = np.percentile(numbers[0], 1)
            middle = [f"{np.median(one):.0f}" for one in numbers]
            row = (name, f"{low:.0f}, {middle[0]}", *middle[1:], f"{share:.1%}", told)
            print("| " + " | ".join(row) + " |")
        _show_pieces(pictures)


def _show_pieces(pictures: Sequence[Image.Image]) -> None:
    """Print how many blurred photos are found at a limit that one good photo in a hundred fails."""
    greys = [[working_grey(np.asarray(change(one))) for one in pictures] for change in _PAIR]
    measures = {"the sharpest piece": sharpness, "the whole picture": _whole_sharpness}
    for name, measure in measures.items():
        good, spoilt = ([measure(grey) for grey in group] for group in greys)
        limit = np.percentile(good, 1)
        found = np.mean([value < limit for value in spoilt])
        print(f"\nblurred by 0.5 % and found by the sharpness of {name}: {found:.1%}")


_PAIR: tuple[Change, Change] = (lambda image: image, blurred(0.005))


def _whole_sharpness(grey: npt.NDArray[np.uint8]) -> float:
    """The variance of the Laplacian of a picture, without pieces."""
    values = grey.astype(np.int16)
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * values[1:-1, 1:-1]).var())


def _values(looks: Sequence[Look], field: str) -> list[float]:
    return [float(getattr(look, field)) for look in looks]


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def stamps(folder: Path) -> Iterator[tuple[str, str]]:
    """Languages and sentences: the first line of a file is English, the others say their language."""
    for file in sorted(folder.rglob("*.txt")):
        lines = file.read_text("utf-8", "replace").splitlines()
        if lines and lines[0].strip():
            yield "en", lines[0].strip()
        for line in lines[1:]:
            found = re.match(r"([a-z]{2,3})(?:_[A-Z]{2})?(?:@\w+)?\.utf8=(.*\S)", line)
            if found is not None:
                yield ALIASES.get(found[1], found[1]), found[2].strip()


def english(file: Path) -> list[str]:
    """The captions of JSON Lines."""
    with file.open(encoding="utf-8") as lines:
        return [text for line in lines for text in json.loads(line).get("captions") or ()]


def show_languages(folder: Path, captions: Sequence[str]) -> None:
    """Print how many languages are told rightly, by the length of texts, and how fast."""
    known_by = identifier()
    told = list(stamps(folder))
    known = [(language, text) for language, text in told if language in known_by.languages]
    languages = {language for language, _ in known}
    print(f"\n{len(known):,} sentences in {len(languages)} languages that are known\n")
    print("| letters | sentences | told rightly | English ones told | others told to be English |")
    print("|---|---|---|---|---|")
    groups = ((1, 10), (10, 20), (20, 30), (30, 50), (50, 1000))
    told_as = known_by.of_all([text for _, text in known])
    found = [
        (language, said[0], letters(text))
        for (language, text), said in zip(known, told_as, strict=True)
    ]
    for least, most in groups:
        rows = [(true, said) for true, said, count in found if least <= count < most]
        english = [said == "en" for true, said in rows if true == "en"]
        others = [said == "en" for true, said in rows if true != "en"]
        rightly = np.mean([true == said for true, said in rows])
        print(
            f"| {least} to {most - 1} | {len(rows):,} | {rightly:.1%} | {np.mean(english):.1%} | "
            f"{np.mean(others):.2%} |"
        )
    _show_each(found, 20)
    if captions:
        started = time.process_time()
        said = known_by.of_all([text for text in captions if enough_letters(text)])
        seconds = time.process_time() - started
        print(f"\n{len(said):,} captions, {len(said) / seconds:,.0f} a second and core\n")
        print("| English with a score of at least | " + " | ".join(_SCORES) + " |")
        print("|---|" + "---|" * len(_SCORES))
        shares = (np.mean([one == "en" and s >= float(at) for one, s in said]) for at in _SCORES)
        print("| captions | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


_SCORES = ("0", "0.1", "0.2", "0.3", "0.5", "0.7")


def show_rivals(
    folder: Path, captions: Sequence[str], with_lingua: bool, fasttext: Path | None
) -> None:
    """Print how py3langid and others do on 12,000 of the sentences, by their number of characters."""
    tellers: dict[str, Callable[[str], str]] = {
        "py3langid": lambda text: identifier().language(text)[0]
    }
    known = set(identifier().languages)
    if with_lingua:
        lingua = import_module("lingua")
        every = lingua.LanguageDetectorBuilder.from_all_languages()
        known &= {one.iso_code_639_1.name.lower() for one in lingua.Language.all()} | {"no"}
        for name, detector in (
            ("lingua", every.build()),
            ("lingua, low accuracy", every.with_low_accuracy_mode().build()),
        ):
            tellers[name] = lambda text, detector=detector: (
                str(  # type: ignore[misc]
                    getattr(detector.detect_language_of(text), "iso_code_639_1", None)
                )
                .rpartition(".")[2]
                .lower()
            )
    if fasttext is not None:
        model = import_module("fasttext").load_model(str(fasttext))
        tellers["fastText"] = lambda text: str(model.predict(text)[0][0])[len("__label__") :]
    told = [(_norwegian(language), text) for language, text in stamps(folder)]
    chosen = np.random.default_rng(0).permutation(len(told))[:12_000]
    sample = [told[place] for place in chosen if told[place][0] in known]
    print(
        "\n| | captions a second | told to be English | others told to be English | told rightly |"
    )
    print("|---|---|---|---|---|")
    for name, tell in tellers.items():
        tell(sample[0][1])
        started = time.process_time()
        share = np.mean([tell(text) == "en" for text in captions]) if captions else float("nan")
        speed = len(captions) / max(1e-9, time.process_time() - started)
        said = [_norwegian(tell(text)) for _, text in sample]
        wrong, right = [], []
        for least, most in ((10, 20), (20, 30), (30, 50)):
            rows = [
                (true, found)
                for (true, text), found in zip(sample, said, strict=True)
                if least <= len(text) < most
            ]
            wrong.append(f"{np.mean([found == 'en' for true, found in rows if true != 'en']):.1%}")
            right.append(f"{np.mean([true == found for true, found in rows]):.0%}")
        print(f"| {name} | {speed:,.0f} | {share:.1%} | {', '.join(wrong)} | {', '.join(right)} |")


def _norwegian(language: str) -> str:
    """Both written forms of Norwegian as one: not all tell them apart."""
    return "no" if language in ("nn", "nb") else language


def letters(text: str) -> int:
    """How many letters a text has."""
    return sum(map(str.isalpha, text))


def _show_each(found: Sequence[tuple[str, str, int]], least: int) -> None:
    """Print the share of each language's sentences that are told rightly."""
    shares = {}
    for language in sorted({true for true, _, _ in found}):
        rows = [
            said == language for true, said, count in found if true == language and count >= least
        ]
        if len(rows) >= 20:
            shares[language] = np.mean(rows)
    ordered = sorted(shares.items(), key=lambda one: -one[1])
    print(f"\nof sentences of {least} letters or more, by language: ", end="")
    print(", ".join(f"{language} {share:.0%}" for language, share in ordered))


if __name__ == "__main__":
    main()
