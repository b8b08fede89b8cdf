"""Pages made of parts of README.md and of the scripts of examples/, which stay in their files alone."""

import ast

from website.pages import ROOT, fenced, sections


def part(heading: str) -> str:
    """Raises: KeyError that names the headings that there are."""
    found = sections((ROOT / "README.md").read_text(encoding="utf-8"))
    if heading not in found:
        raise KeyError(f"README.md has no section {heading!r}; it has {[*found]}. Name it in website/readme.py")
    return found[heading].strip()


WHERE_TO_GO = """
## Where to go

| | |
|---|---|
| [First steps](docs/first_steps.md) | from `pip install` to the embeddings of your own folder |
| [Your own images](docs/own_images.md) | photos, satellite images, X-rays, microscopy; formats, views, large sets |
| [In Python](docs/python.md) | your arrays, networks, losses, methods, optimizers |
| [Which method](docs/choosing.md) | and [a page for each](docs/methods/index.md) |
| [Questions](docs/faq.md) | collapse, a loss that stands still, small batches, NaN, channels, image sizes |
| [Protocols](docs/protocols.md) | how each number is measured, and with which paper's it can be compared |
"""


def pages() -> dict[str, str]:
    """Page -> its Markdown, whose links are relative to the repository."""
    return {
        "index.md": home(),
        "own_images.md": f"# From images to a backbone in use\n\n{part('Your own images')}\n",
        "python.md": python(),
        "run_files.md": f"# What a run writes\n\n{part('What a run writes')}\n",
        "gpus.md": f"# GPUs and TPU pods\n\n{part('GPUs and TPU pods')}\n",
    }


def home() -> str:
    taken = [f"## {heading}\n\n{part(heading)}" for heading in ("Two commands", "Results")]
    return "\n\n".join([part(""), WHERE_TO_GO.strip(), *taken]) + "\n"


def python() -> str:
    lines = ["# In Python", part("In Python"), "[The reference](docs/reference/ssl_jax.md) has every public function."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(code)) or path.stem).split("\n\n")[0].replace("\n", " ")
        lines += [f"## {path.name}", about, fenced(code, "python")]
    return "\n\n".join(lines) + "\n"
