"""Docstrings as Markdown: an extension of griffe, which mkdocstrings reads the code with.

Docstrings here name arguments, fields and what is raised in lines of their own, "rows: as many as images.". Markdown
would join these lines to one paragraph.
"""

import re
from typing import Any

import griffe

LABEL = re.compile(r"(Args|Returns|Raises|Yields|Source|Sources|Attributes|Example|Examples):(.*)")
NAMED = re.compile(r"[`*a-z_][\w`*]*(, [`*\w]+)*: ")


def markdown(text: str) -> str:
    """The docstring with a paragraph or a bullet for each thing that it names."""
    lines: list[str] = []
    in_section = False  # below "Args:" alone in its line, whose indented lines are a list
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        label = LABEL.fullmatch(line)
        if fenced:
            lines.append(line)
        elif label:
            in_section = not label[2]
            lines += ["", f"**{label[1]}**{':' + label[2] if label[2] else ''}", *([""] if in_section else [])]
        elif in_section and line.startswith("  "):
            item = line[2:]
            lines.append(f"    {item.strip()}" if item.startswith(" ") else f"- {item}")
        else:
            in_section = in_section and not line
            ended = bool(lines) and lines[-1].endswith((".", ":", ";"))
            lines += ["", line] if NAMED.match(line) and ended else [line]
    return "\n".join(lines)


class MarkdownDocstrings(griffe.Extension):
    """Makes Markdown of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
