import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax import models, weights
from ssl_jax.cli.evaluate import main
from ssl_jax.data import sources
from ssl_jax.evaluation import evaluate, of_backbones
from ssl_jax.evaluation.block_probes import BLOCK_PROBES
from ssl_jax.evaluation.evaluation import Evaluation
from ssl_jax.evaluation.finetuning_recipes import small_recipe
from ssl_jax.models.vit import ViT
from ssl_jax.training import build, reading
from ssl_jax.training.measuring import measured
from ssl_jax.workdir import config_file, facts
from tests.cli.test_train import CONFIG, make_folder
from tests.report.pages import Page

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
    config = measured(config)
    workdir = tmp_path_factory.mktemp("run")
    config_file.claim(workdir, config)
    config = configs.parse(config)
    variables = build.backbone(config).init(jax.random.key(7), jnp.zeros((1, 16, 16, 3)))
    meta = {"model": build.model_options(config), "image_size": [16, 16], "channels": 3}
    weights.save_backbone(workdir, variables, meta | {"mean": list(config.data.mean), "std": list(config.data.std)})
    return workdir


def test_the_images_of_a_run_are_opened_whole_only_if_they_have_to_be(workdir, monkeypatch):
    config = configs.parse(config_file.read_config(workdir))
    train, opened = reading.whole_source(config), []
    whole = reading.whole_source
    monkeypatch.setattr(reading, "whole_source", lambda config: opened.append(config) or whole(config))
    monkeypatch.setattr(facts, "trained_on", lambda workdir: facts.of_source(train, given=False))
    assert evaluate.own_pair(workdir, config)[0].digest() == train.digest() and not opened
    other = {**facts.of_source(train, given=False), "digest": "0" * 12}
    monkeypatch.setattr(facts, "trained_on", lambda workdir: other)
    with pytest.raises(configs.ConfigError, match="have changed since the run"):
        evaluate.own_pair(workdir, config)
    assert len(opened) == 1


@pytest.mark.slow
def test_every_protocol_beside_its_baselines(workdir, capsys, monkeypatch):
    quick = functools.partial(small_recipe, steps=5, learning_rates=(1e-3,))
    monkeypatch.setattr(of_backbones, "small_recipe", quick)
    checksum = (workdir / weights.FILE).read_bytes()
    found = evaluate.evaluate(workdir, protocols=PROTOCOLS)
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
    printed = f"{capsys.readouterr().out}\n{found}"
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
    monkeypatch.setattr(of_backbones, "CORRUPTED_IMAGES", 8)
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
    found = evaluate.evaluate(workdir, protocols=names)
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

    found = evaluate.evaluate(workdir, protocols=("knn",))
    assert set(found["pretrained"]) == {"knn/k20_t0.07/top1"}
    assert found["data"]["majority"] == {"class": "class_0", "percent": 50.0}
    assert not (workdir / "samples" / "predictions.npz").exists()  # those of the evaluation before are gone
    loaded = weights.load_backbone(workdir)
    fields = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)}
    monkeypatch.setattr(evaluate, "load_backbone", lambda _: Extracted(**fields))
    assert evaluate.evaluate(workdir, protocols=("knn",)) == found


def scored(mean, class_mean):
    return {"knn": {"mean": mean, "std": 0.0, "class_mean": class_mean}}


def table(pretrained, **baselines):
    found = {
        "data": {"majority": {"class": "cat", "percent": 62.0}},
        "pretrained": pretrained,
        **baselines,
        "metrics": {"pretrained": {"rankme": 3.5}},
    }
    return str(Evaluation(found))


def with_random(scores):
    return {"random": scores, "random_variants": {"initial": scores}, "pixels": {}}


def test_the_mean_over_classes_stands_beside_an_accuracy_that_it_differs_from():
    printed = table(scored(80.0, 61.25), **with_random(scored(70.0, 70.0)))
    assert re.search(r"^knn +80\.0 +\(61\.2\) +70\.0$", printed, re.MULTILINE)
    assert "in brackets: each class counts alike. Always 'cat': 62.0" in printed


def test_classes_of_one_size_have_no_brackets():
    printed = table(scored(80.0, 80.0), **with_random(scored(70.0, 70.0)))
    assert "(" not in printed and "the largest class has 62.0 of the test images" in printed
    assert "random: the best of initial" in printed and "without labels: rankme 3.5" in printed


