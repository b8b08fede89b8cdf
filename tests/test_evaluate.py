import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import build, evaluate, models, run, weights
from ssl_jax import config as configs
from ssl_jax.data import sources
from ssl_jax.evaluation.block_probes import BLOCK_PROBES
from ssl_jax.finetune import Recipe
from ssl_jax.models.vit import ViT
from tests.test_train import CONFIG, make_folder

PROTOCOLS = ("knn", "linear", "finetune")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """That of a run of no steps, on a folder of two classes."""
    images = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        make_folder(images / split, labeled=True)
    config = configs.get_config(f"{CONFIG}:folder")
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
    frozen = {"knn/k20_t0.07/top1", "linear/10_per_class/top1", "linear/all/top1"}
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
    assert "kNN with k=200 left out: there are only 64 labelled images to look among" in printed
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
        *(f"knn/k{k}_t{t}/top1" for k in (10, 20) for t in (0.07, 0.1)),
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


def test_features_are_extracted_once_and_fine_tuning_is_only_where_asked_for(workdir, monkeypatch):
    class Extracted(weights.Backbone):
        def features(self, *args, **options):
            raise AssertionError("features are made anew")

    found = evaluate.evaluate(workdir, "", ("knn",))
    assert set(found["pretrained"]) == {"knn/k20_t0.07/top1"}
    assert found["data"]["majority"] == {"class": "class_0", "percent": 50.0}
    assert not (workdir / "samples" / "predictions.npz").exists()  # those of the evaluation before are gone
    loaded = weights.load_backbone(workdir)
    monkeypatch.setattr(
        evaluate, "load_backbone", lambda _: Extracted(loaded.model, loaded.variables, loaded.mean, loaded.std)
    )
    assert evaluate.evaluate(workdir, "", ("knn",)) == found


def scored(mean, class_mean):
    return {"knn": {"mean": mean, "std": 0.0, "class_mean": class_mean}}


def table(pretrained, random, capsys):
    evaluate.print_table(
        {
            "data": {"majority": {"class": "cat", "percent": 62.0}},
            "pretrained": pretrained,
            "random": random,
            "pixels": {},
            "random_variants": {"initial": random},
            "metrics": {"pretrained": {}},
        }
    )
    return capsys.readouterr().out


def test_the_mean_over_classes_stands_beside_an_accuracy_that_it_differs_from(capsys):
    printed = table(scored(80.0, 61.25), scored(70.0, 70.0), capsys)
    assert re.search(r"^knn +80\.0 +\(61\.2\) +70\.0$", printed, re.MULTILINE)
    assert "in brackets: each class counts alike. Always 'cat': 62.0" in printed


def test_classes_of_one_size_have_no_brackets(capsys):
    printed = table(scored(80.0, 80.0), scored(70.0, 70.0), capsys)
    assert "(" not in printed and "the largest class has 62.0 of the test images" in printed


def test_some_images_of_a_sorted_set_are_of_all_classes():
    labels = np.repeat([0, -1, 1, 2], 6)
    images = np.arange(24, dtype=np.uint8)[:, None, None, None]
    batches = [{"image": images[i : i + 5], "label": labels[i : i + 5]} for i in range(0, 24, 5)]
    found, of = evaluate.spread(lambda: batches, 18, 7)
    np.testing.assert_array_equal(found.ravel(), [0, 3, 12, 14, 17, 20, 23])
    np.testing.assert_array_equal(of, [0, 0, 1, 1, 1, 2, 2])
    assert len(evaluate.spread(lambda: batches, 18, 2000)[1]) == 18


ARRAYS = [
    sources.ArraySource(
        np.random.default_rng(seed).integers(0, 256, (24, 16, 16, 3), np.uint8), np.arange(24) % 3, name="mine"
    )
    for seed in (0, 1)
]


@pytest.fixture
def given_images(workdir):
    """The run, as if it had been trained on images that a program gave."""
    run.describe(workdir, skipped={}, num_images=24, source=run.source_facts(ARRAYS[0], given=True))
    yield workdir
    (workdir / "run.json").unlink()


def test_images_that_a_program_gave_are_asked_for_again(given_images):
    with pytest.raises(configs.ConfigError, match=r"ArraySource 'mine', and its config does not say which they are"):
        evaluate.evaluate(given_images, names=("knn",))


@pytest.mark.slow
def test_images_that_a_program_gives_are_measured_on(given_images):
    cached = set((given_images / "features").glob("*"))
    found = evaluate.evaluate(given_images, names=("knn",), pair=tuple(ARRAYS))
    assert found["data"]["name"] == "mine" and found["data"]["digest"] == ARRAYS[0].digest()
    assert (found["data"]["train_images"], found["data"]["classes"]) == (24, ["0", "1", "2"])
    assert set((given_images / "features").glob("*")) == cached


@pytest.mark.parametrize(
    "model, probe, message",
    [
        (models.create("resnet8"), "dino_4_blocks", "ResNet has no blocks of tokens"),
        (ViT(dim=16, heads=2, class_token=False, pool="norm_mean"), "dino_4_blocks", "the model has no class token"),
        (ViT(dim=16, heads=2, class_token=False, pool="norm_mean"), "lejepa_blocks", ""),
        (ViT(dim=16, heads=2, depth=2), "dinov2_blocks", "the model has 2 blocks, fewer than 4"),
        (ViT(dim=16, heads=2, pool="mean"), "dino_1_block", "no LayerNorm for single tokens"),
        (ViT(dim=16, heads=2, pool="mean"), "msn_block", ""),
        (ViT(dim=16, heads=2), "dinov2_blocks", ""),
    ],
)
def test_what_a_model_lacks_for_a_probe_of_its_blocks_is_told(model, probe, message):
    found = evaluate.lacks(model, BLOCK_PROBES[probe])
    assert message in found if message else found == ""


def test_unknown_protocols_are_refused(workdir):
    with pytest.raises(SystemExit, match=r"no protocol \['liner'\]; it has knn, "):
        evaluate.main([f"--workdir={workdir}", "--protocols=knn,liner"])
