"""Markdown of the repository as pages of the site: which page a file becomes, its links, its sections and tables."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
# Files and folders beside docs/ -> their page. Other files that a page links to become pages below source/.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples": "python.md",
}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def page_of(path: str) -> str:
    """The page, relative to the site, of a path that is relative to the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path.rstrip("/")) or f"source/{path}.md"


def linked(text: str, folder: str) -> Iterator[str]:
    """The paths, relative to the repository, to which a text of this folder of the repository links."""
    for match in LINK.finditer(text):
        yield posixpath.normpath(posixpath.join(folder, match[1]))


def relink(text: str, folder: str, page: str) -> str:
    """The text with each link to a file of the repository replaced by one to its page.

    folder: the text's own, relative to the repository, "docs". page: that on which the text stands, "scale/gpus.md".
    """

    def to_page(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        return f"]({posixpath.relpath(page_of(path), posixpath.dirname(page) or '.')}{match[2] or ''})"

    return LINK.sub(to_page, text)


def source_page(path: str) -> str:
    """A page that shows a file of the repository. Raises: OSError if there is none."""
    language = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml"}.get(
        PurePosixPath(path).suffix, "text"
    )
    return f"# {path}\n\n{fenced((ROOT / path).read_text(encoding='utf-8'), language)}\n"


def fenced(code: str, language: str) -> str:
    return f"````{language}\n{code.rstrip()}\n````"


def sections(text: str) -> dict[str, str]:
    """Heading of the second level -> what stands below it; what stands before the first one is at ""."""
    before, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return {"": before, **dict(part.split("\n", 1) for part in parts)}


def rows_of(name: str, text: str) -> list[str]:
    """Of each table of a Markdown text that has a row of this name in its first cell: its head and these rows, as
    one Markdown table each."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, rule, *rows = table.splitlines()
        own = [row for row in rows if row.split("|")[1].strip() == name]
        if own:
            found.append("\n".join([head, rule, *own]))
    return found
