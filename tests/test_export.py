import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import export as jax_export

import ssl_jax
from ssl_jax import exporting, models, weights
from ssl_jax.cli.export import main

SIZE = (16, 16)
RESNET = {"name": "resnet8", "stages": (1,), "width": 0.25}
VIT = {"name": "vit_tiny_patch16_224", "dim": 16, "heads": 2, "depth": 1, "patch_size": 8, "image_size": 16}
IMAGES = np.random.default_rng(1).random((5, *SIZE, 3), np.float32)


def network(options):
    module = models.create(**options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    return weights.Backbone(module, variables, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), SIZE, {"model": options})


class MyNet(nn.Module):
    dim: int = 4

    @nn.compact
    def __call__(self, images, train=False, axis_name=None):
        return nn.Dense(self.dim)(images.mean(axis=(1, 2)))


def own_network():
    module = MyNet()
    return weights.Backbone(
        module, module.init(jax.random.key(0), jnp.zeros((1, *SIZE, 3))), (0.5,) * 3, (0.25,) * 3, SIZE
    )


@pytest.mark.parametrize("options", [RESNET, VIT], ids=["resnet", "vit"])
def test_timms_file_has_its_names_and_nothing_of_ours(tmp_path, options):
    backbone, path = network(options), tmp_path / "b.safetensors"
    assert ssl_jax.export(backbone, path, to="timm") == path
    with safetensors.safe_open(path, framework="numpy") as file:
        assert not file.metadata()
        names = set(file.keys())
    assert {"resnet8": "conv1.weight"}.get(options["name"], "blocks.0.attn.qkv.weight") in names
    kwargs = {key: value for key, value in options.items() if key != "name"}
    loaded = weights.load_backbone(path, model=models.create(options["name"], **kwargs))
    normalized = np.asarray(backbone.preprocess(IMAGES))
    np.testing.assert_allclose(
        loaded.features(normalized, normalized=True), backbone.features(IMAGES), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("options", [RESNET, VIT, None], ids=["resnet", "vit", "own"])
def test_a_stablehlo_program_takes_any_batch_and_normalizes(tmp_path, options):
    backbone = network(options) if options else own_network()
    path = ssl_jax.export(backbone, tmp_path / "b.stablehlo", to="stablehlo")
    program = jax_export.deserialize(bytearray(path.read_bytes()))
    for count in (1, 5):
        found = program.call(IMAGES[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, backbone.features(IMAGES[:count]), rtol=1e-4, atol=1e-4)


def test_what_gives_other_features_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    backbone, path = network(RESNET), tmp_path / "b.safetensors"
    tensors = exporting.torch_tensors

    def wrong(variables):
        return {name: value * (1.001 if name == "conv1.weight" else 1.0) for name, value in tensors(variables).items()}

    path.write_bytes(b"before")
    monkeypatch.setattr(exporting, "torch_tensors", wrong)
    monkeypatch.setattr(exporting, "TOLERANCE", 1e-9)
    with pytest.raises(exporting.ExportError, match=r"gives other features than the backbone: off by .* not written"):
        ssl_jax.export(backbone, path, to="timm")
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"] and path.read_bytes() == b"before"


@pytest.mark.parametrize("to", ["hf", "onnx"])
def test_what_is_not_there_yet_says_so(tmp_path, to):
    with pytest.raises(ValueError, match=f"to='{to}' is not there yet; there are timm, stablehlo"):
        ssl_jax.export(own_network(), tmp_path / "b", to=to)
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs flatbuffers: pip install 'ssl_jax\[stablehlo\]'"):
        ssl_jax.export(own_network(), tmp_path / "b", to="stablehlo")


def test_what_cannot_be_exported_is_told(tmp_path):
    path = tmp_path / "b"
    with pytest.raises(ValueError, match="no to='torch'; there are timm, stablehlo"):
        ssl_jax.export(own_network(), path, to="torch")
    with pytest.raises(ValueError, match=r"timm has no MyNet: .* to='stablehlo' takes any backbone"):
        ssl_jax.export(own_network(), path, to="timm")
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        ssl_jax.export(dataclasses.replace(own_network(), image_size=None), path, to="stablehlo")
    with pytest.raises(ValueError, match="how their images were normalized"):
        ssl_jax.export(dataclasses.replace(own_network(), mean=(), std=()), path, to="stablehlo")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    backbone = network(RESNET)
    meta = {**backbone.facts, "image_size": [*SIZE], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    weights.save_backbone(tmp_path, backbone.variables, meta)
    out = tmp_path / "timm.safetensors"
    main([f"--workdir={tmp_path}", "--to=timm", f"--out={out}"])
    assert "gives the same features as the backbone" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--to is missing"):
        main([f"--workdir={tmp_path}", f"--out={out}"])
    # A file without our header: its architecture is named, and is known from then on.
    (tmp_path / "again").mkdir()
    with pytest.raises(SystemExit, match="does not say what architecture"):
        main([f"--backbone={out}", "--to=timm", f"--out={tmp_path / 'again' / 'x'}"])
