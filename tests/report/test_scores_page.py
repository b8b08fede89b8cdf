"""The page about the scores of a backbone, of a run or of a file."""

import json

import numpy as np
import pytest

from ssl_jax import report
from ssl_jax.evaluation import of_features
from ssl_jax.report import protocols
from tests.report.conftest import finish_run, measure_run
from tests.report.pages import ATTACK, CHROMIUM, Page, browse, check

BACKBONE = {
    "file": "weights/vit.safetensors",
    "model": {"name": "vit_tiny_patch16_224"},
    "image_size": [28, 28],
    "channels": 1,
    "dtype": "uint8",
    "value_range": [],
    "mean": [0.3],
    "std": [0.3],
}
METRICS = {"rankme": 12.3456, "embedding_std": 0.0512, "uniformity": -2.5}
EVERY = [
    "knn/k20_t0.07/top1",
    "knn/k20_t0.1/top1",
    "linear/10_per_class/top1",
    "linear/1_percent/top1",
    "linear/all/top1",
    "prototypes/1_per_class/top1",
    "prototypes/5_way_1_shot/top1",
    "clustering/inductive/accuracy",
    "clustering/transductive/nmi",
    "retrieval/map",
    "retrieval/recall_at_10",
    "probe/moco_v2/top1",
    "attentive/10_per_class/top1",
    "corruption/knn_k20/clean",
    "corruption/knn_k20/mean",
    "corruption/knn_k20/gaussian_noise",
    "finetune/10_per_class/top1",
    "finetune_mae/all/top1",
]


@pytest.fixture
def folder(tmp_path):
    """With what an evaluation leaves for a page."""
    return measure_run(finish_run(tmp_path / "run"))


def evaluation(folder, *baselines):
    found = json.loads((folder / "evaluation.json").read_text())
    for name in ("random", "pixels"):
        if name not in baselines:
            found.pop(name), found.pop(f"{name}_variants", None)
    found["data"] |= {"test_images": 60, "digest": "0123456789ab", "majority": {"class": "Coat", "percent": 40.0}}
    found["metrics"] = {"pretrained": METRICS, **({"random, initial": METRICS} if "random" in baselines else {})}
    return found | {"backbone": BACKBONE, "backbone_sha256": "f" * 64}


def scored(**subjects):
    """subject -> protocol -> score, of images that keep nothing else."""
    return {"data": {"name": "/data/mine", "kind": "FolderSource"}, "metrics": {"pretrained": METRICS}, **subjects}


def write(folder, found):
    return Page(found, lambda found: report.write_scores(found, folder, folder / "scores.html"))


def test_the_page_holds_all_that_was_measured(folder):
    page = write(folder, evaluation(folder, "random", "pixels"))
    assert page.open == [] and page.missing == {} and not {"script", "link"} & {tag for tag, _ in page.elements}
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["worth", "metrics", "patches", "neighbors", "map"]
    assert {attributes["href"][1:] for tag, attributes in page.elements if tag == "a"} == set(sections)
    text = " ".join(page.text.split())
    for said in (
        "Scores on Fashion-MNIST",
        "At best, a linear classifier that saw every label is right on 87.0% of the test images with the features "
        "frozen: 1.0 points above the best random network",
        "vit.safetensors",
        "28 × 28 × 1, uint8",
        "mean 0.3, deviation 0.3",
        "18,000 to learn from, 60 for testing, fashion_mnist, digest 0123456789ab",
        "3; the largest, Coat, has 40.0% of the test images",
        "on an untrained network and on the raw pixels. Only what stands above both was learnt.",
        "Random networks, all variants",
        "RankMe",
        "12.3",
        "What is taken for what",
        "Where the class token looks",
    ):
        assert said in text, said
    assert "Not measured" not in text
    assert page.source.count("--pretrained: #") == 2  # in light and in dark
    shown = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert shown and all(source.startswith("data:image/") for source in shown)


