import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import models, weights
from ssl_jax.cli import finetune as finetune_command
from ssl_jax.cli import predict as predict_command
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.sources import ArraySource
from ssl_jax.evaluation import classifier, finetuning
from ssl_jax.evaluation.finetuning_recipes import Recipe

SIZE = (12, 12)
OPTIONS = {"name": "resnet8", "stages": (1,), "width": 0.5}
RECIPE = Recipe(Augmentation(size=SIZE, crop_area=(0.9, 1.0)), steps=20, batch_size=32, learning_rates=(1e-6, 1e-2))


def stripes(images, seed):
    """Noisy images of horizontal and of vertical stripes; some of the first are without a label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, images).astype(np.int32)
    wave = 60 * np.sign(np.sin(np.arange(12) * np.pi / 2 + 0.5))
    pattern = np.where(labels[:, None, None] == 1, wave[None, None, :], wave[None, :, None])
    x = np.clip(128 + pattern + rng.normal(0, 40, (images, *SIZE)), 0, 255).astype(np.uint8)
    labels[: images // 10] = -1
    return ArraySource(x, labels, class_names=("down", "across"), name=f"stripes {seed}")


@pytest.fixture(scope="module")
def small():
    module = models.create(**OPTIONS)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))
    return weights.Backbone(module, variables, (0.5,), (0.25,), SIZE, {"model": OPTIONS, "method": "none"})


@pytest.fixture(scope="module")
def tuned(small):
    return ssl_jax.finetune(small, stripes(120, 0), stripes(80, 1), recipe=RECIPE, per_class=32)


def test_what_was_trained_is_kept(small, tuned):
    assert tuned.scores["learning_rate"] == 1e-2 and tuned.scores["labels"] == 64
    assert tuned.scores["top1"] > 85 and tuned.scores["test_images"] == 72
    assert np.any(np.asarray(jax.tree.leaves(tuned.classifier.backbone.variables)[0] != 0))
    # It is the measuring function's first draw.
    expected = finetuning.measure_finetuning(
        small, stripes(120, 0), stripes(80, 1), recipe=RECIPE, image_size=SIZE, per_class=32, seeds=(0,)
    )
    assert tuned.scores["top1"] == pytest.approx(float(expected.accuracies[0, -1]), abs=1e-4)
    facts = tuned.classifier.facts
    assert facts["train"]["name"] == "stripes 0" and facts["test"]["kind"] == "ArraySource"
    assert facts["train"]["digest"] == stripes(120, 0).digest() and facts["began_with"]["method"] == "none"


def test_probabilities_are_of_the_classes(tuned):
    source = stripes(80, 1)
    images, labels = np.stack([source[i] for i in range(80)]), source.labels
    found = tuned.classifier.predict(images)
    assert found.shape == (80, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    hits = np.argmax(found, axis=1) == labels
    assert 100 * hits[labels >= 0].mean() == pytest.approx(tuned.scores["top1"], abs=1e-4)
    np.testing.assert_allclose(tuned.classifier.predict(images[:3]), found[:3], atol=1e-5)


def test_it_comes_back_from_its_files(tuned, tmp_path):
    tuned.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("backbone.safetensors", "backbone.json", "classifier.safetensors", "classifier.json", "scores.json")
    }
    loaded = ssl_jax.load_classifier(tmp_path / "out")
    source = stripes(10, 2)
    images = np.stack([source[i] for i in range(10)])
    np.testing.assert_allclose(loaded.predict(images), tuned.classifier.predict(images), atol=1e-6)
    assert loaded.names == ("down", "across") and loaded.facts["seed"] == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["top1"] == tuned.scores["top1"]


def test_predictions_have_a_row_for_each_image(tuned, tmp_path):
    source = stripes(20, 3)
    names, classes, probabilities = ssl_jax.predict(tuned.classifier, source)
    assert names == [str(i) for i in range(20)] and set(classes) == {"down", "across"}
    assert [("down", "across")[k] for k in np.argmax(probabilities, axis=1)] == classes
    tuned.save(tmp_path / "out")
    np.save(tmp_path / "new.npy", np.stack([source[i] for i in range(20)]))
    out = tmp_path / "predictions.csv"
    predict_command.main([f"--workdir={tmp_path / 'out'}", f"--data={tmp_path / 'new.npy'}", f"--out={out}"])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "class", "probability", "down", "across"]
    assert [row["class"] for row in rows] == classes
    np.testing.assert_allclose([float(row["across"]) for row in rows], probabilities[:, 1], rtol=1e-4, atol=1e-5)
    assert all(row["probability"] == max(row["down"], row["across"], key=float) for row in rows)


def test_the_command_tunes_and_writes(small, tmp_path, capsys):
    source = stripes(200, 0)
    np.savez(tmp_path / "data.npz", images=np.stack([source[i] for i in range(200)]), labels=source.labels)
    meta = {**small.facts, "image_size": [*SIZE], "channels": 1, "mean": [0.5], "std": [0.25]}
    weights.save_backbone(tmp_path, small.variables, meta)
    out = tmp_path / "tuned"
    arguments = [f"--workdir={tmp_path}", f"--data={tmp_path / 'data.npz'}", f"--out={out}"]
    finetune_command.main([*arguments, "--steps=3", "--batch_size=32", "--learning_rates=0.01"])
    scores = json.loads((out / "scores.json").read_text())
    assert scores["steps"] == 3 and scores["learning_rate"] == 0.01 and scores["held_out_error"] == {}
    assert ssl_jax.load_classifier(out).names == ("0", "1")
    assert "test images are classified correctly" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--steps must be an integer of at least 0, got 'x'"):
        finetune_command.main([*arguments, "--steps=x"])
    with pytest.raises(SystemExit, match="per_class 1 leaves no label to choose"):
        finetune_command.main([*arguments, "--per_class=1"])


def test_what_cannot_be_tuned_is_refused(small):
    plain = ArraySource(np.zeros((20, *SIZE), np.uint8), name="plain")
    with pytest.raises(ValueError, match="plain has no labels, which fine-tuning needs"):
        ssl_jax.finetune(small, plain, recipe=RECIPE)
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        ssl_jax.finetune(dataclasses.replace(small, image_size=None), stripes(40, 0))
    other = ArraySource(np.zeros((20, *SIZE), np.uint8), np.arange(20, dtype=np.int32) % 2, name="other")
    with pytest.raises(ValueError, match="stripes 0 and other have different classes"):
        ssl_jax.finetune(small, stripes(40, 0), other)


def test_files_that_are_no_classifier_are_refused(tuned, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*classifier\.safetensors; ssl_jax finetune --out"):
        classifier.load_classifier(tmp_path)
    tuned.save(tmp_path)
    (tmp_path / "classifier.json").write_text('{"kind": "classes", "names": ["a", "b", "c"], "facts": {}}')
    with pytest.raises(ValueError, match=r"has 2 outputs, but .* names 3"):
        classifier.load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        classifier.load_classifier(tmp_path)
    with pytest.raises(SystemExit, match="is damaged"):
        predict_command.main([f"--workdir={tmp_path}", "--data=X", "--out=Y.csv"])
