"""What mkdocs calls (mkdocs.yml): adds the generated pages and the navigation, and turns links to files of the
repository into links to their pages."""

import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[1]))  # mkdocs may be started from anywhere

from ssl_jax.methods import METHODS
from website import methods, notebooks, readme, reference
from website.pages import PAGES, ROOT, linked, page_of, relink, source_page

WIDE = ("fidelity.md", "configs.md", "peers.md", "plans.md")  # long tables, which are no text to search in or to list


def generated() -> dict[str, str]:
    """Page -> its Markdown, whose links are relative to the repository."""
    found = readme.pages() | reference.pages()
    found[f"{methods.FOLDER}/index.md"] = methods.index()
    found |= {f"{methods.FOLDER}/{name}.md": methods.page(name) for name in METHODS}
    files = {path: page for path, page in PAGES.items() if path.endswith(".md") and page not in found}
    found |= {page: (ROOT / path).read_text(encoding="utf-8") for path, page in files.items()}
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = navigation()
    return config


def navigation() -> list[Any]:
    families = [
        {family.capitalize(): [f"{methods.FOLDER}/{name}.md" for name in names]}
        for family, names in methods.families().items()
    ]
    return [
        {"ssl_jax": "index.md"},
        {"First steps": ["first_steps.md", {"Questions": "faq.md"}, {"As notebooks": notebooks.pages()}]},
        {
            "Your own images": [
                {"In short": "own_images.md"},
                {"Photos": "images/photos.md"},
                {"Satellite images": "images/satellite.md"},
                {"X-rays and slices": "images/xray.md"},
                {"Microscopy": "images/microscopy.md"},
                {"What is read": "data.md"},
                {"Formats": "formats.md"},
                {"Views": "views.md"},
            ]
        },
        {"In Python": ["python.md"]},
        {
            "Methods": [
                f"{methods.FOLDER}/index.md",
                {"Which method": "choosing.md"},
                {"Pretext tasks, measured": "pretext.md"},
                *families,
                {"Configs": "configs.md"},
            ]
        },
        {
            "Use": [
                {"Backbones and weights": "weights.md"},
                {"Fine-tuning": "finetuning.md"},
                {"Segmentation": "segmentation.md"},
                {"What a run writes": "run_files.md"},
            ]
        },
        {
            "Measure": [
                {"Protocols": "protocols.md"},
                {"Metrics without labels": "metrics.md"},
                {"Results": "results.md"},
                {"Gallery": "gallery.md"},
                {
                    "Studies": [
                        "studies.md",
                        *(f"studies/{page.name}" for page in sorted((ROOT / "docs" / "studies").glob("*.md"))),
                    ]
                },
                {"Reproducibility": "reproducibility.md"},
                {"Fidelity": "fidelity.md"},
                {
                    "Other libraries": [
                        "peers.md",
                        {"Beside lightly": "against_lightly.md"},
                        {"Beside stable-pretraining": "against_stable_pretraining.md"},
                    ]
                },
            ]
        },
        {
            "Scale": [
                {"GPUs and TPU pods": "gpus.md"},
                {"Plans": "plans.md"},
                {"Object stores": "object_stores.md"},
                {"Operate a run": "operate.md"},
                {"Speed": "speed.md"},
            ]
        },
        {"Reference": [{package: reference.page_name(package)} for package in reference.PACKAGES]},
        {
            "Project": [
                {"Changes": "changelog.md"},
                {"Contributing": "contributing.md"},
                {"Versions and systems": "versions.md"},
                {"Tests": "tests.md"},
                {"Security": "security.md"},
            ]
        },
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    texts = generated()
    pages: dict[str, str | bytes] = {uri: relink(text, "", uri) for uri, text in texts.items()}
    outside = {path for text in texts.values() for path in linked(text, "")}
    for uri, content in notebooks.files().items():
        if isinstance(content, str):
            outside |= set(linked(content, notebooks.FOLDER))
            content = relink(content, notebooks.FOLDER, uri)
        pages[uri] = content
    for file in files.documentation_pages():
        outside |= set(linked(file.content_string, folder_of(file.src_uri)))
    there = {file.src_uri for file in files} | set(pages)
    pages |= {
        page_of(path): source_page(path) for path in outside if page_of(path) not in there and (ROOT / path).is_file()
    }
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def folder_of(uri: str) -> str:
    return str(PurePosixPath("docs", uri).parent)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri in WIDE:
        page.meta.setdefault("search", {"exclude": True})
        page.meta.setdefault("hide", ["toc"])
    if page.file.generated_by is not None:
        return markdown
    return relink(markdown, folder_of(page.file.src_uri), page.file.src_uri)
