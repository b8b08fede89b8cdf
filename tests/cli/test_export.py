import dataclasses
import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import safetensors
from jax import export as jax_export

import ssl_jax
from ssl_jax import exporting, models, weights
from ssl_jax.cli.export import main
from ssl_jax.evaluation import cache
from ssl_jax.exporting import onnx_graph, timm_names

SIZE = (16, 16)
RESNET = {"name": "resnet8", "stages": (1,), "width": 0.25}
VIT = {"name": "vit_tiny_patch16_224", "dim": 16, "heads": 2, "depth": 1, "patch_size": 8, "image_size": 16}
DINOV3 = {"name": "vit_small_plus_patch16_dinov3", "dim": 16, "heads": 2, "depth": 1, "patch_size": 8}
MAE = {**VIT, "positions": "sincos"}
HUB = {  # name -> (options, size, channels)
    "resnet": ({"name": "resnet18"}, SIZE, 3),
    "mae": (MAE, (16, 24), 4),
    "dinov3": ({**DINOV3, "pool": "norm_mean"}, (16, 24), 1),
}
IMAGES = np.random.default_rng(1).random((5, *SIZE, 3), np.float32)


@functools.cache
def network_of(text, size, channels):
    options = json.loads(text)
    module = models.create(**options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *size, channels)))
    mean, std = (0.5, 0.4, 0.3, 0.6)[:channels], (0.2, 0.25, 0.3, 0.1)[:channels]
    return weights.Backbone(module, variables, mean, std, size, {"model": options})


def network(options, size=SIZE, channels=3):
    return network_of(json.dumps(options), size, channels)


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


