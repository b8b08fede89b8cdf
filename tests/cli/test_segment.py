"""ssl_jax segment, and ssl_jax predict with what it wrote."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, weights
from ssl_jax.cli.predict import main as predict
from ssl_jax.cli.segment import main

SIZE, MODEL = (16, 16), {"name": "resnet8", "stages": (1,), "width": 0.5}
QUICK = ["--steps=20", "--learning_rates=0.03"]


def save_backbone(directory, **facts):
    module = models.create(**MODEL)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))
    meta = {"model": MODEL, "method": "simclr", "image_size": [*SIZE], "channels": 1, "mean": [0.5], "std": [0.25]}
    directory.mkdir()
    weights.save_backbone(directory, variables, meta | facts)
    return directory


def draw(root, name, seed):
    """An image of noise, 16 x 24 pixels, with a light square, and its mask: 255 where the square is."""
    rng = np.random.default_rng(seed)
    image, mask = rng.normal(90, 15, (16, 24)), np.zeros((16, 24), np.uint8)
    top, left = rng.integers(0, 8), rng.integers(0, 14)
    image[top : top + 8, left : left + 10] += 120
    mask[top : top + 8, left : left + 10] = 255
    for folder, pixels in (("images", np.clip(image, 0, 255).astype(np.uint8)), ("masks", mask)):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A backbone, images with masks in train/ and test/, and images of both in one folder."""
    root = tmp_path_factory.mktemp("segment")
    save_backbone(root / "run")
    for k in range(24):
        draw(root / "split", f"{'test' if k % 3 == 0 else 'train'}/scans/{k:02}", k)
        draw(root / "whole", f"scans/{k:02}", k)
    (root / "whole" / "masks" / "scans" / "05.png").unlink()
    return root


def arguments(root, kind="split", **flags):
    flags = {"workdir": root / "run", "data": root / kind / "images", "masks": root / kind / "masks", **flags}
    return [*(f"--{name}={value}" for name, value in flags.items()), *QUICK]


@pytest.fixture(scope="module")
def segmenter(made):
    main(arguments(made, out=made / "out", mask_values="0,255", classes="ground, square"))
    return made / "out"


def test_it_writes_the_segmenter_its_scores_and_its_page(segmenter):
    assert {path.name for path in segmenter.iterdir()} == {
        *("backbone.safetensors", "backbone.json", "segmenter.safetensors", "segmenter.json", "scores.json"),
        "report.html",
    }
    scores = json.loads((segmenter / "scores.json").read_text())
    assert scores["train_images"] == 16 and scores["test_images"] == 8
    assert scores["mean_iou"] > scores["majority"]["mean_iou"] + 20
    page = (segmenter / "report.html").read_text()
    assert "<h1>images</h1>" in page and "test/scans/00.png" in page and "square" in page
    assert f"Mean IoU {scores['mean_iou']:.1f}%" in page


def test_images_of_one_folder_are_divided_and_those_without_a_mask_left_out(made, tmp_path, capsys):
    main(arguments(made, "whole", out=tmp_path / "out", mask_values="0,255", head="conv", image_size="12x8"))
    printed = capsys.readouterr().out
    assert "left out 1 of 24 images: they have no mask in" in printed
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["train_images"] + scores["test_images"] == 23 and scores["image_size"] == [12, 8]
    expected = f"mean IoU {scores['mean_iou']:.1f} % on {scores['test_images']} test images (calling every pixel 0: "
    assert expected in printed.splitlines()[-1]


def test_predict_writes_a_mask_for_each_image(made, segmenter, tmp_path, capsys):
    predict([f"--workdir={segmenter}", f"--data={made / 'whole' / 'images'}", f"--out={tmp_path / 'found'}"])
    assert "24 masks, whose values are 0 ground, 1 square" in capsys.readouterr().out
    found = sorted(path.relative_to(tmp_path / "found").as_posix() for path in (tmp_path / "found").rglob("*.png"))
    assert found == [f"scans/{k:02}.png" for k in range(24)]
    right = []
    for name in found:
        mask = cv2.imread(str(tmp_path / "found" / name), cv2.IMREAD_UNCHANGED)
        truth = cv2.imread(str(made / "split" / "masks" / "train" / name), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (16, 24)
        right += [] if truth is None else [np.mean((truth == 255) == mask)]
    assert np.mean(right) > 0.8


def test_predict_refuses_what_is_for_classes(made, segmenter):
    options = [f"--workdir={segmenter}", f"--data={made / 'whole' / 'images'}"]
    with pytest.raises(SystemExit, match=r"--out=x\.csv: .* has a segmenter.*name a directory"):
        predict([*options, "--out=x.csv"])
    with pytest.raises(SystemExit, match="masks would replace the images of --data"):
        predict([*options, f"--out={made / 'whole' / 'images'}"])
    with pytest.raises(SystemExit, match="--windows=all: a segmenter reads whole images"):
        predict([*options, "--out=x", "--windows=all"])


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"masks": ""}, "--masks is missing"),
        ({"masks": "nowhere"}, "--masks: there is no folder 'nowhere'"),
        ({}, "the masks have only the values 0, 255.*if it is the object, give mask_values=0,255"),
        ({"classes": "ground,square"}, "give mask_values=0,255"),
        ({"mask_values": "0,1"}, None),
        ({"mask_values": "0;255"}, "--mask_values must be integers separated by commas, such as 0,255, got '0;255'"),
        ({"mask_values": "0"}, "mask_values must be 2 to 255 different integers"),
        ({"head": "unet"}, "--head: there is no head 'unet'; choose from linear, conv"),
        ({"image_size": "big"}, "--image_size must be SIDE or HEIGHTxWIDTH"),
        ({"steps": "0"}, "steps and batch_size must be at least 1, got 0 and 16"),
        ({"seed": "-1"}, "--seed must be an integer of at least 0"),
    ],
)
def test_mistakes_are_named(made, tmp_path, flags, message):
    given = arguments(made, out=tmp_path / "out") + [f"--{name}={value}" for name, value in flags.items()]
    message = message or "of the values 0, 1 the masks have only 0"
    with pytest.raises(SystemExit, match=message):
        main(given)
    assert not (tmp_path / "out").exists()


def test_the_run_is_not_replaced(made):
    with pytest.raises(SystemExit, match="that is --workdir, whose files would be replaced"):
        main(arguments(made, out=made / "run", mask_values="0,255"))


def test_a_backbone_of_windows_wants_a_size(made, tmp_path):
    save_backbone(tmp_path / "run", window=16)
    given = arguments(made, workdir=tmp_path / "run", out=tmp_path / "out", mask_values="0,255")
    with pytest.raises(SystemExit, match=r"trained on windows of 16 pixels.* give --image_size=16"):
        main(given)
    main([*given, "--image_size=16"])
    predict([f"--workdir={tmp_path / 'out'}", f"--data={made / 'whole' / 'images'}", f"--out={tmp_path / 'found'}"])
    assert len(list((tmp_path / "found").rglob("*.png"))) == 24
