import pytest

from ssl_jax.evaluation.alarms import collapse

HEALTHY = {"loss": 3.0, "embedding_std": 0.12, "rankme": 40.0, "embedding_dim": 64.0, "rank_limit": 64.0}


@pytest.mark.parametrize(
    "changes, chance_level, alarms",
    [
        ({}, 5.0, []),
        ({}, None, []),
        ({"loss": 5.001}, 5.0, ["loss"]),  # SimCLR at log(2B - 1)
        ({"loss": 0.001}, 0.0, ["loss"]),  # BYOL's predictions all equal
        ({"loss": -0.97}, -1.0, []),  # SimSiam near its optimum
        ({"embedding_std": 0.03}, 5.0, ["embedding_std"]),  # a quarter of 1/8 is 0.031
        ({"rankme": 6.0}, 5.0, ["rankme"]),
        ({"colored_share": 0.5}, None, []),
        ({"colored_share": 0.0}, None, ["colored_share"]),  # colorization of Fashion-MNIST
        ({"embedding_std": 0.0, "rankme": 1.0, "loss": 5.0}, 5.0, ["embedding_std", "rankme", "loss"]),
    ],
)
def test_collapse_names_what_shows_it(changes, chance_level, alarms):
    assert list(collapse({**HEALTHY, **changes}, chance_level)) == alarms
