import os
import re
import shutil

import numpy as np
import pytest

from ssl_jax import report
from ssl_jax.report import read
from tests.report.pages import ATTACK, Page, edit

SECTIONS = ("worth", "training", "health", "views", "neighbors", "map", "details")


def test_finished_run_has_every_section_and_lacks_nothing(finished_page):
    page = finished_page
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == list(SECTIONS)
    assert page.missing == {}
    # 2 curves, 6 health panels, 1 dot plot with 3 keys, the map with 3 marks beside its classes
    assert sum(tag == "svg" for tag, _ in page.elements) == 2 + 6 + 1 + 3 + 1 + 3
    # 8 originals with 2 views, 3 queries with 8 neighbors
    assert sum(tag == "img" for tag, _ in page.elements) == 8 * 3 + 3 * 9
    assert not page.open


@pytest.mark.parametrize(
    "text",
    [
        "SimCLR on Fashion-MNIST",
        "a linear classifier that saw 10 labels per class is right on 75.1% of the test images: "
        "11.1 points above the best random network and 3.7 points above raw pixels.",
        "15 s in steps, 8 images/s",  # 30 steps of 4 images at 8 images/s
        "chance level 2.00",
        "full spread 1/√64 = 0.125",
        "1 file was skipped",
        "cut short",
        '"batch_size": 4',
        "jax 0.10.2",
    ],
)
def test_finished_run_says(finished_page, text):
    assert text in " ".join(finished_page.text.split())


def test_empty_workdir_says_what_makes_each_part(tmp_path):
    workdir = tmp_path / "my run"
    workdir.mkdir()
    missing = Page(workdir).missing
    assert set(missing) == {"header", *SECTIONS}
    for section, text in missing.items():
        program = "evaluate" if section in ("worth", "neighbors", "map") else "train"
        assert f"ssl_jax {program} " in text
        assert f"--workdir '{workdir}'" in text  # quoted for a shell: it has a space


def test_no_workdir_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        report.write(tmp_path / "absent")


def test_going_run_says_where_it_is(workdir):
    shutil.rmtree(workdir / "samples")
    (workdir / "evaluation.json").unlink()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text(lines[0] + '\n{"step": 20, "lo')  # being written
    page = Page(workdir)
    assert "Step 10 of 30 so far." in page.text
    assert set(page.missing) == {"header", "worth", "training", "views", "neighbors", "map"}


def draw_pictures(workdir, **changes):
    images = np.random.default_rng(1).integers(0, 256, (3, 5, 28, 28, 1), dtype=np.uint8)
    rows = dict(zip(("image", "seen", ATTACK), images, strict=True)) | changes
    np.savez(workdir / "samples" / "pictures.npz", **rows)


def test_what_a_method_draws_is_shown_row_by_row(workdir):
    draw_pictures(workdir)
    page = Page(workdir)
    assert "pictures" in [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    titles = [attrs["alt"] for tag, attrs in page.elements if tag == "img"][: 3 * 5]
    assert titles == [f"{title} {i}" for title in ("image", "seen", ATTACK) for i in range(1, 6)]
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.elements}


def test_rows_of_pictures_that_differ_in_length_are_damaged(workdir):
    draw_pictures(workdir, seen=np.zeros((4, 28, 28, 1), np.uint8))
    assert "samples/pictures.npz is damaged" in Page(workdir).missing["header"]


def test_patches_are_shown_row_by_row_under_their_images(measured):
    page = Page(measured)
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == [
        *SECTIONS[:4],
        "patches",
        *SECTIONS[4:],
    ]
    assert page.missing == {}
    shown = [attrs for tag, attrs in page.elements if tag == "img" and ": " in attrs["alt"]]
    rows = ["features of patches: " + name for name in ("Image", "Pre-trained", "Random network")]
    rows += ["attention: " + name for name in ("Image", "Pre-trained", "Head 1", "Head 2", "Random network")]
    titles = [attrs["alt"] for attrs in shown if not attrs["alt"].startswith("query")]
    assert titles == [f"{row} {i}" for row in rows for i in range(1, 9)]
    # Patches keep their edges; pictures of a size to be looked at are not made coarse.
    sharp = {attrs["alt"].rpartition(" ")[0] for attrs in shown if "pixelated" in attrs["class"]}
    assert sharp & set(rows) == {*rows[:4]}
    assert "and of the pre-trained network each head alone" in page.text


def test_a_network_without_attention_has_no_figure_of_it(measured):
    path = measured / "samples" / "patches.npz"
    np.savez(path, **{key: rows for key, rows in np.load(path).items() if not key.startswith("attention")})
    page = Page(measured)
    assert "as colors" in page.text and "class token" not in page.text


def test_patches_without_their_images_are_damaged(measured):
    path = measured / "samples" / "patches.npz"
    np.savez(path, **{key: rows for key, rows in np.load(path).items() if key != "images"})
    page = Page(measured)
    assert "samples/patches.npz is damaged and left out (ValueError: it has no images" in page.missing["header"]
    assert "#patches" not in page.source


