"""The notebooks, made of the scripts beside this file: python notebooks/make.py [NAME ...]

A script has jupytext's percent format. Its notebook begins with its first cell, then has the cells of install.py and
then the others. It is run in an empty folder for its outputs, unless it has outputs of the same code already (--again
runs it nevertheless). Where CITATION.cff names the repository (repository-code), the cell that installs has its
address, and a repository on GitHub gets a badge that opens the notebook in Colab.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
NAMES = ("first_steps", "own_images", "own_method")
WITHOUT_ADDRESS = "file:///content/ssl_jax"  # what install.py has
INSTALLS = "SSL_JAX = "  # in the cell that installs, whose address may differ
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}  # otherwise XLA tells of compilations that take long
TIMEOUT = 1800  # seconds, of a cell
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--again", action="store_true", help="run what has outputs already")
    arguments = parser.parse_args()
    names = arguments.names
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no notebooks {unknown}; there are {', '.join(NAMES)}")
    for name in names or NAMES:
        notebook, path = assemble(name, repository()), FOLDER / f"{name}.ipynb"
        if arguments.again or not (path.exists() and take_outputs(notebook, nbformat.read(path, as_version=4))):
            with tempfile.TemporaryDirectory() as folder:
                execute(notebook, Path(folder))
        nbformat.write(notebook, path)
        print(f"wrote {path}, {path.stat().st_size:,} bytes")


def repository() -> str:
    """The repository's address, "https://HOST/OWNER/NAME"; "" where CITATION.cff does not name it."""
    return yaml.safe_load((FOLDER.parent / "CITATION.cff").read_text()).get("repository-code", "")


def assemble(name: str, address: str) -> NotebookNode:
    """The notebook of a script, without outputs. address: see `repository`."""
    own, install = (jupytext.read(FOLDER / f"{script}.py", fmt="py:percent") for script in (name, "install"))
    title, *others = own.cells
    if address:
        for cell in install.cells:
            cell.source = cell.source.replace(WITHOUT_ADDRESS, f"git+{address}")
    if on_github := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address):
        opened = f"https://colab.research.google.com/github/{on_github[1]}/blob/main/notebooks/{name}.ipynb"
        title.source += f"\n\n[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({opened})"
    cells = [title, *install.cells, *others]
    for number, cell in enumerate(cells):
        cell.id = f"{name}-{number}"  # jupytext's are random
        cell.metadata = {}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def take_outputs(notebook: NotebookNode, other: NotebookNode) -> bool:
    """Gives it the outputs of another notebook, if that has the same code. Returns whether it has."""
    own, others = ([cell for cell in given.cells if cell.cell_type == "code"] for given in (notebook, other))
    texts, other_texts = (["" if INSTALLS in cell.source else cell.source for cell in cells] for cells in (own, others))
    if texts == other_texts:
        for cell, run in zip(own, others, strict=True):
            cell.outputs, cell.execution_count = run.outputs, run.execution_count
    return texts == other_texts


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Runs it in the folder, and gives it outputs. Raises: nbclient's CellExecutionError for a cell that fails."""
    client = NotebookClient(
        notebook, timeout=TIMEOUT, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=os.environ | QUIET)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidied(cell.outputs)
    notebook.metadata = {"kernelspec": KERNEL}  # nbclient adds the versions of Python


def tidied(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs without progress bars, and what was printed piece by piece as one."""
    found: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = "\n".join(line for line in output.text.split("\n") if "\r" not in line)
            if not output.text.strip():
                continue
            if found and found[-1].get("name") == output.name:
                found[-1].text += output.text
                continue
        found.append(output)
    return found


if __name__ == "__main__":
    main()
