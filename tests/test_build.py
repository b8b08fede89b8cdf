import pytest

from ssl_jax import build, config
from ssl_jax.methods import Run

RUN = Run(batch_size=256, steps=100, steps_per_epoch=10, num_images=60_000)


def dino(local_views):
    settings = config.get_config("dino:tiny")
    settings.method.local_views = local_views
    return settings, build.method(settings, RUN)


def test_a_pass_over_all_images_comes_before_training_where_the_method_wants_one():
    made = [build.training(config.get_config(f"{name}:tiny"), RUN) for name in ("deepcluster_v2", "simclr")]
    assert [training.preparation for training in made] == [10, 0]
    assert [training.prepare is None for training in made] == [False, True]


def test_an_augmentation_that_is_not_used_is_warned_of(caplog):
    settings, method = dino(local_views=0)
    assert len(build.augmentations(settings, method.views)) == 2
    assert "['local']: not used by method dino" in caplog.text


def test_a_missing_augmentation_is_refused():
    settings, method = dino(local_views=1)
    with settings.unlocked():
        del settings.augment["local"]
    with pytest.raises(config.ConfigError, match=r"has \['global1', 'global2'\], but method dino takes"):
        build.augmentations(settings, method.views)
