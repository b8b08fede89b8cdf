"""The notebooks as pages: their text, code, what it printed and their pictures."""

import base64
import json
from pathlib import Path
from typing import Any

from website.pages import ROOT, fenced

FOLDER = "notebooks"


def paths() -> list[Path]:
    return sorted((ROOT / FOLDER).glob("*.ipynb"))


def pages() -> list[str]:
    return [f"{FOLDER}/{path.stem}.md" for path in paths()]


def files() -> dict[str, str | bytes]:
    """Pages, whose links are relative to the notebooks, and their pictures, by the paths that they have on the site."""
    found: dict[str, str | bytes] = {}
    for path in paths():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        found |= page(path.stem, notebook["cells"])
    return found


def page(name: str, cells: list[dict[str, Any]]) -> dict[str, str | bytes]:
    """{"notebooks/NAME.md": Markdown, "notebooks/NAME-1.png": a picture, ...}, of the cells of a notebook."""
    parts: list[str] = []
    pictures: dict[str, str | bytes] = {}
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(fenced("".join(output["text"]), "text"))
            elif "image/png" in output.get("data", {}):
                picture = f"{name}-{len(pictures) + 1}.png"
                pictures[f"{FOLDER}/{picture}"] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![what the cell above shows]({picture})")
    title, *others = parts
    note = f"*`notebooks/{name}.ipynb`, made of [{name}.py]({name}.py). It opens in Jupyter and in Colab.*"
    return {f"{FOLDER}/{name}.md": "\n\n".join([title, note, *others]) + "\n", **pictures}
