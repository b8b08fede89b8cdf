import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import build, evaluate, run, weights
from ssl_jax import config as configs
from ssl_jax.finetune import Recipe
from tests.test_train import CONFIG, make_folder

PROTOCOLS = ("knn", "linear", "finetune")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """That of a run of no steps, on a folder of two classes."""
    images = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        make_folder(images / split, labeled=True)
    config = configs.load_file(f"{CONFIG}:folder")
    config.data.update(path=str(images), image_size=(16, 16))
    config.model.update(width=0.25)
    workdir = tmp_path_factory.mktemp("run")
    run.claim(workdir, config)
    variables = build.backbone(config).init(jax.random.key(7), jnp.zeros((1, 16, 16, 3)))
    meta = {"model": build.model_options(config), "image_size": [16, 16], "channels": 3}
    weights.save_backbone(workdir, variables, meta | {"mean": list(config.data.mean), "std": list(config.data.std)})
    return workdir


@pytest.mark.slow
def test_every_protocol_beside_its_baselines(workdir, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "Recipe", functools.partial(Recipe, steps=5, learning_rates=(1e-3,)))
    checksum = (workdir / weights.FILE).read_bytes()
    found = evaluate.evaluate(workdir, "", PROTOCOLS)
    assert json.loads((workdir / "evaluation.json").read_text()) == found
    frozen = {"knn/k20_t0.07/top1", "knn/k200_t0.07/top1", "linear/10_per_class/top1", "linear/all/top1"}
    tuned = "finetune/10_per_class/top1"
    assert set(found["pretrained"]) == set(found["random"]) == frozen | {tuned}
    assert set(found["pixels"]) == frozen
    variants = found["random_variants"]
    # The statistics that a network began with make no difference once it is trained.
    assert {name for name in variants if tuned in variants[name]} == {"initial", "initial_zero_residual"}
    for scores in (found["pretrained"], found["random"]):
        assert all(0 <= score["mean"] <= 100 and score["std"] >= 0 for score in scores.values())
    best = found["random"][tuned]
    assert best["mean"] == max(scores[tuned]["mean"] for scores in variants.values() if tuned in scores)
    assert variants[best["variant"]][tuned]["mean"] == best["mean"]
    printed = capsys.readouterr().out
    assert "fine-tuning with 100 labels per class left out: a class has only 32 images" in printed
    assert f"{tuned:<32}" in printed
    assert (workdir / weights.FILE).read_bytes() == checksum
    saved = np.load(workdir / "samples" / "embeddings.npz")
    assert len(saved["images"]) == len(saved["features"]) == len(saved["labels"]) == 64
    with np.load(workdir / "samples" / "patches.npz") as pictures:
        assert list(pictures) == ["images", "features/pretrained", "features/random"]
        assert pictures["images"].shape == (8, 16, 16, 3)
    predicted = np.load(workdir / "samples" / "predictions.npz")
    right = predicted["predictions"] == predicted["labels"]
    assert 100 * right.mean() == pytest.approx(found["pretrained"]["linear/all/top1"]["mean"])
    np.testing.assert_array_equal(predicted["labels"], saved["labels"])
    assert predicted["class_names"].tolist() == found["data"]["classes"]


@pytest.mark.slow
def test_the_other_protocols(workdir, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "CORRUPTED_IMAGES", 8)
    names = (
        "knn_sweep",
        "low_shot",
        "prototypes",
        "clustering",
        "retrieval",
        "probe_moco_v2",
        "attentive",
        "corruption",
    )
    found = evaluate.evaluate(workdir, "", names)
    expected = {
        *(f"knn/k{k}_t{t}/top1" for k in (10, 20, 100, 200) for t in (0.07, 0.1)),
        *(f"linear/{labels}/top1" for labels in ("2_per_class", "5_per_class", "1_percent", "10_percent")),
        *(f"prototypes/{count}_per_class/top1" for count in (1, 2, 5, 10)),
        *(
            f"clustering/{way}/{of}"
            for way in ("inductive", "transductive")
            for of in ("accuracy", "nmi", "ami", "ari")
        ),
        *(f"retrieval/{measure}" for measure in ("map", "recall_at_1", "recall_at_5", "recall_at_10")),
        "probe/moco_v2/top1",
        "attentive/10_per_class/top1",
        *(f"corruption/knn_k20/{kind}" for kind in ("clean", "mean", "gaussian_noise", "jpeg", "rotation")),
    }
    scores = found["pretrained"]
    assert expected <= set(scores) == set(found["random"])
    assert all(-100 <= score["mean"] <= 100 for score in scores.values())
    assert scores["probe/moco_v2/top1"]["lr"] == 30.0
    assert not any(name.startswith(("attentive", "corruption")) for name in found["pixels"])
    assert "rankme" in found["metrics"]["pretrained"] and "rankme" in found["metrics"]["random, initial"]


def test_features_of_a_backbone_are_extracted_once(workdir, monkeypatch):
    class Extracted(weights.Backbone):
        def features(self, *args, **options):
            raise AssertionError("features are made anew")

    first = evaluate.evaluate(workdir, "", ("knn",))
    loaded = weights.load_backbone(workdir)
    monkeypatch.setattr(
        evaluate, "load_backbone", lambda _: Extracted(loaded.model, loaded.variables, loaded.mean, loaded.std)
    )
    assert evaluate.evaluate(workdir, "", ("knn",)) == first


def test_fine_tuning_only_where_asked_for(workdir):
    found = evaluate.evaluate(workdir, "", ("knn",))
    assert set(found["pretrained"]) == {"knn/k20_t0.07/top1", "knn/k200_t0.07/top1"}
    assert not (workdir / "samples" / "predictions.npz").exists()  # those of the evaluation before are gone


def test_unknown_protocols_are_refused(workdir):
    with pytest.raises(SystemExit, match=r"no protocol \['liner'\]; it has knn, "):
        evaluate.main([f"--workdir={workdir}", "--protocols=knn,liner"])
