"""The fenced blocks of a Markdown file, as the tests of README.md and CONTRIBUTING.md take them out."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the heading it stands under, its text and its first line's number."""

    language: str
    heading: str
    text: str
    line: int


def code_blocks(path: Path) -> list[Block]:
    """All fenced blocks of `path`, in order."""
    found: list[Block] = []
    heading, fence, lines, start = "", None, [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if fence is not None:
            if line == "```":
                found.append(Block(fence, heading, "\n".join(lines) + "\n", start))
                fence, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("```"):
            fence, start = line[3:].strip(), number + 1
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert fence is None, f"the block of line {start} is never closed"
    return found


def shell_commands(text: str) -> list[str]:
    """The commands of a shell block, without comments, one line each."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = (re.sub(r"(^|\s)#\s.*", "", line) for line in joined.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]
