"""From a folder and a file of published weights to scores, embeddings, a classifier and predictions."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import ssl_jax
from ssl_jax import models
from ssl_jax.__main__ import main
from ssl_jax.weights import torch_tensors
from tests.debian import STAMPS, needs_stamps


def tensors_of(name, size, **options):
    """As of a published file: timm's names, random values."""
    module = models.create(name, **options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *size, 3)))
    return torch_tensors(variables)


@pytest.mark.slow
@needs_stamps
def test_from_a_folder_and_weights_to_predictions(tmp_path, capsys):
    name, size = "vit_tiny_patch16_224", (32, 32)
    tensors = tensors_of(name, size, image_size=32)
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({f"teacher.backbone.{key}": value for key, value in tensors.items()}, file)
    given = [f"--backbone={file}", f"--model={name}", f"--data={STAMPS}", "--image_size=32"]
    main(["evaluate", *given, "--protocols=knn", "--baselines=none", f"--out={tmp_path / 'scores.json'}"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 < scores["pretrained"]["knn/k20_t0.07/top1"]["mean"] <= 100
    main(["embed", *given, f"--out={tmp_path / 'stamps.npz'}"])
    with np.load(tmp_path / "stamps.npz") as file:
        embedded, names = file["embeddings"], file["names"]
    assert embedded.shape == (len(names), 192)
    main(["finetune", *given, "--steps=3", "--learning_rates=0.001", f"--out={tmp_path / 'tuned'}"])
    main(["predict", f"--workdir={tmp_path / 'tuned'}", f"--data={STAMPS}", f"--out={tmp_path / 'classes.csv'}"])
    with (tmp_path / "classes.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["name"] for row in rows] == names.tolist()
    main(["export", f"--workdir={tmp_path / 'tuned'}", "--to=timm", f"--out={tmp_path / 'tuned.safetensors'}"])
    back = ssl_jax.load_backbone(tmp_path / "tuned.safetensors", name)
    assert back.model.image_size == 32
    assert "top1" in json.loads((tmp_path / "tuned" / "scores.json").read_text())
    capsys.readouterr()


@pytest.mark.slow
def test_weights_for_three_channels_measure_images_of_many(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4000, (60, 16, 16, 5)).astype(np.uint16)
    labels = np.arange(60) % 2
    images[labels == 1, :8] //= 4
    np.savez(tmp_path / "bands.npz", images=images, labels=labels)
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(tensors_of("resnet18", (16, 16)), file)
    given = [f"--backbone={file}", "--model=resnet18", f"--data={tmp_path / 'bands.npz'}", "--image_size=16"]
    with pytest.raises(SystemExit, match=r"for images of 3 channels, and those of .* have 5; give --channels=5"):
        main(["embed", *given, f"--out={tmp_path / 'h.npz'}"])
    main(["embed", *given, "--channels=5", "--inflate=first", f"--out={tmp_path / 'h.npz'}"])
    assert "normalized by its own dtype uint16, value_range" in capsys.readouterr().out
    with np.load(tmp_path / "h.npz") as file:
        assert file["embeddings"].shape == (60, 512)
        assert np.isfinite(file["embeddings"]).all()


def test_flags_of_a_file_are_refused_for_a_run():
    with pytest.raises(SystemExit, match=r"--prefix=teacher. goes with --backbone only"):
        main(["embed", "--workdir=runs/a", "--prefix=teacher.", "--data=X", "--out=h.npz"])
