"""Markdown of the repository as pages of the site: which page a file becomes, its links, its sections and tables."""

import functools
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
LINK = re.compile(r"\]\((?![a-z]+:|#)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
NAMED_AS_FILE = re.compile(r"\[[\w./-]+\.md" + LINK.pattern)


def page_of(path: str) -> str:
    """The page, relative to the site, of a path that is relative to the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if re.fullmatch(r"notebooks/[\w-]+\.(ipynb|png)", path):
        return path.replace(".ipynb", ".md")
    return PAGES.get(path.rstrip("/")) or f"source/{path}.md"


def linked(text: str, folder: str) -> Iterator[str]:
    """The paths, relative to the repository, to which a text of this folder of the repository links."""
    for match in LINK.finditer(text):
        yield posixpath.normpath(posixpath.join(folder, match["path"]))


def relink(text: str, folder: str, page: str) -> str:
    """The text with each link to a file of the repository replaced by one to its page, under the page's title where
    the link was called as the file.

    folder: the text's own, relative to the repository, "docs". page: that on which the text stands, "methods/aim.md".
    """

    def path_of(match: re.Match[str]) -> str:
        return posixpath.normpath(posixpath.join(folder, match["path"]))

    def entitle(match: re.Match[str]) -> str:
        return f"[{title(path_of(match)) or match['path']}]({match['path']}{match['anchor'] or ''})"

    def to_page(match: re.Match[str]) -> str:
        there = posixpath.relpath(page_of(path_of(match)), posixpath.dirname(page) or ".")
        return f"]({there}{match['anchor'] or ''})"

    return LINK.sub(to_page, NAMED_AS_FILE.sub(entitle, text))


@functools.cache
def title(path: str) -> str:
    """The first heading of a Markdown file of the repository, or "" where there is none."""
    file = ROOT / path
    found = re.search(r"^# (.+)", file.read_text(encoding="utf-8"), re.MULTILINE) if file.is_file() else None
    return found[1] if found else ""


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
    """Of each table of a Markdown text that has a row of this name in its first cell, alone or with a mark: its head
    and these rows, as one Markdown table each."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, rule, *rows = table.splitlines()
        own = [row for row in rows if row.split("|")[1].split()[:1] == [name]]
        if own:
            found.append("\n".join([head, rule, *own]))
    return found
