"""Class names as pictures write them: as long as there is room, in letters that a font here has."""

import logging
import textwrap
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import matplotlib
from matplotlib.font_manager import findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

from iadd_lab.plots.style import FAMILIES

logger = logging.getLogger(__name__)

_LETTER = 0.057  # inches: the width of a small letter


def readable(classes: Sequence[str]) -> list[str]:
    """Class names on a line each, in letters that fonts here have; "class 3" where that tells nothing.

    Of WordNet's synonyms the first one stays, where it is enough. Within `house_style`: fonts with letters
    that the usual one has not join the common look.
    """
    first = [name.partition(",")[0] for name in classes]
    told = [short if first.count(short) == 1 else name for short, name in zip(first, classes, strict=True)]
    told = [" ".join(name.replace("_", " ").split()) for name in told]
    missing = _find_fonts(frozenset().union(*told))
    matplotlib.rcParams["font.family"] = FAMILIES
    kept = ["".join(letter for letter in name if letter not in missing).strip() for name in told]
    return [name if name and kept.count(name) == 1 else f"class {n}" for n, name in enumerate(kept)]


@cache  # so that what is missing is said once
def _find_fonts(letters: frozenset[str]) -> frozenset[str]:
    """Let fonts of this machine join the look until it has these letters; returns those that none has."""
    # Controls, and what turns the direction of writing, are never shown.
    hidden = {letter for letter in letters if unicodedata.category(letter)[0] == "C"}
    missing = letters.difference(hidden, " ", *(_letters_of(findfont(family)) for family in FAMILIES))
    found = sorted(findSystemFonts() if missing else [], key=lambda path: ("Regular" not in path, path))
    for path in sorted(found, key=lambda path: len(missing & _letters_of(path)), reverse=True):
        if missing & _letters_of(path):
            fontManager.addfont(path)
            FAMILIES.append(FT2Font(path).family_name)
            missing -= _letters_of(path)
    if missing:
        sentence = "No font here has %s, left out of class names in pictures: install one, as Noto Sans CJK."
        logger.warning(sentence, "".join(sorted(missing)[:20]))
    return missing | hidden


@cache
def _letters_of(path: str) -> frozenset[str]:
    """What a font can write; nothing where it can't be read, or comes in one size."""
    with suppress(RuntimeError, OSError):
        font = FT2Font(path)
        return frozenset(map(chr, font.get_charmap() if font.scalable else ()))
    return frozenset()


def fit_name(name: str, width: float, *, lines: int = 2) -> str:
    """A readable name in at most `lines` lines of small letters in `width` inches; … where it is longer."""
    wide = any(unicodedata.east_asian_width(letter) in "FW" for letter in name)  # as Chinese, twice as wide
    letters = max(int(width / _LETTER / (1 + wide)), 3)
    words = textwrap.wrap(name, letters, break_long_words=False)
    if len(words) > lines:
        words[lines - 1] += "…"
    return "\n".join(shorten(line, letters) for line in words[:lines])


def shorten(name: str, letters: int = 12) -> str:
    """A readable name, or its first letters and … where it is longer than `letters`."""
    return name if len(name) <= letters else f"{name[: letters - 1].rstrip()}…"