def test_unlabeled_data_is_reported_without_classes(workdir):
    np.savez(
        workdir / "samples" / "embeddings.npz",
        **dict(np.load(workdir / "samples" / "embeddings.npz"))
        | {"labels": np.full(60, -1, np.int32), "class_names": np.array([], np.str_)},
    )
    (workdir / "evaluation.json").write_text('{"data": {"name": "folder"}}')
    page = Page(workdir)
    assert set(page.missing) == {"worth"}
    assert "--data NAME_OR_FOLDER" in page.missing["worth"]
    assert "✕" not in page.text


@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "evaluation.json", "samples/views.npz", "samples/embeddings.npz"]
)
def test_damaged_file_is_named_and_left_out(workdir, name):
    path = workdir / name
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert list(read.read(workdir).unreadable) == [name]
    path.write_bytes(whole[:20])
    assert f"{name} is damaged" in Page(workdir).missing["header"]


def test_arrays_that_would_fill_the_memory_are_not_read(workdir, monkeypatch):
    monkeypatch.setattr("ssl_jax.report.read.MAX_BYTES", 10**6)
    images = np.zeros((64, 128, 128, 1), np.uint8)  # in a file of a thousandth of that
    np.savez_compressed(workdir / "samples" / "views.npz", original=images, views=images[:, None])
    assert re.search(r"its arrays take 2,097,\d+ bytes; no more than 1,000,000", Page(workdir).missing["header"])


def test_strings_from_files_stay_text(workdir):
    edit(workdir, "config.json", lambda config: config["method"].update(name=ATTACK))
    edit(workdir, "config.json", lambda config: config["data"].update(name=ATTACK))
    edit(workdir, "run.json", lambda facts: facts.update(skipped={ATTACK: ATTACK}, devices=ATTACK))
    edit(workdir, "evaluation.json", lambda scores: scores["pretrained"].update({ATTACK: {"mean": 1.0, "std": 0.0}}))
    embeddings = dict(np.load(workdir / "samples" / "embeddings.npz"))
    np.savez(workdir / "samples" / "embeddings.npz", **embeddings | {"class_names": np.array([ATTACK] * 3)})
    page = Page(workdir)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in page.elements if tag == "img")
    # title, h1; skipped name and reason; device; protocol in chart and table; a class thrice in map and in neighbors
    assert page.text.count(ATTACK) >= 10


def test_names_that_are_no_text_are_escaped(workdir):
    name = os.fsdecode(b"caf\xe9")  # in a file system's older encoding
    edit(workdir, "run.json", lambda facts: facts.update(skipped={name: "cut short"}))
    embeddings = dict(np.load(workdir / "samples" / "embeddings.npz"))
    np.savez(workdir / "samples" / "embeddings.npz", **embeddings | {"class_names": np.array([name] * 3)})
    assert r"caf\udce9" in Page(workdir).text


def test_nothing_is_fetched(finished_page):
    page = finished_page
    links = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert all(
        target.startswith(("#", "data:image/webp;base64,")) for target in re.findall(r"url\(([^)]*)\)", page.source)
    )
    assert "@import" not in page.source


def test_ids_are_unique_and_links_lead_to_them(finished_page):
    page = finished_page
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    links = {attrs[name] for _, attrs in page.elements for name in ("href", "xlink:href") if name in attrs}
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} | set(re.findall(r"url\(#([^)]*)\)", page.source)) <= set(ids)


def test_same_files_make_the_same_page(workdir):
    first = report.write(workdir).read_bytes()
    assert report.write(workdir).read_bytes() == first


def luminance(color):
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colors_stand_out_from_the_page(finished_page, scheme):
    block = re.findall(r":root \{(.*?)\}", finished_page.source, re.DOTALL)[scheme]
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    needed = dict.fromkeys(("ink", "muted", "pretrained", "random", "pixels", "alarm"), 4.5)  # WCAG 2.2 AA, text
    needed |= dict.fromkeys([f"c{i}" for i in range(10)] + ["rest"], 3.0)  # and graphics
    for name, least in needed.items():
        for ground in ("paper", "panel"):
            darker, lighter = sorted(luminance(colors[c]) for c in (name, ground))
            assert (lighter + 0.05) / (darker + 0.05) >= least, (name, ground)


def test_classes_of_different_size_are_told_in_the_table(workdir):
    assert "mean over classes" not in Page(workdir).text
    edit(workdir, "evaluation.json", lambda found: found.update(data={"majority": {"class": ATTACK, "percent": 62.0}}))
    edit(workdir, "evaluation.json", lambda found: found["pretrained"]["knn/k20_t0.07/top1"].update(class_mean=61.25))
    page = Page(workdir)
    text = " ".join(page.text.split())
    assert "in brackets the mean over classes, each counting alike." in text
    assert "Always naming the largest class, " in text and "is right on 62.0%" in text
    assert "85.7 (61.2)" in text
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.elements}


def test_images_that_a_program_gave_are_named_not_those_of_the_config(workdir):
    source = {"name": "cells", "kind": "ArraySource", "digest": "abc", "given": True}
    edit(workdir, "run.json", lambda facts: facts.update(source=source))
    edit(workdir, "evaluation.json", lambda found: found.update(data={"name": "cifar10/train", "kind": "TFDSSource"}))
    text = " ".join(Page(workdir).text.split())
    assert "SimCLR on cells" in text and "Fashion-MNIST" not in text
    assert "How well the labels of the test images of CIFAR-10 are predicted" in text
