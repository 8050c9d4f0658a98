"""Text from files and devices as it is shown: none of it acts on what stands around it."""

from __future__ import annotations

import unicodedata
from typing import Any

# More than the longest reason that folding gives, less than what hides the rest of a page.
LONGEST = 2000
# Spaces that end a line in one place or another; a report shows every text on one.
LINE_ENDS = str.maketrans(dict.fromkeys("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029", " "))
# Format characters that words are written with: soft hyphen, zero-width joiners.
IN_WORDS = "\u00ad\u200c\u200d"
# First-strong isolate, pop directional isolate (Unicode Standard Annex 9).
ISOLATE, POP = "\u2068", "\u2069"
RIGHT_TO_LEFT = frozenset(("R", "AL", "AN"))


def shown(value: Any) -> Any:
    """A document whose texts, names of fields included, can stand in a page as they are.

    Example:
        >>> shown({"name": "a\\0b", "threads": 2})
        {'name': 'a\\\\u0000b', 'threads': 2}
    """
    if isinstance(value, dict):
        return {shown(key): shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return isolated(shortened(plain(value), LONGEST)) if isinstance(value, str) else value


def plain(text: str) -> str:
    """`text` on one line; control characters, marks of direction and the like as escapes.

    Example:
        >>> plain("net\\x1b[31m\\u202egpj.exe\\nend")
        'net\\\\u001b[31m\\\\u202egpj.exe end'
    """
    text = text.translate(LINE_ENDS)
    if text.isprintable():
        return text
    return "".join(f"\\u{ord(letter):04x}" if _acts(letter) else letter for letter in text)


def shortened(text: str, letters: int) -> str:
    """Long texts lose their middle: what tells files apart is mostly at the end.

    Example:
        >>> shortened("mobilenet_v2_224_float32", 12)
        'mobi…float32'
    """
    if len(text) <= letters:
        return text
    start = letters // 3
    return f"{text[:start]}…{text[start + 1 - letters :]}"


def isolated(text: str) -> str:
    """`text` with its direction kept to itself, where it has one other than left to right."""
    if text.isascii() or not any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in text):
        return text
    return f"{ISOLATE}{text}{POP}"


def _acts(letter: str) -> bool:
    """Whether it does something, or is no character: control, format, half a surrogate pair."""
    if letter in IN_WORDS:
        return False
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs") or ord(letter) & 0xFFFE == 0xFFFE
