"""The command lines of the documentation, as a reader would copy them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^ {4}(?:\.venv/bin/)?ssl_jax (.*)$", re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The arguments of each line of a page that begins with ssl_jax, without its comment. Lines that stand for several
    commands, with [brackets] or dots, are left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in COMMAND.findall(text)]
    return [one for one in found if not any(word.startswith("[") or word == "..." for word in one)]


def scripts(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