def test_baselines_that_were_left_out_have_no_column():
    printed = table(scored(80.0, 80.0))
    assert "pretrained" in printed and "random" not in printed and "pixels" not in printed


def test_some_images_of_a_sorted_set_are_of_all_classes():
    labels = np.repeat([0, -1, 1, 2], 6)
    images = np.arange(24, dtype=np.uint8)[:, None, None, None]
    batches = [{"image": images[i : i + 5], "label": labels[i : i + 5]} for i in range(0, 24, 5)]
    found, of = of_backbones.spread(lambda: batches, 18, 7)
    np.testing.assert_array_equal(found.ravel(), [0, 3, 12, 14, 17, 20, 23])
    np.testing.assert_array_equal(of, [0, 0, 1, 1, 1, 2, 2])
    assert len(of_backbones.spread(lambda: batches, 18, 2000)[1]) == 18


ARRAYS = [
    sources.ArraySource(
        np.random.default_rng(seed).integers(0, 256, (24, 16, 16, 3), np.uint8), np.arange(24) % 3, name="mine"
    )
    for seed in (0, 1)
]


@pytest.fixture
def given_images(workdir):
    """The run, as if it had been trained on images that a program gave."""
    facts.describe(workdir, skipped={}, num_images=24, source=facts.of_source(ARRAYS[0], given=True))
    yield workdir
    (workdir / "run.json").unlink()


def test_images_that_a_program_gave_are_asked_for_again(given_images):
    with pytest.raises(configs.ConfigError, match=r"ArraySource 'mine', and its config does not name them"):
        evaluate.evaluate(given_images, protocols=("knn",))


@pytest.mark.slow
def test_images_that_a_program_gives_are_measured_on(given_images):
    cached = set((given_images / "features").glob("*"))
    found = evaluate.evaluate(given_images, *ARRAYS, protocols=("knn",))
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
    found = of_backbones.lacks_blocks(model, BLOCK_PROBES[probe])
    assert message in found if message else found == ""


OTHERS = [sources.ArraySource(np.zeros((24, 16, 16, 3), np.uint8), np.arange(24) % 3, name="others")] * 2


def test_other_images_than_a_run_was_trained_on_are_measured_on_only_if_meant(given_images):
    with pytest.raises(configs.ConfigError, match=r"'mine' .*given now are ArraySource 'others'.*other_data=True"):
        evaluate.evaluate(given_images, *OTHERS, protocols=("knn",))
    found = evaluate.evaluate(given_images, *OTHERS, protocols=("knn",), baselines=(), other_data=True)
    assert found["data"]["name"] == "others"


def untrained(model="resnet8", **options):
    module = models.create(model, **options)
    variables = jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, 16, 16, 3)))
    return weights.Backbone(module, variables, (0.5,) * 3, (0.25,) * 3)


def test_a_backbone_without_a_run_is_measured(tmp_path):
    backbone = untrained(stages=(1,), width=0.25)
    found = evaluate.evaluate(backbone, *ARRAYS, protocols=("knn",), baselines=("pixels",), image_size=(16, 16))
    assert set(found["pretrained"]) == set(found["pixels"]) == {"knn/k20_t0.07/top1"}
    assert "random" not in found and set(found["metrics"]) == {"pretrained"}
    again = evaluate.evaluate(
        dataclasses.replace(backbone, image_size=(16, 16)), *ARRAYS, protocols=("knn",), baselines=("pixels",)
    )
    assert again == found
    assert list(tmp_path.iterdir()) == []


def test_its_untrained_variants_have_both_scales_of_the_residuals():
    backbone = untrained(stages=(1,), width=0.25)
    found = evaluate.evaluate(backbone, *ARRAYS, protocols=("knn",), baselines=("random",), image_size=(16, 16), seed=3)
    assert {*found["random_variants"]} == {
        *("initial", "calibrated", "initial_zero_residual", "calibrated_zero_residual")
    }
    # The same seed, size and module: the same network.
    assert found["random_variants"]["initial"] == found["pretrained"]
    assert "pixels" not in found


def test_images_without_labels_have_metrics_alone():
    plain = sources.ArraySource(np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8), name="plain")
    found = evaluate.evaluate(untrained(stages=(1,), width=0.25), plain, plain, image_size=(16, 16))
    assert "pretrained" not in found and "rankme" in found["metrics"]["pretrained"]
    assert "plain has no labels to measure against" in str(found)


