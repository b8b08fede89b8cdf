"""The documentation site: it builds without a warning, has every public symbol and method, and asks nothing of the
network."""

import inspect
import os
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pytest
import yaml

import ssl_jax
from ssl_jax import data, losses, methods, models
from ssl_jax.methods import toolkit
from tests.report.pages import CHROMIUM
from website import docstrings, pages, reference
from website import methods as method_pages

ROOT = Path(__file__).parents[1]
QUIET = {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}


def build(config: Path, out: Path) -> tuple[int, str]:
    """The exit code and what mkdocs says."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    code, said = build(ROOT / "mkdocs.yml", out)
    assert code == 0 and "WARNING" not in said, said[-3000:]
    return out


def documented(site: Path) -> dict[str, str]:
    """Symbol -> its place, of all that the site documents (objects.inv, Sphinx's format)."""
    _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    lines = (line.split(" ") for line in zlib.decompress(packed).decode().splitlines())
    return {words[0]: words[3] for words in lines}


def public() -> set[str]:
    """Each public symbol by the place where it is defined, values by the place where they are exported."""
    found = {f"{kind.__module__}.{kind.__qualname__}" for kind in methods.METHODS.values()}
    for space in (ssl_jax, data, losses, methods, toolkit, models):
        for name in space.__all__:
            symbol = getattr(space, name)
            if inspect.isclass(symbol) or inspect.isfunction(symbol):
                found.add(f"{symbol.__module__}.{symbol.__qualname__}")
            elif not inspect.ismodule(symbol):
                found.add(f"{space.__name__}.{name}")
    return found


@pytest.mark.slow
def test_every_public_symbol_has_a_page(site):
    found = documented(site)
    assert public() - set(found) == set()
    assert {"ssl_jax.pretraining.pretrain", "ssl_jax.methods.simclr.SimCLR", "ssl_jax.data.DTYPES"} <= public()
    for place in found.values():
        assert (site / place.split("#")[0]).exists(), place


@pytest.mark.slow
def test_every_method_has_a_page_with_its_scales_and_keys(site):
    for name in methods.METHODS:
        page = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert f"--config {name}:" in page, name
        assert all(f'id="{part}"' in page for part in ("start-it", "scales", "keys")), name
        assert f'href="{name}.html"' in (site / "methods" / "index.html").read_text(encoding="utf-8"), name


@pytest.mark.slow
def test_a_page_asks_nothing_of_the_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source|video)[^>]*\ssrc=\"?([^\"\s>]+)", text)
        fetched += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preload|icon|preconnect)[^>]*", text)
        assert not [one for one in fetched if re.search(r"(https?:)?//", one)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium or google-chrome")
def test_the_search_finds_pages_on_a_disk_without_a_network(site, tmp_path):
    quiet = "--no-sandbox --disable-gpu --disable-background-networking --virtual-time-budget=30000 --dump-dom"
    chromium = [CHROMIUM, "--headless", *quiet.split(), f"--user-data-dir={tmp_path}"]
    nowhere = "--host-resolver-rules=MAP * 127.0.0.1:9"
    page = f"{(site / 'index.html').as_uri()}?q=collapse"
    found = subprocess.run([*chromium, nowhere, page], capture_output=True, text=True, timeout=240, check=True)
    assert "matching documents" in found.stdout
    assert re.search(r'href="file:[^"]*faq\.html[^"]*#has-it-collapsed"', found.stdout)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("[a](missing.md)", "missing.md"),
        ("[a](index.md#missing)", "missing"),
        ("![a](missing.png)", "missing.png"),
        ("[a](/missing.md)", "absolute"),
        ("fine", ""),
    ],
)
def test_a_dead_link_ends_the_build(tmp_path, text, problem):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{text}\n")
    checked = {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": "docs", "plugins": [], "hooks": [], "extra_css": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(checked))
    code, said = build(tmp_path / "mkdocs.yml", tmp_path / "out")
    assert (code != 0) == bool(problem) and problem in said, said


def test_links_to_files_become_links_to_their_pages():
    assert pages.relink("[a](weights.md#files) [b](https://x.y/z) [c](#d)", "docs", "choosing.md") == (
        "[a](weights.md#files) [b](https://x.y/z) [c](#d)"
    )
    assert pages.relink("[a](docs/data.md) [b](CONTRIBUTING.md)", "", "methods/x.md") == (
        "[a](../data.md) [b](../contributing.md)"
    )
    assert pages.relink("[data.md](data.md#a-list), [docs/nothing.md](nothing.md)", "docs", "faq.md") == (
        "[Your own images](data.md#a-list), [nothing.md](nothing.md)"
    )
    assert pages.relink("[a](../benchmarks/mae.py)", "docs", "speed.md") == "[a](source/benchmarks/mae.py.md)"
    assert [*pages.linked("[a](../benchmarks/mae.py) [b](x.md)", "docs")] == ["benchmarks/mae.py", "docs/x.md"]


def test_a_file_that_is_linked_but_is_not_there_has_no_page():
    with pytest.raises(FileNotFoundError, match=r"missing\.py"):
        pages.source_page("benchmarks/missing.py")


def test_sections_and_rows_of_a_page():
    text = "first\n\n## A\n\n| m | n |\n|---|---|\n| x | 1 |\n| y | 2 |\n\n## B\n\nlast\n"
    assert pages.sections(text)[""] == "first\n\n" and pages.sections(text)["B"] == "\nlast\n"
    assert pages.rows_of("y", text) == ["| m | n |\n|---|---|\n| y | 2 |"]
    assert pages.rows_of("z", text) == []
    assert pages.rows_of("y", text.replace("| y", "| y †")) == ["| m | n |\n|---|---|\n| y † | 2 |"]


def test_a_docstring_keeps_what_it_names_apart():
    given = "Does it.\n\nArgs:\n  a: one\n    more.\n  b: two.\nRaises: ValueError for none."
    wanted = "Does it.\n\n\n**Args**\n\n- a: one\n    more.\n- b: two.\n\n**Raises**: ValueError for none."
    assert docstrings.markdown(given) == wanted
    assert docstrings.markdown("A row.\nrows: some.\nof it: more") == "A row.\n\nrows: some.\nof it: more"


def test_every_method_is_in_the_navigation_and_a_new_one_needs_no_line():
    named = [name for names in method_pages.families().values() for name in names]
    assert sorted(named) == sorted(methods.METHODS)


def test_a_page_of_a_method_has_its_results_and_settings():
    page = method_pages.page("simclr")
    for part in ("::: ssl_jax.methods.simclr.SimCLR", "## Results", "| simclr |", "| cifar_r18 | batch_size | 512 |"):
        assert part in page
    assert "--config.method.teacher=TEACHER" in method_pages.page("distill")


def test_the_results_of_a_method_are_those_of_their_sections():
    page = method_pages.page("simclr").split("## Results")[1].split("\n## ")[0]
    assert "five times as many steps" not in page
    assert page.index("| method | backbone | seeds |") < page.index("Its gain") < page.index("| 3 and ")
    assert "five times as many steps" in method_pages.page("bigbigan")


def test_packages_of_the_reference_are_there():
    assert {"ssl_jax", "ssl_jax.data", "ssl_jax.losses", "ssl_jax.methods", "ssl_jax.models", "ssl_jax.evaluation"} <= {
        *reference.PACKAGES
    }
    assert "## Two commands" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_site_s_requirements_are_the_extra_and_among_the_tests():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "requirements-docs.txt").read_text().splitlines()
    assert ["-r requirements.txt", *extras["docs"]] == [line for line in lines if not line.startswith("#")]
    assert set(extras["docs"]) <= set(extras["test"])
