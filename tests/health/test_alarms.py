import pytest

from ssl_jax.health.alarms import collapse

HEALTHY = {"loss": 3.0, "embedding_std": 0.12, "rankme": 40.0, "embedding_dim": 64.0, "rank_limit": 64.0}


@pytest.mark.parametrize(
    "changes, chance_level, alarms",
    [
        ({}, 5.0, []),
        ({}, None, []),
        ({"embedding_std": 0.03}, 5.0, ["embedding_std"]),  # a quarter of 1/8 is 0.031
        ({"rankme": 6.0}, 5.0, ["rankme"]),
        ({"colored_share": 0.5}, None, []),
        ({"colored_share": 0.0}, None, ["colored_share"]),  # colorization of Fashion-MNIST
        ({"embedding_std": 0.0, "rankme": 1.0}, 5.0, ["embedding_std", "rankme"]),
    ],
)
def test_collapse_names_what_shows_it(changes, chance_level, alarms):
    assert list(collapse({**HEALTHY, **changes}, chance_level)) == alarms


@pytest.mark.parametrize(
    "losses, chance_level, alarm",
    [
        ([5.0, 4.999, 5.001], 5.0, True),  # SimCLR at log(2B - 1)
        ([3.0, 5.0, 5.0, 5.001], 5.0, True),  # it was below, and has come back for good
        ([3.77, 4.02, 4.143], 4.143, False),  # one noisy batch
        ([5.0, 5.0, 5.0, 4.9], 5.0, False),
        ([5.0, 5.0], 5.0, False),  # too few to say
        ([0.001, 0.0, 0.001], 0.0, True),  # BYOL's predictions all equal
        ([-0.97, -0.97, -0.97], -1.0, False),  # SimSiam near its optimum
        ([5.0, 5.0, 5.0], None, False),
    ],
)
def test_a_loss_that_stays_at_chance_is_a_collapse(losses, chance_level, alarm):
    found = collapse(HEALTHY, chance_level, losses)
    assert list(found) == (["loss"] if alarm else [])


def test_the_alarm_of_a_loss_has_the_loss_and_the_chance_level():
    assert "now 5.001, stays at 5, " in collapse(HEALTHY, 5.0, [5.0, 5.0, 5.001])["loss"]