def test_what_a_backbone_cannot_be_measured_on_is_told():
    backbone = untrained(stages=(1,), width=0.25)
    with pytest.raises(ValueError, match=r"give the images to measure on, evaluate\(backbone, train, test\)"):
        evaluate.evaluate(backbone)
    with pytest.raises(ValueError, match="give the images to measure on"):
        evaluate.evaluate(backbone, ARRAYS[0])
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        evaluate.evaluate(backbone, *ARRAYS)
    with pytest.raises(ValueError, match="there is no baseline 'chance'; choose from random, pixels"):
        evaluate.evaluate(backbone, *ARRAYS, baselines=("chance",))
    with pytest.raises(ValueError, match="there is no protocol 'liner'; choose from knn"):
        evaluate.evaluate(backbone, *ARRAYS, protocols=("liner",))
    with pytest.raises(ValueError, match="do not say how their images were normalized"):
        evaluate.evaluate(dataclasses.replace(backbone, mean=(), std=()), *ARRAYS)
    labels = np.arange(24) % 3
    named = sources.ArraySource(np.zeros((24, 16, 16, 3), np.uint8), labels, ("a", "b", "c"), name="named")
    with pytest.raises(ValueError, match="the classes of named are a, b, c, those of mine 0, 1, 2"):
        evaluate.evaluate(backbone, ARRAYS[0], named)
    plain = sources.ArraySource(np.zeros((24, 16, 16, 3), np.uint8), name="plain")
    with pytest.raises(ValueError, match="mine has labels and plain has none"):
        evaluate.evaluate(backbone, ARRAYS[0], plain)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--workdir=X", "--protocols=knn,liner"], r"--protocols: there is no protocol 'liner'; choose from knn, "),
        (
            ["--workdir=X", "--baselines=chance"],
            "--baselines=chance: there is no baseline chance; choose from random, pixels, or",
        ),
        ([], r"give --workdir \(of a run of ssl_jax train\) or --backbone"),
        (["--workdir=X", "--model=resnet8"], "--model=resnet8 goes with --backbone only"),
        (["--backbone=X"], "--data is missing"),
        (["--workdir=X", "--out=scores.txt"], r"must end in .json or .html, got 'scores.txt'"),
        (["--workdir=X", "--bands=red"], "--bands must be numbers separated by commas, got 'red'"),
    ],
)
def test_what_the_command_cannot_do_is_told(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_the_command_measures_weights_of_a_file_on_an_array_file(workdir, tmp_path, capsys):
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8), np.arange(60) % 2
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    file, out = workdir / weights.FILE, tmp_path / "scores.json"
    main(
        [f"--backbone={file}", f"--data={tmp_path / 'data.npz'}", "--protocols=knn", "--baselines=none", f"--out={out}"]
    )
    found = json.loads(out.read_text())
    assert (found["data"]["train_images"], found["data"]["test_images"]) == (48, 12)
    assert found["data"]["classes"] == ["0", "1"] and "random" not in found
    assert re.search(r"^knn/k20_t0.07/top1 +\d", capsys.readouterr().out, re.MULTILINE)
    assert found["backbone"]["file"] == str(file) and found["backbone"]["image_size"] == [16, 16]


def test_the_command_writes_a_page_of_the_scores_beside_them(workdir, tmp_path, capsys):
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8), np.arange(60) % 2
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    given = [f"--data={tmp_path / 'mine.npz'}", "--protocols=knn,linear"]
    of_file, of_run, scores = (tmp_path / name for name in ("of_file.html", "of_run.html", "scores.json"))
    main([f"--backbone={workdir / weights.FILE}", *given, "--baselines=pixels", f"--out={scores},{of_file}"])
    assert capsys.readouterr().out.endswith(f"{scores}\n{of_file}\n")
    page = Page(of_file, lambda path: path)
    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == [
        *("worth", "metrics", "patches", "neighbors", "map")
    ]
    mean = json.loads(scores.read_text())["pretrained"]["knn/k20_t0.07/top1"]["mean"]
    assert f"{mean:.1f}" in page.text and "Raw pixels" in page.text and weights.FILE in page.text
    assert "What is taken for what" in page.text
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz", ".json", ".html"}  # no samples are left
    main([f"--workdir={workdir}", *given, "--baselines=none", f"--out={of_run}"])
    page = Page(of_run, lambda path: path)
    assert f"{mean:.1f}" in page.text and "no baseline beside it" in page.text and page.open == []
