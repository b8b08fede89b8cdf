"""Settings of the authors' that are not the defaults of a recipe, as their sources (named in the configs) have them."""

import pytest

from ssl_jax import config

SETTINGS = {
    "simclr:cifar_r18": {"method.projector": (512, 512, 128), "model.zero_init_residual": True},
    "byol:imagenet_r50": {"model.zero_init_residual": True},
    "jigsaw:imagenet_r50": {
        "augment.view.shorter_side": 256,
        "augment.view.size": (255, 255),
        "augment.view.grayscale": 0.66,
        "method.channel_shift": 0,
        "method.normalize_tiles": False,
    },
    "pirl:imagenet_r50": {"augment.image.photometric": 0.66, "augment.patches.photometric": 0.66},
    "rotation:cifar_r18": {"augment.view.shorter_side": 32, "augment.view.padding": 4, "augment.view.flip": 0.5},
    "rotation:imagenet_r50": {"method.all_turns": False},
    "w_mse:cifar_r18_w4": {"augment.view.interpolation": "bicubic", "augment.view.grayscale": 0.1},
    "w_mse:imagenet_r50": {
        "epochs": 240,
        "batch_size": 256,
        "augment.view.crop_area": (0.08, 1.0),
        "augment.view.grayscale": 0.2,
        "augment.view.brightness": 0.8,
        "augment.view.hue": 0.2,
    },
    "sela_v2:imagenet_r50": {"augment.global.crop_area": (0.08, 1.0), "augment.global.size": (160, 160)},
    "cmc:imagenet_r50": {"batch_size": 128, "optimizer.lr": 0.03, "augment.view.crop_area": (0.08, 1.0)},
    "odc:imagenet_r50": {
        "augment.view.crop_area": (0.08, 1.0),
        "augment.view.rotate": 2.0,
        "augment.view.saturation": 1.0,
        "augment.view.hue": 0.5,
        "augment.view.jitter": 1.0,
    },
    "supcon:cifar_r18": {"method.positives": "inside"},
    "ressl:imagenet_r50_multicrop": {
        "method.students": 5,
        "augment.student_2.size": (192, 192),
        "augment.student_5.crop_area": (0.086, 0.429),
    },
    "nnclr:imagenet_r50_multicrop": {"method.local_views": 6, "augment.local.size": (96, 96)},
    "smog:imagenet_r50_multicrop": {"method.local_views": 4, "augment.local.size": (96, 96)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_scale_has_the_authors_settings(name):
    method, scale = name.split(":")
    settings = config.get_config(f"{method}:{scale}")
    for key, expected in SETTINGS[name].items():
        found = settings
        for part in key.split("."):
            found = found[part]
        assert found == (pytest.approx(expected) if isinstance(expected, float) else expected), key
