"""docs/fidelity.md: each number of a config has a row that claims it."""

import math

import pytest

from benchmarks import fidelity
from ssl_jax import recipes

TABLES = [*fidelity.NAMES, fidelity.VIEWS]


def alike(claim, value):
    """Numbers to four digits: rows have them rounded."""
    if isinstance(value, tuple | list):
        return isinstance(claim, tuple) and len(claim) == len(value) and all(map(alike, claim, value))
    if value is None or isinstance(value, bool | str) or isinstance(claim, bool | str):
        return claim == value
    return math.isclose(claim, value, rel_tol=1e-4)


def differences(claims, settings):
    return {
        key: (claims.get(key, "no row"), settings.get(key, "not in the config"))
        for key in claims.keys() | settings.keys()
        if key not in claims or key not in settings or not alike(claims[key], settings[key])
    }


@pytest.mark.parametrize("method", fidelity.NAMES)
def test_every_number_of_a_config_has_a_row_and_every_row_the_configs_number(method):
    rows, configs = fidelity.rows(method), fidelity.configs(method)
    assert {scale for row in rows for scale in row.scale.split()} <= set(configs)
    for scale, config in configs.items():
        assert not differences(fidelity.claims(rows, scale), fidelity.settings(config)), scale


def test_views_have_the_numbers_of_recipes():
    rows = fidelity.rows(fidelity.VIEWS)
    named = {row.ours for name in TABLES for row in fidelity.rows(name) if row.ours.startswith("recipes.")}
    of_views = {ours.removeprefix("recipes.") for ours in named if not ours.endswith("_STEPS")}
    assert of_views <= {row.scale for row in rows}
    for view in {row.scale for row in rows}:
        assert not differences(fidelity.claims(rows, view), getattr(recipes, view)), view


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_judged(table):
    for row in fidelity.rows(table):
        assert row.status in fidelity.STATUSES, row
        assert row.source, row
        if row.status == "equal":
            assert row.authors.strip("- "), row
        if row.status == "declared":
            assert "; " in row.source, f"{row} has no reason"


def test_the_page_is_made_of_the_rows():
    assert fidelity.PAGE.read_text() == fidelity.page(fidelity.tables()), "run python benchmarks/fidelity.py"


def test_drift_is_found():
    (row,) = (row for row in fidelity.rows("byol") if row.setting == "method.decay" and "imagenet_r50" in row.scale)
    config = fidelity.configs("byol")["imagenet_r50"]
    claims = fidelity.claims(fidelity.rows("byol"), "imagenet_r50")
    config.method.decay = 0.9
    assert differences(claims, fidelity.settings(config)) == {"method.decay": (float(row.ours), 0.9)}
    config.method.decay = float(row.ours)
    config.method.new_number = 3
    assert differences(claims, fidelity.settings(config)) == {"method.new_number": ("no row", 3)}
