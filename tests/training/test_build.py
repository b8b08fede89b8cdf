import pytest

from ssl_jax import config
from ssl_jax.methods import Schedule
from ssl_jax.training import augmenting, build

RUN = Schedule(batch_size=256, steps=100, steps_per_epoch=10, num_images=60_000)


def dino(local_views):
    settings = config.get_config("dino:tiny")
    settings.method.local_views = local_views
    parsed = config.parse(settings)
    return parsed, build.method(parsed, RUN)


def test_a_pass_over_all_images_comes_before_training_where_the_method_wants_one():
    made = [
        build.training(config.parse(config.get_config(f"{name}:tiny")), RUN) for name in ("deepcluster_v2", "simclr")
    ]
    assert [training.method.preparing_steps for training in made] == [10, 0]
    assert [training.prepare is None for training in made] == [False, True]


def test_an_augmentation_that_is_not_used_is_warned_of(caplog):
    settings, method = dino(local_views=0)
    assert len(augmenting.augmentations(settings, method.views)) == 2
    assert "['local'], which the method does not use" in caplog.text


def test_a_missing_augmentation_is_refused():
    settings, method = dino(local_views=1)
    del settings.augment["local"]
    with pytest.raises(config.ConfigError, match=r"has the sections \['global1', 'global2'\], but the method needs"):
        augmenting.augmentations(settings, method.views)