def test_timms_file_has_its_names_and_nothing_of_ours(tmp_path):
    backbone, path = network(DINOV3), tmp_path / "b.safetensors"
    assert ssl_jax.export(backbone, path, to="timm") == path
    with safetensors.safe_open(path, framework="numpy") as file:
        assert not file.metadata()
        names = set(file.keys())
    of_block = ("attn.qkv", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2", "norm1", "norm2")
    with_bias = {f"blocks.0.{name}.{of}" for name in of_block for of in ("weight", "bias")} - {"blocks.0.attn.qkv.bias"}
    patches = {"patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    # The state_dict of timm 1.0.31's model with these arguments.
    assert names == with_bias | patches | {"blocks.0.gamma_1", "blocks.0.gamma_2", "cls_token", "reg_token"}
    assert exporting.how_to_load(backbone, path, to="timm") == (
        "timm.create_model(\"vit_small_plus_patch16_dinov3\", num_classes=0, global_pool='token', embed_dim=16, "
        f'num_heads=2, depth=1, patch_size=8).load_state_dict(safetensors.torch.load_file("{path}"))'
    )


@pytest.mark.parametrize("options, size, channels", HUB.values(), ids=HUB)
def test_a_directory_of_the_hub_comes_back_as_it_was(tmp_path, options, size, channels):
    backbone = network(options, size, channels)
    path = ssl_jax.export(backbone, tmp_path / "own", to="hf")
    assert {file.name for file in path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert [file.name for file in tmp_path.iterdir()] == ["own"]
    loaded, images = ssl_jax.load_backbone(path), np.random.default_rng(1).random((2, *size, channels), np.float32)
    np.testing.assert_allclose(loaded.features(images), backbone.features(images), rtol=1e-4, atol=1e-5)
    assert (loaded.mean, loaded.image_size) == (backbone.mean, size)
    config = json.loads((path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == (options["name"], 0)
    assert config["num_features"] == backbone.dim
    assert config["pretrained_cfg"]["input_size"] == [channels, *size]
    assert config["pretrained_cfg"]["mean"] == [*backbone.mean]


def test_fixed_positions_become_learned_ones_of_timm(tmp_path):
    path = ssl_jax.export(network(MAE, (16, 24), 4), tmp_path / "own", to="hf")
    assert json.loads((path / "config.json").read_text())["model_args"] == {
        "global_pool": "token",
        "embed_dim": 16,
        "num_heads": 2,
        "depth": 1,
        "patch_size": 8,
        "img_size": [16, 24],
        "in_chans": 4,
    }
    with safetensors.safe_open(path / "model.safetensors", framework="numpy") as file:
        assert file.get_slice("pos_embed").get_shape() == [1, 7, 16]  # the class token's, and those of 2 x 3 patches


def test_the_model_card_has_the_recipe_and_the_scores_of_these_weights(tmp_path):
    backbone, workdir = network(VIT), tmp_path / "run"
    backbone = dataclasses.replace(backbone, facts={**backbone.facts, "step": 7})
    workdir.mkdir()
    source = {"name": "/home/me/leaves", "kind": "FolderSource", "digest": "abc", "given": False}
    config = {
        "method": {"name": "simclr", "temperature": 0.2},
        "batch_size": 64,
        "seed": 5,
        "data": {"path": "/home/me/leaves"},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "run.json").write_text(json.dumps({"source": source, "num_images": 1000}))
    evaluation = {
        "data": {"name": "/home/me/leaves", "kind": "FolderSource", "train_images": 800, "test_images": 200},
        "backbone_sha256": cache.checksum(backbone.variables),
        "pretrained": {"knn/k20_t0.07/top1": {"mean": 61.25}, "linear/10_per_class/top1": {"mean": 70.0, "std": 1.5}},
        "random": {"knn/k20_t0.07/top1": {"mean": 30.0}},
    }
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    card = (ssl_jax.export(backbone, tmp_path / "a", to="hf", workdir=workdir) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    for line in (
        *("| method | SimCLR |", "| data | leaves |", "| kind of data | FolderSource |", "| steps | 7 |"),
        *("| batch size | 64 |", "| seed | 5 |", '| method | `{"name": "simclr", "temperature": 0.2}` |'),
        *("| mean, then subtracted | 0.5, 0.4, 0.3 |", "On leaves, 800 training and 200 test images"),
        "| protocol | Pre-trained | Random network |",
        "| kNN, 20 neighbors (`knn/k20_t0.07/top1`) | 61.2 | 30.0 |",
        "| Linear, 10 labels per class (`linear/10_per_class/top1`) | 70.0 ± 1.5 |  |",
    ):
        assert line in card
    assert "/home/me" not in card + (tmp_path / "a" / "config.json").read_text()
    (workdir / "evaluation.json").write_text(json.dumps({**evaluation, "backbone_sha256": "of other weights"}))
    card = (ssl_jax.export(backbone, tmp_path / "b", to="hf", workdir=workdir) / "README.md").read_text()
    assert "| steps | 7 |" in card and "61.2" not in card


def test_a_directory_that_holds_files_is_left_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already; an export is a new directory"):
        ssl_jax.export(network(VIT), tmp_path, to="hf")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("options", [RESNET, VIT, None], ids=["resnet", "vit", "own"])
def test_a_program_of_onnx_takes_any_batch_and_normalizes(tmp_path, options):
    backbone = network(options) if options else own_network()
    path = ssl_jax.export(backbone, tmp_path / "b.onnx", to="onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(["features"], {"images": IMAGES[:count]})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, backbone.features(IMAGES[:count]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [RESNET, VIT, None], ids=["resnet", "vit", "own"])
def test_a_stablehlo_program_takes_any_batch_and_normalizes(tmp_path, options):
    backbone = network(options) if options else own_network()
    path = ssl_jax.export(backbone, tmp_path / "b.stablehlo", to="stablehlo")
    program = jax_export.deserialize(bytearray(path.read_bytes()))
    for count in (1, 5):
        found = program.call(IMAGES[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, backbone.features(IMAGES[:count]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", ["timm", "onnx"])
def test_what_gives_other_features_is_refused_and_the_file_is_as_before(tmp_path, monkeypatch, to):
    path = tmp_path / "b"
    path.write_bytes(b"before")
    spoil(monkeypatch)
    with pytest.raises(
        exporting.ExportError, match=r"gives other features than the backbone: they differ by .* not written"
    ):
        ssl_jax.export(network(VIT), path, to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and path.read_bytes() == b"before"


def test_of_a_directory_with_other_features_nothing_is_left(tmp_path, monkeypatch):
    spoil(monkeypatch)
    with pytest.raises(exporting.ExportError, match="gives other features than the backbone"):
        ssl_jax.export(network(VIT), tmp_path / "own", to="hf")
    assert not list(tmp_path.iterdir())


def spoil(monkeypatch):
    """One tensor of the weights, and one operation of ONNX, become slightly wrong."""
    tensors, rsqrt = timm_names.torch_tensors, onnx_graph.OPERATIONS["rsqrt"]

    def wrong(variables):
        found = tensors(variables)
        return {**found, "norm.weight": found["norm.weight"] * 1.01}

    def wrong_too(graph, equation):
        return graph.node("Mul", rsqrt(graph, equation), graph.constant(np.float32(1.01)))

    monkeypatch.setattr(timm_names, "torch_tensors", wrong)
    monkeypatch.setitem(onnx_graph.OPERATIONS, "rsqrt", wrong_too)


@pytest.mark.parametrize("to, library", [("stablehlo", "flatbuffers"), ("onnx", "onnx")])
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, to, library):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"needs {library}: pip install 'ssl_jax\[{to}\]'"):
        ssl_jax.export(own_network(), tmp_path / "b", to=to)


@pytest.mark.parametrize(
    "options, reason",
    [
        (RESNET, "timm has no resnet8"),
        ({"name": "resnet18", "stem": "small"}, "timm's resnet18 has no argument for stem='small'"),
        ({**VIT, "positions": "relative"}, "timm's vit_tiny_patch16_224 has no argument for positions='relative'"),
        ({**DINOV3, "layer_scale": 0.0}, "timm's vit_small_plus_patch16_dinov3 has no argument for layer_scale=0.0"),
    ],
)
def test_what_timm_has_no_argument_for_is_refused(tmp_path, options, reason):
    backbone = weights.Backbone(models.create(**options), {}, (0.5,) * 3, (0.2,) * 3, SIZE, {"model": options})
    for to in ("timm", "hf"):
        with pytest.raises(exporting.ExportError, match=re.escape(f"{reason}; to='onnx' and to='stablehlo' take any")):
            ssl_jax.export(backbone, tmp_path / "b", to=to)
    assert not list(tmp_path.iterdir())


def test_what_differs_in_training_only_is_no_argument(tmp_path):
    options = {**VIT, "drop_path": 0.1, "dtype": "bfloat16", "remat": "block"}
    form = timm_names.timm_form(network(options), SIZE)
    assert form.call == timm_names.timm_form(network(VIT), SIZE).call
    assert form.backbone.model.dtype == "float32"


def test_what_cannot_be_exported_is_told(tmp_path):
    path = tmp_path / "b"
    with pytest.raises(ValueError, match="there is no format to='torch'; choose from timm, hf, onnx, stablehlo"):
        ssl_jax.export(own_network(), path, to="torch")
    with pytest.raises(ValueError, match=r"timm has no MyNet; to='onnx' and to='stablehlo' take any backbone"):
        ssl_jax.export(own_network(), path, to="timm")
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        ssl_jax.export(dataclasses.replace(own_network(), image_size=None), path, to="stablehlo")
    with pytest.raises(ValueError, match="how their images were normalized"):
        ssl_jax.export(dataclasses.replace(own_network(), mean=(), std=()), path, to="stablehlo")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    backbone = network(VIT)
    meta = {**backbone.facts, "image_size": [*SIZE], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    weights.save_backbone(tmp_path, backbone.variables, meta)
    out = tmp_path / "timm.safetensors"
    main([f"--workdir={tmp_path}", "--to=timm", f"--out={out}"])
    said = capsys.readouterr().out
    assert "gives the same features as the backbone" in said
    assert "timm.create_model(\"vit_tiny_patch16_224\", num_classes=0, global_pool='token', embed_dim=16" in said
    main([f"--workdir={tmp_path}", "--to=hf", f"--out={tmp_path / 'own'}"])
    assert f'timm.create_model("local-dir:{tmp_path / "own"}", pretrained=True' in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--to is missing"):
        main([f"--workdir={tmp_path}", f"--out={out}"])
    # A file without our header: its architecture is named, and is known from then on.
    (tmp_path / "again").mkdir()
    with pytest.raises(SystemExit, match="does not say which architecture"):
        main([f"--backbone={out}", "--to=timm", f"--out={tmp_path / 'again' / 'x'}"])
