import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from ssl_jax import report

SECTIONS = ("worth", "training", "health", "views", "neighbors", "map", "details")
# What a file name, a class or a config could hold, in each way that HTML could take it for its own.
ATTACK = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>&amp;$x_"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def scores(knn, linear, std):
    return {
        "knn/k20_t0.07/top1": {"mean": knn, "std": 0.0},
        "linear/10_per_class/top1": {"mean": linear, "std": std},
    }


@pytest.fixture
def workdir(tmp_path):
    """A finished run's files, of few and random images."""
    made = tmp_path / "a run"
    (made / "samples").mkdir(parents=True)
    config = {
        "seed": 0,
        "batch_size": 4,
        "steps": 30,
        "data": {"name": "fashion_mnist", "path": "", "image_size": [28, 28], "channels": 1},
        "model": {"name": "resnet8"},
        "method": {"name": "simclr", "projector": [256, 64]},
        "online_knn": {"bank": 30, "queries": 10, "k": 20},
    }
    facts = {
        "devices": "1 x cpu (cpu)",
        "num_images": 60,
        "versions": {"jax": "0.10.2"},
        "skipped": {"cat.jpg": "cut short"},
    }
    evaluation = {
        "pretrained": scores(85.7, 75.1, 0.9),
        "random": scores(79.3, 64.0, 1.2),
        "pixels": scores(84.6, 71.4, 0.8),
        "random_variants": {"initial": scores(70.0, 60.0, 1.0), "calibrated": scores(79.3, 64.0, 1.2)},
    }
    for name, value in (("config", config), ("run", facts), ("evaluation", evaluation)):
        (made / f"{name}.json").write_text(json.dumps(value))
    lines = [
        {"step": step, "loss": 4.0 / step, "chance_level": 2.0, "images_per_second": 8.0, "data_wait": 0.01}
        | {"embedding_std": 0.12, "rankme": 50.0, "embedding_dim": 64, "rank_limit": 64}
        | {"alignment": 0.3, "uniformity": -3.5, "grad_norm": 1.0}
        | ({"knn_top1": 80.0} if step == 30 else {})
        for step in (10, 20, 30)
    ]
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28, 1), dtype=np.uint8)
    np.savez(made / "samples" / "views.npz", original=images[:8], views=images[:48].reshape(8, 6, 28, 28, 1)[:, :2])
    np.savez(
        made / "samples" / "embeddings.npz",
        images=images,
        features=rng.normal(size=(60, 5)).astype(np.float32),
        labels=np.arange(60, dtype=np.int32) % 3,
        class_names=np.array(["Coat", "Bag", "Sandal"]),
    )
    return made


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, and its text, by section."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, workdir):
        super().__init__()
        self.elements, self.text, self.missing, self.section, self.open = [], "", {}, "header", []
        self.source = report.write(workdir).read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag == "section":
            self.section = attrs["id"]
        if attrs.get("class") == "missing":
            self.missing.setdefault(self.section, "")
        if tag not in self.VOID:
            self.open.append((tag, attrs))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.text += data
        if any(attrs.get("class") == "missing" for _, attrs in self.open):
            self.missing[self.section] += data


def edit(workdir, name, change):
    value = json.loads((workdir / name).read_text())
    change(value)
    (workdir / name).write_text(json.dumps(value))


def test_finished_run_has_every_section_and_lacks_nothing(workdir):
    page = Page(workdir)
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
def test_finished_run_says(workdir, text):
    assert text in " ".join(Page(workdir).text.split())


def test_empty_workdir_says_what_makes_each_part(tmp_path):
    workdir = tmp_path / "my run"
    workdir.mkdir()
    missing = Page(workdir).missing
    assert set(missing) == {"header", *SECTIONS}
    for section, text in missing.items():
        program = "evaluate" if section in ("worth", "neighbors", "map") else "train"
        assert f"python -m ssl_jax.{program} " in text
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
@pytest.mark.parametrize("keep", [0, 20])
def test_damaged_file_is_named_and_left_out(workdir, name, keep):
    path = workdir / name
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{name} is damaged" in Page(workdir).missing["header"]


def test_arrays_that_would_fill_the_memory_are_not_read(workdir, monkeypatch):
    monkeypatch.setattr("ssl_jax.report.read.MAX_BYTES", 10**6)
    images = np.zeros((64, 128, 128, 1), np.uint8)  # in a file of a thousandth of that
    np.savez_compressed(workdir / "samples" / "views.npz", original=images, views=images[:, None])
    assert re.search(r"its arrays are of 2,097,\d+ bytes; no more than 1,000,000", Page(workdir).missing["header"])


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


def test_nothing_is_fetched(workdir):
    page = Page(workdir)
    links = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))
    assert "@import" not in page.source


def test_ids_are_unique_and_links_lead_to_them(workdir):
    page = Page(workdir)
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
def test_colors_stand_out_from_the_page(workdir, scheme):
    block = re.findall(r":root \{(.*?)\}", Page(workdir).source, re.DOTALL)[scheme]
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    needed = dict.fromkeys(("ink", "muted", "pretrained", "random", "pixels", "alarm"), 4.5)  # WCAG 2.2 AA, text
    needed |= dict.fromkeys([f"c{i}" for i in range(10)] + ["rest"], 3.0)  # and graphics
    for name, least in needed.items():
        for ground in ("paper", "panel"):
            darker, lighter = sorted(luminance(colors[c]) for c in (name, ground))
            assert (lighter + 0.05) / (darker + 0.05) >= least, (name, ground)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("kind", ["full", "long names", "empty"])
def test_page_fits_narrow_and_wide_windows(workdir, tmp_path, kind):
    if kind == "empty":
        workdir = tmp_path / "empty"
        workdir.mkdir()
    if kind == "long names":
        edit(workdir, "config.json", lambda config: config["data"].update(name="n" * 90))
        edit(workdir, "run.json", lambda facts: facts.update(skipped={"n" * 300: "long " * 60}))
        edit(workdir, "evaluation.json", lambda scores: scores["pretrained"].update({"n" * 90: {"mean": 1.0}}))
        embeddings = dict(np.load(workdir / "samples" / "embeddings.npz"))
        np.savez(workdir / "samples" / "embeddings.npz", **embeddings | {"class_names": np.array(["n" * 80] * 3)})
    # In frames: a window of Chromium is never narrower than 500 pixels.
    content = html.escape(report.write(workdir).read_text())
    frames = [f'<iframe srcdoc="{content}" style="width: {width}px; border: 0"></iframe>' for width in (400, 1400)]
    width = "frame => frame.contentDocument.documentElement.scrollWidth"
    script = f"onload = () => document.title = [...document.querySelectorAll('iframe')].map({width})"
    page = tmp_path / "frames.html"
    page.write_text(f"<!doctype html><title></title>{''.join(frames)}<script>{script}</script>")
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --hide-scrollbars"
    chromium = [CHROMIUM, "--headless", *quiet.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    dom = subprocess.run([*chromium, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.search("<title>(.*?)</title>", dom)[1] == "400,1400"