@pytest.mark.parametrize(
    "baselines, columns, said",
    [
        ((), ["Pre-trained"], "no baseline beside it: ssl_jax evaluate --baselines=random,pixels measures those, too."),
        (("pixels",), ["Pre-trained", "Raw pixels"], "protocol on the raw pixels. Only what stands above it was"),
        (("random",), ["Pre-trained", "Random network"], "on an untrained network. Only what stands above it was"),
    ],
)
def test_baselines_that_were_left_out_leave_no_gap(folder, baselines, columns, said):
    page = write(folder, evaluation(folder, *baselines))
    text = " ".join(page.text.split())
    assert said in text and page.missing == {}
    heads = [attributes for tag, attributes in page.elements if tag == "th" and attributes.get("scope") == "col"]
    assert len(heads) >= 1 + len(columns)
    assert "".join(["Protocol", *columns]) in page.text
    others = {"Random network", "Raw pixels"} - set(columns)
    assert f"Not measured{', '.join(name for name in ('Random network', 'Raw pixels') if name in others)}" in text


def test_every_protocol_has_a_row_of_its_own(folder):
    scores = {protocol: {"mean": 40.0 + i, "std": 0.5} for i, protocol in enumerate(EVERY)}
    page = write(folder, scored(pretrained=scores, pixels=scores))
    names = [protocols.describe(protocol)[0] for protocol in EVERY]
    assert len(set(names)) == len(EVERY) and not any("/" in name for name in names)
    assert all(page.text.count(name) >= 2 for name in names)  # in the chart and in the table
    assert "At best, an attentive probe that saw 10 labels per class is right on 52.0%" in page.text


def test_the_protocols_of_frozen_features_are_named():
    keys = [f"knn/k{k}_t{t}/top1" for k in of_features.KNN_SWEEP_K for t in of_features.KNN_SWEEP_TEMPERATURES]
    keys += [f"prototypes/{count}_per_class/top1" for count in of_features.PROTOTYPES_PER_CLASS]
    keys += [f"retrieval/recall_at_{k}" for k in of_features.RETRIEVED]
    described = [protocols.describe(key) for key in keys]
    assert len({name for name, _ in described}) == len(keys) and not any("{" in text for _, text in described)
    assert protocols.describe("none/such") == ("none/such", "the protocol none/such")


def test_several_labels_and_measurements_are_listed(folder):
    outputs = {ATTACK: 71.25, **{f"label {i}": float(i) for i in range(150)}}
    several = {"multilabel/linear/map": {"mean": 51.0, "std": 0.0, "outputs": outputs}}
    page = write(folder, scored(pretrained=several))
    assert "A linear classifier of each label reaches an average precision of 51.0%" in page.text
    assert ATTACK in page.text and "71.2" in page.text and "The first 100 of 151" in page.text
    entry = {"mean": 30.0, "std": 0.0, "outputs": {"height": 30.0}, "mean_absolute_error": {"height": 1.23456}}
    page = write(folder, scored(pretrained={"regression/ridge/r2": entry}, pixels={"regression/ridge/r2": entry}))
    assert "Mean absolute error" in page.text and page.text.count("1.235") == 2
    assert "explains 30.0% of the variance" in page.text


def test_images_without_labels_have_metrics_and_neighbors(tmp_path):
    page = write(tmp_path, scored())
    assert "no labels to measure against" in page.missing["worth"] and "RankMe" in page.text
    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == ["worth", "metrics"]


def test_bands_are_checked(folder):
    with pytest.raises(ValueError, match="bands must be one, or three"):
        report.write_scores(scored(), folder, folder / "scores.html", bands=(3,))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium or google-chrome")
@pytest.mark.parametrize("kind", ["full", "every protocol", "unlabeled"])
def test_the_page_fits_narrow_and_wide_windows(folder, tmp_path, kind):
    found = evaluation(folder, "random", "pixels")
    if kind == "every protocol":
        for subject in ("pretrained", "random", "pixels"):
            found[subject] |= {protocol: {"mean": float(np.cos(i))} for i, protocol in enumerate(EVERY)}
    if kind == "unlabeled":
        found, folder = scored(), tmp_path
    check(*browse(report.write_scores(found, folder, tmp_path / "scores.html").read_text(), tmp_path))
