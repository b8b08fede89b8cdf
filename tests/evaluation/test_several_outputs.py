"""Fine-tuning on several labels an image and on measurements; a layer alone; LoRA; averaged weights."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

import ssl_jax
from ssl_jax import data, models, weights
from ssl_jax.cli import finetune as finetune_command
from ssl_jax.cli import predict as predict_command
from ssl_jax.data.augment import Augmentation
from ssl_jax.evaluation import predictions_file
from ssl_jax.evaluation.evaluation import evaluate_backbone
from ssl_jax.evaluation.finetuning_recipes import Recipe
from ssl_jax.evaluation.several_outputs import SeveralOutputs
from ssl_jax.evaluation.tasks import SeveralTask
from ssl_jax.methods import Schedule

SIZE = (8, 8)
NET = {"name": "resnet8", "stages": (1,), "width": 0.25}
VIT = {"name": "vit_tiny_patch16_224", "dim": 16, "depth": 1, "heads": 2, "patch_size": 4, "image_size": 8}
RECIPE = Recipe(Augmentation(size=SIZE, crop_area=(0.9, 1.0)), steps=25, batch_size=32, learning_rates=(1e-2,))
NAMES = ("bright", "striped")


def images(count, seed):
    """Images that are bright or not and striped or not; (images, [bright, striped], their mean gray)."""
    rng = np.random.default_rng(seed)
    has = rng.random((count, 2)) < 0.5
    wave = 50 * np.sign(np.sin(np.arange(8) * np.pi / 2 + 0.5))[None, :, None]
    x = 90 + 70 * has[:, :1, None] + wave * has[:, 1:, None] + rng.normal(0, 8, (count, *SIZE))
    x = np.clip(x, 0, 255).astype(np.uint8)
    return x[..., None], has.astype(np.float32), 1000 + 10 * x.mean(axis=(1, 2))


def several(count, seed):
    x, has, _ = images(count, seed)
    has[::10, 0] = np.nan
    has[::20] = np.nan  # nothing is known of these
    return data.arrays(x, labels=has, class_names=NAMES)


def measured(count, seed):
    x, _, gray = images(count, seed)
    return data.arrays(x, targets=np.stack([gray, np.where(np.arange(count) % 9, -gray, np.nan)], axis=1))


def network(options=NET):
    module = models.create(**options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))
    return weights.Backbone(module, variables, (0.5,), (0.25,), SIZE, {"model": options, "channels": 1})


@pytest.fixture(scope="module")
def labels():
    recipe = dataclasses.replace(RECIPE, steps=60)
    return ssl_jax.finetune(network(), several(160, 0), several(80, 1), recipe=recipe)


@pytest.fixture(scope="module")
def numbers():
    recipe = dataclasses.replace(RECIPE, steps=60)
    return ssl_jax.finetune(network(), measured(160, 0), measured(80, 1), recipe=recipe)


def test_several_labels_are_learned(labels):
    assert labels.classifier.kind == "multilabel" and labels.classifier.names == NAMES
    assert labels.scores["labels"] == 152 and labels.scores["test_images"] == 76
    assert labels.scores["map"] > 90 and labels.scores["auroc"] > 90
    assert set(labels.scores["outputs"]) == set(NAMES)
    x, has, _ = images(60, 2)
    found = labels.classifier.predict(x)
    assert np.mean((found > 0.5) == has) > 0.9
    names, called, values = ssl_jax.predict(labels.classifier, data.arrays(x))
    np.testing.assert_allclose(values, found, atol=1e-5)
    assert called == [";".join(np.array(NAMES)[row > 0.5]) for row in values] and len(names) == 60


def test_measurements_are_learned_in_their_own_units(numbers):
    assert numbers.classifier.kind == "regression"
    assert numbers.scores["r2"] > 80 and numbers.scores["labels"] == 160
    x, _, gray = images(60, 3)
    found = numbers.classifier.predict(x)
    assert np.mean(np.abs(found[:, 0] - gray)) < 200 and np.mean(np.abs(found[:, 1] + gray)) < 200
    assert numbers.scores["outputs"]["0"]["mae"] < 200


def test_the_files_say_what_is_predicted(labels, numbers, tmp_path):
    x, _, _ = images(5, 4)
    for kind, tuned in (("labels", labels), ("numbers", numbers)):
        tuned.save(tmp_path / kind)
        loaded = ssl_jax.load_classifier(tmp_path / kind)
        np.testing.assert_allclose(loaded.predict(x), tuned.classifier.predict(x), rtol=1e-5, atol=1e-5)
        assert loaded.kind == tuned.classifier.kind
    np.save(tmp_path / "new.npy", x)
    given = [f"--workdir={tmp_path / 'labels'}", f"--data={tmp_path / 'new.npy'}"]
    predict_command.main([*given, f"--out={tmp_path / 'labels.csv'}"])
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "labels", *NAMES]
    predict_command.main([*given, f"--out={tmp_path / 'labels.parquet'}"])
    table = pyarrow.parquet.read_table(tmp_path / "labels.parquet").to_pydict()
    assert table["labels"] == [row["labels"] for row in rows]
    np.testing.assert_allclose(table["bright"], [float(row["bright"]) for row in rows], rtol=1e-4, atol=1e-6)
    found = ssl_jax.predict(numbers.classifier, data.arrays(x))
    predictions_file.save(tmp_path / "numbers.csv", found, numbers.classifier)
    assert (tmp_path / "numbers.csv").read_text().splitlines()[0] == "name,0,1"


@pytest.mark.parametrize("made", [several, measured])
def test_a_layer_alone_is_the_linear_probe(made):
    backbone, pair = network(), (made(160, 0), made(80, 1))
    tuned = ssl_jax.finetune(backbone, *pair, head_only=True)
    (score, *_) = evaluate_backbone(backbone, *pair, baselines=())["pretrained"].values()
    expected = [score["outputs"][name] for name in tuned.classifier.names]
    key = "map" if made is several else "r2"
    found = [100 * tuned.scores["outputs"][name][key] for name in tuned.classifier.names]
    np.testing.assert_allclose(found, expected, atol=0.2)
    jax.tree.map(np.testing.assert_array_equal, tuned.classifier.backbone.variables, backbone.variables)


def test_a_layer_alone_of_classes_is_the_linear_probe():
    x, has, _ = images(160, 0)
    train = data.arrays(x, labels=has[:, 1].astype(int))
    x, has, _ = images(80, 1)
    test = data.arrays(x, labels=has[:, 1].astype(int))
    tuned = ssl_jax.finetune(network(), train, test, head_only=True)
    found = evaluate_backbone(network(), train, test, protocols=("linear",), baselines=())["pretrained"]
    assert tuned.scores["top1"] == pytest.approx(found["linear/all/top1"]["mean"], abs=0.01)
    hits = np.argmax(tuned.classifier.predict(x), axis=1) == has[:, 1]
    assert 100 * hits.mean() == pytest.approx(tuned.scores["top1"], abs=0.01)
    with pytest.raises(ValueError, match="head_only trains no backbone and needs no recipe"):
        ssl_jax.finetune(network(), train, head_only=True, recipe=RECIPE)


@pytest.mark.slow
def test_low_rank_adaptation_changes_the_kernels_by_products_of_that_rank():
    x, has, _ = images(160, 0)
    train = data.arrays(x, labels=has[:, 1].astype(int))
    recipe = dataclasses.replace(RECIPE, lora_rank=2, steps=15, ema_decay=0.9)
    before = network(VIT)
    tuned = ssl_jax.finetune(before, train, recipe=recipe)
    after = tuned.classifier.backbone.variables["params"]
    difference = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), after, before.variables["params"])
    kernels = difference.pop("blocks_0")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(difference))
    for part in (kernels["attn"]["qkv"], kernels["mlp"]["fc1"]):
        # Of averages of products the rank may be higher; that of each product is 2.
        assert np.any(part.pop("kernel")) and not any(np.any(leaf) for leaf in jax.tree.leaves(part))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((kernels["norm1"], kernels["norm2"])))


@pytest.mark.slow
def test_averaged_weights_are_others_and_as_good():
    x, has, _ = images(160, 0)
    train = data.arrays(x, labels=has[:, 0].astype(int))
    x, has, _ = images(80, 1)
    test = data.arrays(x, labels=has[:, 0].astype(int))
    last, averaged = (
        ssl_jax.finetune(network(), train, test, recipe=dataclasses.replace(RECIPE, ema_decay=decay))
        for decay in (0.0, 0.8)
    )
    assert last.scores["top1"] > 90 and averaged.scores["top1"] > 90
    assert np.max(np.abs(last.classifier.kernel - averaged.classifier.kernel)) > 1e-4


@pytest.mark.parametrize("binary", [True, False])
def test_the_loss_is_the_mean_over_what_is_known(binary):
    rows = 16
    run = Schedule(batch_size=rows, steps=5, steps_per_epoch=1, num_images=40)
    method = SeveralOutputs(models.create(**VIT), run, outputs=3, binary=binary)
    params, state = jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))
    rng = np.random.default_rng(0)
    params = {**params, "classifier": jax.tree.map(lambda p: p + 0.3, params["classifier"])}
    table = (rng.random((40, 3)) < 0.5).astype(np.float32) if binary else rng.normal(size=(40, 3)).astype(np.float32)
    table[rng.random((40, 3)) < 0.4] = np.nan
    state = {**state, "table": jnp.asarray(table)}
    views = jnp.asarray(rng.normal(size=(rows, *SIZE, 1)), jnp.float32)
    index = jnp.asarray(rng.permutation(40)[:rows])
    batch = {"views": (views,), "index": index, "label": jnp.full(rows, -1)}
    features = np.asarray(method.features(params, state, views), np.float64)
    (layer,) = params["classifier"].values()
    outputs = features @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
    wanted = table[np.asarray(index)]
    known = ~np.isnan(wanted)
    if binary:
        errors = np.log1p(np.exp(outputs)) - wanted * outputs
        slopes = 1 / (1 + np.exp(-outputs)) - wanted
    else:
        errors, slopes = (outputs - wanted) ** 2, 2 * (outputs - wanted)
    slopes = np.where(known, slopes, 0.0) / known.sum()

    def loss(params, batch, axis_name=None):
        return method.loss(params, state, batch, jax.random.key(0), axis_name=axis_name).loss

    found, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    np.testing.assert_allclose(found, errors[known].mean(), rtol=1e-5)
    (of_layer,) = grads["classifier"].values()
    np.testing.assert_allclose(of_layer["bias"], slopes.sum(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_layer["kernel"], features.T @ slopes, rtol=1e-4, atol=1e-6)
    # Devices have different numbers of known targets.
    shards = jax.tree.map(lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), batch)
    parts = jax.jit(jax.vmap(lambda rows: loss(params, rows, "devices"), axis_name="devices"))(shards)
    np.testing.assert_allclose(parts.mean(), found, rtol=1e-5)


def test_what_is_not_known_and_constant_outputs_do_not_break_the_scores():
    task = SeveralTask("regression", ("a", "b", "c"), (1.0, 2.0, 3.0), (2.0, 1.0, 1.0))
    truth = np.array([[1, np.nan, 5], [3, np.nan, 5], [5, 2, 5]], np.float32)
    outputs = np.array([[1, 0, 0], [3, 0, 0], [5, 0, 0]], np.float32)
    scores = task.scores(outputs, truth)
    assert scores == {"r2": 100.0, "outputs": {"a": {"r2": 1.0, "mae": 0.0}}}
    np.testing.assert_allclose(task.table(truth)[:, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="per_class=3 counts images of a class"):
        task.draw(measured(20, 0), 3, 0)


def test_the_command_takes_measurements_and_refuses_what_does_not_go_together(tmp_path, capsys):
    backbone = network()
    meta = {**backbone.facts, "image_size": [*SIZE], "mean": [0.5], "std": [0.25]}
    weights.save_backbone(tmp_path, backbone.variables, meta)
    x, _, gray = images(60, 0)
    np.savez(tmp_path / "data.npz", images=x, targets=gray)
    given = [f"--workdir={tmp_path}", f"--data={tmp_path / 'data.npz'}", f"--out={tmp_path / 'out'}"]
    finetune_command.main([*given, "--head_only"])
    assert "explained variance" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--head_only trains no backbone; leave out --lora_rank"):
        finetune_command.main([*given, "--head_only", "--lora_rank=4"])
    with pytest.raises(SystemExit, match="adapts kernels of attention and MLPs, and this backbone has none"):
        finetune_command.main([*given, "--lora_rank=4"])
    with pytest.raises(SystemExit, match="ema_decay in \\[0, 1\\), got 0, 16 and 1"):
        finetune_command.main([*given, "--ema_decay=1"])
