"""The notebooks: made of their scripts, run as they stand, small; and their pages of the site."""

import base64
import re
from pathlib import Path

import nbformat
import pytest

from notebooks import make
from tests.debian import needs_fashion_mnist, needs_npm
from tests.flags import environment
from website import notebooks as pages

MOST_BYTES = 300_000
SHORTER = (r"(?m)^STEPS = \d+", "STEPS = 6")
RUN = [
    pytest.param("first_steps", marks=needs_fashion_mnist),
    pytest.param("own_images", marks=needs_npm),
    pytest.param("own_method", marks=needs_fashion_mnist),
]


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def code(*texts):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in texts])


@pytest.mark.parametrize("name", make.NAMES)
def test_a_notebook_is_made_of_its_script_and_was_run(name):
    path = make.FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert sources(notebook) == sources(make.assemble(name, make.repository())), f"run python notebooks/make.py {name}"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_a_notebook_runs_in_an_empty_folder(name, tmp_path, monkeypatch):
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    notebook = make.assemble(name, make.repository())
    shortened = [re.subn(*SHORTER, cell.source) for cell in notebook.cells]
    assert sum(count for _, count in shortened) == 1
    for cell, (source, _) in zip(notebook.cells, shortened, strict=True):
        cell.source = source
    make.execute(notebook, tmp_path)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "finished: step 6 of 6" in printed


def test_every_script_but_the_shared_one_is_a_notebook():
    scripts = {path.stem for path in make.FOLDER.glob("*.py")} - {"install", "make"}
    assert scripts == set(make.NAMES) == {path.stem for path in make.FOLDER.glob("*.ipynb")}


def test_the_address_of_a_repository_is_where_a_notebook_installs_from():
    opened, elsewhere, nowhere = (
        make.assemble("first_steps", address) for address in ("https://github.com/a/b.git", "https://x.org/a/b", "")
    )
    assert "colab.research.google.com/github/a/b/blob/main/notebooks/first_steps.ipynb" in opened.cells[0].source
    assert "Colab](" not in elsewhere.cells[0].source + nowhere.cells[0].source
    assert '"git+https://x.org/a/b"' in elsewhere.cells[2].source
    assert make.WITHOUT_ADDRESS in nowhere.cells[2].source


def test_outputs_are_kept_where_the_code_is_the_same():
    run = code("print(1)")
    run.cells[0].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    run.cells[0].execution_count = 1
    same, other = code("print(1)"), code("print(2)")
    same.cells.insert(0, nbformat.v4.new_markdown_cell("new text"))
    assert make.take_outputs(same, run) and same.cells[1].outputs == run.cells[0].outputs
    assert not make.take_outputs(other, run) and not other.cells[0].outputs


def test_a_notebook_that_fails_says_which_cell(tmp_path):
    with pytest.raises(Exception, match=r"1 / 0[\s\S]*ZeroDivisionError"):
        make.execute(code("1 / 0"), tmp_path)


def test_progress_bars_are_left_out_and_lines_stand_together():
    def printed(text, name="stdout"):
        return nbformat.v4.new_output("stream", name=name, text=text)

    given = [
        printed("step 1\n"),
        printed("\rreading: 10%|#", "stderr"),
        printed("\rreading: 100%|##\n", "stderr"),
        printed("bar\rbar\nstep 2\n"),
        printed("WARNING\n", "stderr"),
    ]
    assert [(one.name, one.text) for one in make.tidied(given)] == [
        ("stdout", "step 1\nstep 2\n"),
        ("stderr", "WARNING\n"),
    ]


def test_a_page_has_text_code_output_and_pictures():
    picture = base64.b64encode(b"PNG").decode()
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {
            "cell_type": "code",
            "source": ["a = 1\n", "a"],
            "outputs": [{"text": ["1\n"]}, {"data": {"image/png": picture, "text/plain": "<Figure>"}}],
        },
    ]
    made = pages.page("own", cells)
    assert made["notebooks/own-1.png"] == b"PNG"
    text = str(made["notebooks/own.md"])
    for part in ("# Title\n", "````python\na = 1\na\n````", "````text\n1\n````", "](own-1.png)"):
        assert part in text
    assert "Figure" not in text


def test_pages_are_those_of_the_notebooks():
    assert pages.pages() == sorted(f"notebooks/{name}.md" for name in make.NAMES)
    assert all((Path(make.FOLDER) / f"{Path(page).stem}.ipynb").exists() for page in pages.pages())
