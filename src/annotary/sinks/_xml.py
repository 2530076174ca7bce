"""Text in XML: what is no part of the markup, and what XML cannot hold at all."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write: control characters and lone surrogates."""

_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_TO_ESCAPE = re.compile(rf"{NOT_XML.pattern}|\\(?=u[0-9a-f]{{4}})")
"""What is escaped: also a backslash that would look like the beginning of an escape."""


def content(text: str) -> str:
    """A text between tags; what XML cannot hold becomes an escape, as in JSON."""
    return escape(_held(text), {"\r": "&#13;"})


def attribute(text: str) -> str:
    """A text as the value of an attribute, with its quotes; as `content` has it."""
    return quoteattr(_held(text))


def recovered(text: str) -> str:
    """The text that `content` or `attribute` was given, of what a parser has found."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _held(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
