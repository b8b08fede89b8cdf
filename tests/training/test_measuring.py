"""A config is completed with what is measured of the images, once a run."""

import numpy as np
import pytest
import tifffile

import ssl_jax
from ssl_jax import config as configs
from ssl_jax import data
from ssl_jax.data import folder_source, formats, window_source
from ssl_jax.training import reading
from ssl_jax.training.measuring import measured, measured_with_images

IMAGES = np.random.default_rng(0).integers(100, 4000, (20, 8, 8, 5)).astype(np.uint16)


def open_config():
    config = configs.get_config("simclr:tiny")
    config.data.update(channels=0, dtype="", mean=(), std=())
    return config


def test_what_is_open_is_measured():
    config = measured(open_config(), data.arrays(IMAGES))
    found = data.statistics(IMAGES)
    assert {key: config.data[key] for key in found} == found
    normalization = reading.normalization(configs.parse(config))
    assert normalization.channels == 5
    unit = np.asarray(normalization.unit(IMAGES))
    assert (unit.min(), unit.max()) == (0.0, 1.0)
    assert abs(np.asarray(normalization(IMAGES)).std() - 1.0) < 1e-2


@pytest.mark.parametrize("window", [0, 4])
def test_what_the_files_name_as_missing_is_left_out(tmp_path, window):
    scene = np.full((8, 8, 5), -9999, np.int16)
    scene[2:] = np.arange(1, 6) * 100
    scene[5:] *= 2
    tifffile.imwrite(tmp_path / "a.tif", scene, planarconfig="contig", extratags=[(42113, 2, 0, "-9999", True)])
    config = open_config()
    config.data.update(name="folder", path=str(tmp_path), window=window)
    found = measured(config).data
    assert found.nodata == (-9999.0,)
    assert found.value_range == (100.0, 200.0, 200.0, 400.0, 300.0, 600.0, 400.0, 800.0, 500.0, 1000.0)
    np.testing.assert_allclose(found.mean, 0.5, atol=1e-6)
    normalization = reading.normalization(configs.parse(measured(config)))
    np.testing.assert_allclose(normalization(normalization.conform(scene))[:2], 0.0, atol=0.01)  # the channel's mean
    config.data.nodata = (0.0,)
    assert measured(config).data.value_range[0] == -9999.0  # what is given is taken


def test_windows_that_are_given_are_noted_and_others_refused():
    images = np.zeros((2, 40, 40, 1), np.uint8)
    config = configs.get_config("simclr:tiny")
    assert measured(config, data.windows(images, 20)).data.window == 20 and config.data.window == 0
    config.data.window = 16
    for given, said in ((images, "no windows"), (data.windows(images, 20), "windows of side 20")):
        with pytest.raises(
            configs.ConfigError, match=rf"window=16, but .* are {said}; give data.windows\(images, 16\)"
        ):
            measured(config, data.as_source(given))


def test_what_is_set_stays():
    given = open_config()
    given.data.update(value_range=(0.0, 4095.0), mean=(0.5,) * 5)
    config = measured(given, data.arrays(IMAGES))
    assert (config.data.value_range, config.data.mean) == ((0.0, 4095.0), (0.5,) * 5)
    np.testing.assert_allclose(config.data.std, data.statistics(IMAGES, value_range=(0.0, 4095.0))["std"])
    assert given.data.std == ()  # the given config is not changed


def test_a_config_of_other_images_does_not_lend_its_mean():
    config = measured(configs.get_config("simclr:tiny"), data.arrays(IMAGES))
    assert (config.data.dtype, config.data.channels, len(config.data.mean)) == ("uint16", 5, 5)
    gray = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    kept = configs.get_config("simclr:tiny")
    assert measured(kept, data.arrays(gray)) is kept


def test_a_run_that_goes_on_takes_what_it_began_with():
    saved = measured(open_config(), data.arrays(IMAGES))
    other = data.arrays(IMAGES // 2)  # of a set that has grown, say
    assert measured(open_config(), other, saved).data == saved.data


def test_models_that_undo_the_normalization_follow():
    config = configs.get_config("colorization:tiny")
    color = np.random.default_rng(0).integers(0, 4096, (6, 8, 8, 3)).astype(np.uint16)
    found = measured(config, data.arrays(color))
    assert found.model.mean == found.data.mean != config.data.mean


def test_channels_that_are_not_those_of_the_images_are_refused(monkeypatch):
    config = open_config()
    config.data.channels = 4
    monkeypatch.setattr(reading, "whole_source", lambda config: data.arrays(IMAGES))
    with pytest.raises(configs.ConfigError, match="channels=4, but the images of arrays have 5 channels"):
        measured(config)


@pytest.fixture
def mixed(tmp_path):
    """Some images of three channels, one gray."""
    for k in range(4):
        tifffile.imwrite(tmp_path / f"{k}.tif", IMAGES[k, ..., 0] if k == 2 else IMAGES[k, ..., :3], photometric=None)
    return tmp_path


def counted(monkeypatch, module, name):
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **options: calls.append(given) or function(*given, **options))
    return calls


@pytest.mark.parametrize("window", [0, 4])
def test_images_that_were_measured_are_read_as_if_opened_anew(mixed, window, monkeypatch):
    config = open_config()
    config.data.update(name="folder", path=str(mixed), window=window)
    headers = counted(monkeypatch, formats, "look")
    config, found = measured_with_images(config, None, None)
    assert len(headers) == 4 and config.data.channels == 3
    anew = reading.whole_source(configs.parse(config))
    assert len(found) == len(anew) and found.digest() == anew.digest()
    for k in range(len(anew)):
        np.testing.assert_array_equal(found[k], anew[k])


@pytest.mark.parametrize("window", [0, 4])
def test_a_first_start_opens_its_images_once(mixed, window, tmp_path, monkeypatch):
    headers = counted(monkeypatch, formats, "look")
    lists = counted(monkeypatch, folder_source.folders, "find_splits")
    sizes = counted(monkeypatch, window_source, "_look")
    config = open_config()
    config.data.update(name="folder", path=str(mixed), window=window)
    with pytest.raises(configs.ConfigError, match="fewer than one batch"):  # after all that opens images
        ssl_jax.pretrain(config, workdir=tmp_path / "run")
    assert (len(headers), len(lists), len(sizes)) == (4, 1, int(window > 0))
