from pathlib import Path

import pytest

from ssl_jax import config as configs
from ssl_jax.cli import flags
from ssl_jax.config.kinds import JITTERED, KEPT, KINDS, ORIENTATION, OTHERS
from ssl_jax.configs import NAMES, scales
from ssl_jax.data.augment import Augmentation
from ssl_jax.keys import keys_of
from ssl_jax.training.config_keys import of_sections


def views(named):
    return {name: Augmentation(**view) for name, view in configs.plain(configs.get_config(named).augment).items()}


def test_every_key_of_a_view_is_kept_or_the_kinds():
    parameters = ("jitter", "blur_sigma", "blur_kernel", "solarize_threshold")  # of operations that are on or off
    assert {*KEPT, *JITTERED, *ORIENTATION, *OTHERS, *parameters} == set(keys_of(Augmentation))
    for kind in KINDS.values():
        assert not set(kind) & set(KEPT)


def test_a_kind_changes_orientation_and_values_and_keeps_the_crop():
    (before,), (view,) = (views(named).values() for named in ("simclr:folder", "simclr:folder:satellite"))
    assert all(getattr(view, name) == getattr(before, name) for name in KEPT)
    found = (view.flip, view.flip_vertical, view.quarter_turns, view.brightness, view.grayscale, view.channel_drop)
    assert found == (0.5, 0.5, 0.75, 0.4, 0.2, 0.13)
    assert (before.saturation, before.hue) == (0.4, 0.1) and (view.saturation, view.hue) == (0.0, 0.0)


def test_what_the_kind_does_not_name_is_off():
    before, view = (views(named)["view2"] for named in ("byol:imagenet_r50", "byol:imagenet_r50:xray"))
    assert before.solarize == 0.2 and before.grayscale == 0.2
    assert (view.solarize, view.grayscale, view.blur, view.hue) == (0.0, 0.0, 0.0, 0.0)
    assert (view.rotate, view.gamma, view.interpolation) == (10.0, 0.2, "bicubic")


def test_views_that_the_method_leaves_as_they_are_take_orientations_only():
    (view,) = views("mae:tiny:microscopy").values()
    assert view.quarter_turns == 0.75 and not any(getattr(view, name) for name in (*JITTERED, *OTHERS))
    weak, strong = (views("ressl:tiny:microscopy")[name] for name in ("teacher", "student"))
    assert (weak.channel_gain, strong.channel_gain) == (0.0, 0.3)
    assert weak.flip_vertical == strong.flip_vertical == 0.5


def test_small_views_get_no_blur_and_others_no_quarter_turns(tmp_path):
    assert [view.blur for view in views("dino:imagenet_vits16:satellite").values()] == [0.5] * 3
    assert [view.blur for view in views("dino:tiny:satellite").values()] == [0.0] * 3
    own = tmp_path / "own.py"
    own.write_text(
        "from ssl_jax.configs import simclr\n\n\ndef get_config():\n    config = simclr.get_config('folder')\n"
        "    config.augment.view.size = (64, 96)\n    return config\n"
    )
    (view,) = views(f"{own}::satellite").values()
    assert (view.quarter_turns, view.flip_vertical, view.blur) == (0.0, 0.5, 0.5)
    view.check(13)


def test_the_page_has_the_numbers():
    lines = (Path(__file__).parents[2] / "docs" / "views.md").read_text(encoding="utf-8").splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|")
    assert header[1:] == list(KINDS)
    *rows, channels = rows
    found = {kind: {row[0].strip("`"): row[1 + i] for row in rows if row[1 + i]} for i, kind in enumerate(KINDS)}
    assert found == {kind: {name: str(value) for name, value in values.items()} for kind, values in KINDS.items()}
    assert channels[1:] == ["3" if "hue" in values else "any" for values in KINDS.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_fits_every_config(kind):
    """And any number of channels, but for those with hue."""
    channels = (3,) if kind in ("photos", "histology") else (1, 2, 3, 13)
    for name in NAMES:
        for scale in scales(name):
            for view in views(f"{name}:{scale}:{kind}").values():
                for count in channels:
                    view.check(count)


def test_a_kind_comes_before_overrides_on_the_command_line():
    argv = ["--config=simclr:folder:xray", "--config.augment.view.rotate=5.0", "--config.augment.view.noise=0.1"]
    view = flags.read_flags(argv, program="test", sections=of_sections).config.augment.view
    assert (view.rotate, view.noise, view.gamma) == (5.0, 0.1, 0.2)


def test_help_names_the_kinds(capsys):
    with pytest.raises(SystemExit):
        flags.read_flags(["--help"], program="test", sections=of_sections)
    said = " ".join(capsys.readouterr().out.split())
    assert "NAME[:SCALE[:KIND]]" in said and "photos, satellite, histology, xray, microscopy" in said


@pytest.mark.parametrize(
    "named, message",
    [
        ("simclr:tiny:satelite", "no kind of views 'satelite'.*did you mean 'satellite'"),
        ("simclr:tiny:paintings", "choose from histology, microscopy, photos, satellite, xray"),
        ("simclr:huge:xray", "simclr has no scale 'huge'"),
        ("augmentations:tiny:xray", "a config without views .* has no kind, got 'xray'"),
    ],
)
def test_a_kind_that_cannot_be_is_a_sentence(named, message):
    with pytest.raises(configs.ConfigError, match=message):
        configs.get_config(named)
