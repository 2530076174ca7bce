"""Captions as words: what Stanford's PTBTokenizer makes of them, as the published numbers of COCO are counted.

COCO's evaluation calls ``PTBTokenizer -preserveLines -lowerCase`` of Stanford CoreNLP 3.4.1, a Java program, and leaves
out a list of punctuation (pycocoevalcap/tokenizer/ptbtokenizer.py). These are its rules for what stands in captions,
written down anew and compared with its output: all of 8,370 captions of Flickr8k and COCO come apart alike, and so do
3,992 of 4,000 lines of odd pieces put together by chance. Addresses of the web with brackets, abbreviations that keep
their full stop only within a sentence, and characters of other scripts may not. Quirks of the reference are kept:
brackets become ``-lrb-`` and count as words, because the list of punctuation has them in capitals, and so do ``!!`` and
``&``.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(
    [*("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"), *".?!,:-;", "--", "..."]
)
"""Tokens that are left out, as COCO's evaluation lists them."""

_ABBREVIATIONS = (
    "adj adm adv apr ariz assn asst aug ave bhd bldg blvd brig bros calif capt cmdr co col colo comdr"
    " conn corp cos ct dec dept dr est etc feb fla fri ft gen gov hon inc ind jan jr jul jun kan lt ltd"
    " maj mar messrs mich minn mon mr mrs ms mt neb nev nov oct okla penn ph.d pres prof pvt rd rep reps"
    " rev sen sens sep sept sgt sq sr st supt tel tenn thu thurs tue tues univ va vs wed wis wyo"
)
"""What keeps its full stop wherever it stands. Others, such as "Mass.", do so only in the middle of a sentence."""

_PLAIN = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201b": "'", "`": "'", "\u00b4": "'",
        "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"',
        "\u2013": " -- ", "\u2014": " -- ", "\u2026": "...", "\u00a0": " ",
        "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u00ad": None, "\u20ac": "$", "\u00a3": "#", "\ufeff": None,
    }
)  # fmt: skip
_BRACKETS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"
}  # fmt: skip

_NOT = re.compile(r"(?<=\w)(n't)(?!\w)")
_ENDING = re.compile(r"(?<=\w)('(?:s|re|ve|ll|d|m))(?!\w)")
_TWO_WORDS = (
    (re.compile(r"\bcannot\b"), "can not"),
    (re.compile(r"\bgonna\b"), "gon na"),
    (re.compile(r"\bgotta\b"), "got ta"),
    (re.compile(r"\bwanna\b"), "wan na"),
    (re.compile(r"\bgimme\b"), "gim me"),
    (re.compile(r"\blemme\b"), "lem me"),
    (re.compile(r"(?<!\w)'t(is|was)\b"), r"'t \1"),
    (re.compile(r"(?<=\w)'n'(?=\w)"), " 'n' "),
    (re.compile(r"\by'(?=all\b)"), "y' "),
    (re.compile(r"(:\d\d)(am|pm)\b"), r"\1 \2"),
)
_TOKEN = re.compile(
    r"""
    https?://[^\s<>"]*[^\s<>".,;:!?')\]}]          # addresses of the web
    | [\w.+-]+@\w+(?:\.\w+)+                       # of mail
    | </?[a-z][^<>\s]*>                            # tags
    | [:;]-?[()]+                                  # smiling faces
    | (?:[a-z]\.)+[a-z]\b(?![.'-])                 # u.s.a
    | (?<![\w.])(?:[a-z]\.)+(?!\w)                 # u.s., p.m., initials
    | (?<![\w.-])(?:ABBREVIATIONS)\.(?!\w)         # mr.
    | (?<![\w.-])nos?\.(?=\s*\d)                   # no. 10
    | (?<!\w)[-+]?\d*(?:[.,:/]?\d+)+(?!-?\w)       # 1,000  3:45  .5  1/2
    | '\d\ds(?!\w)                                 # '90s
    | n't(?!\w) | '(?:s|re|ve|ll|d|m|t)(?!\w)      # what was parted above
    | 'n' | y'(?=\s)
    | o'clock | ma'am | [a-z]'[a-z]{2,}(?:-\w+)*   # o'reilly, d'etat
    | @\w+ | \#[a-z_]\w* | c\+\+ | at&t | r&b
    | \w+(?:[-/.]\w+)*                             # t-shirt, black/white
    | \.{2,} | -{2,} | [!?]{2,}
    | \S
    """.replace("ABBREVIATIONS", "|".join(re.escape(one) for one in _ABBREVIATIONS.split())),
    re.VERBOSE,
)


def caption_tokens(caption: str) -> list[str]:
    """The words of a caption, in lower case and without punctuation."""
    text = caption.translate(_PLAIN).lower()
    text = _ENDING.sub(r" \1", _NOT.sub(r" \1", text))
    for pattern, parted in _TWO_WORDS:
        text = pattern.sub(parted, text)
    found = (_written(token) for token in _TOKEN.findall(text))
    return [token for token in found if token not in PUNCTUATION]


def _written(token: str) -> str:
    """A token as the tokenizer writes it; quotation marks become the plainest one, as they are left out anyway."""
    if token in _BRACKETS:
        return _BRACKETS[token]
    if token[-1] in "()" and token[0] in ":;":
        return token.replace("(", "-lrb-").replace(")", "-rrb-")
    if token == '"':
        return "''"
    if token.startswith("--"):
        return "--"
    if token.startswith(".."):
        return "..."
    return token
