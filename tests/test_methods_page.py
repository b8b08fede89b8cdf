"""benchmarks/methods.py: what it keeps, what its page claims, what methods are compared on. Nothing is trained."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parts(monkeypatch):
    """(methods_page, methods_record, methods_worlds), which import each other as scripts beside each other do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return [importlib.import_module(name) for name in ("methods_page", "methods_record", "methods_worlds")]


def measured(record, accuracies, images=400, draws=5, groups=None):
    """Made-up right images, of a kNN and of each draw of a probe; accuracies: of each draw."""
    right = {record.KNN: np.arange(images)[None] < accuracies[0] * images}
    right[record.LINEAR] = np.arange(images) < np.array(accuracies)[:, None] * images
    numbers = {protocol: 100 * float(hits.mean()) for protocol, hits in right.items()}
    return record.Measured({**numbers, "alarms": []}, right, groups)


def test_right_images_are_kept_beside_their_numbers(parts, tmp_path):
    _, record, _ = parts
    kept = record.Record(tmp_path, "results")
    kept.add("b-0", measured(record, [0.5, 0.6, 0.7], groups=np.repeat(["x", "y"], 200)), config="abc")
    kept.add("a-0", record.Measured({record.FINETUNE: 3.0}, {}), config="abc")
    assert list(kept.read()) == ["a-0", "b-0"] and kept.read()["b-0"][record.LINEAR] == pytest.approx(60)
    assert kept.has_right("b-0") and not kept.has_right("a-0")
    right = kept.right("b-0", record.LINEAR)
    assert right.shape == (3, 400) and right[:, [0, 220, 260, 300]].sum(axis=0).tolist() == [3, 2, 1, 0]
    assert kept.groups("b-0").tolist() == [0] * 200 + [1] * 200
    kept.path.write_text(kept.path.read_text().replace("60.0", "61.0"))
    with pytest.raises(ValueError, match=r"b-0\.npz has 60\.000 % right, but .* says 61\.000 under linear"):
        kept.right("b-0", record.LINEAR)


def made_up(parts, folder, of_methods, base=(0.5, 0.51, 0.49)):
    """A record, and rows of it. of_methods: name -> the accuracy of each seed."""
    page, record, _ = parts
    kept = record.Record(folder, "results")
    rng = np.random.default_rng(0)
    order = rng.permutation(400)  # which images are easy
    bases = tuple(f"untrained-{seed}" for seed in range(len(base)))
    keys = {name: tuple(f"{name}-{seed}" for seed in range(len(values))) for name, values in of_methods.items()}
    named = {key: value for name, values in of_methods.items() for key, value in zip(keys[name], values, strict=True)}
    for key, value in {**named, **dict(zip(bases, base, strict=True))}.items():
        found = measured(record, [value] * 5)
        found = record.Measured(found.numbers, {p: hits[:, order] for p, hits in found.right.items()})
        kept.add(key, found, config="abc", commit="123")
    rows = [page.Row(name, "resnet8", keys[name], bases, f"finetuned-{name}", "none") for name in of_methods]
    return kept, rows


def test_gains_that_show_and_that_do_not(parts, tmp_path):
    page, record, _ = parts
    of_methods = {"good": (0.7, 0.72, 0.71), "bad": (0.3, 0.31, 0.29), "like": (0.51, 0.5, 0.5), "once": (0.7,)}
    kept, rows = made_up(parts, tmp_path, of_methods)
    found = {(gain.name, gain.protocol): gain for gain in page.methods_gains.gains(kept, rows)}
    for protocol in (record.KNN, record.LINEAR):
        verdicts = [found[name, protocol].verdict for name in of_methods]
        assert verdicts == ["above", "below", "not shown", "one seed"]
    assert found["good", record.KNN].difference.mean == pytest.approx(21)
    assert found["once", record.KNN].seeds == (1, 3)
    assert "| good | resnet8 | 3 | 71.0 ± 1.0 (50.0) | 71.0 ± 1.0 (50.0) | +21.0 |" in page.table(kept.read(), rows)[2]
    text = "\n".join(page.methods_gains.shown(list(found.values())))
    assert "Of 6 tests, these verdicts hold together" in text
    assert "| good | 3 and 3 | +21.0 (+" in text and "| once | 1 and 3 | +20.0 (+" in text


def test_what_is_not_above_is_listed_with_the_reason(parts, tmp_path):
    page, *_ = parts
    of_methods = {"good": (0.7,), "slow": (0.5,), "bad": (0.3,), "odd": (0.5,)}
    kept, rows = made_up(parts, tmp_path / "short", of_methods, base=(0.5,))
    more, longer = made_up(parts, tmp_path / "long", {"longer-slow": (0.6,), "longer-bad": (0.4,)}, base=(0.5,))
    longer = [dataclasses.replace(row, name=row.name.removeprefix("longer-")) for row in longer]
    lines = page.not_above(kept.read() | more.read(), rows, longer, 300, {"bad": "a cause", "slow": "not this one"})
    assert [line for line in lines if line.count("|") == 5][2:] == [
        "| slow | kNN, 10 labels | above under both | too few steps, as far as one seed says |",
        "| bad | kNN, 10 labels | kNN, 10 labels | a cause |",
        "| odd | kNN, 10 labels | not measured | not found |",
    ]
    assert page.not_above(kept.read(), rows[:1], [], 300, {}) == []


def test_verdicts_hold_together_and_equal_methods_are_the_same(parts):
    page, record, _ = parts
    difference = page.methods_gains.comparisons.Difference(2.0, 0.1, 3.9, 0.04)
    alone = page.methods_gains.Gain("a", record.KNN, difference, (3, 3))
    assert [gain.verdict for gain in page.methods_gains.judged([alone])] == ["above"]
    assert [gain.verdict for gain in page.methods_gains.judged([alone, alone])] == ["not shown"] * 2  # 0.04 * 2 > 0.05
    close = page.methods_gains.Gain(
        "a", record.KNN, page.methods_gains.comparisons.Difference(0.1, -0.5, 0.7, 0.7), (3, 3)
    )
    assert [gain.verdict for gain in page.methods_gains.judged([close])] == ["same"]


def test_rows_without_right_images_claim_nothing(parts, tmp_path):
    page, record, _ = parts
    kept = record.Record(tmp_path, "results")
    numbers = {record.KNN: 70.0, record.LINEAR: 60.0}
    kept.add("simclr-0", record.Measured({**numbers, "alarms": ["rankme"]}, {}), config="abc")
    kept.add("untrained", record.Measured({record.KNN: 65.0, record.LINEAR: 50.0}, {}), config="abc")
    row = page.Row("simclr", "resnet8", ("simclr-0",), ("untrained",), "finetuned-simclr", "none")
    assert page.methods_gains.gains(kept, [row]) == [] and "None yet" in "\n".join(page.methods_gains.shown([]))
    line = page.table(kept.read(), [row])[-1]
    assert line == "| simclr | resnet8 | 1 | 70.0 (65.0) | 60.0 (50.0) | +10.0 | rankme |  |"


def test_ranks_of_two_tables(parts, tmp_path):
    page, *_ = parts
    of_methods = {name: (0.5 + 0.05 * k,) for k, name in enumerate("abcdef")}
    first, rows = made_up(parts, tmp_path / "first", of_methods)
    second, others = made_up(
        parts, tmp_path / "second", {name: (1.2 - value,) for name, (value,) in of_methods.items()}
    )
    text = page.agreement(first.read(), rows, second.read(), others, "Fashion-MNIST")
    assert "- kNN: -1.00 (-1.00 to -1.00)" in text and "## Beside Fashion-MNIST" in text
    assert "3 methods are in both tables" in page.agreement(first.read(), rows[:3], second.read(), others, "it")[-1]


def test_every_method_has_a_config_in_every_world(parts):
    *_, worlds = parts
    for world in worlds.WORLDS.values():
        for name in METHODS:
            config = worlds.configured(name, 1, 10, world)
            configs.parse(config)
            assert (config.seed, config.steps) == (1, 10)
            if world.name == "emoji_google":
                assert (config.data.name, config.data.split, config.data.channels) == ("emoji_google", "train", 3)
            data = worlds.evaluated(config, world)
            assert data["name"] == world.name and data["image_size"] == (28, 28)


def test_what_is_held_out_is_not_trained_on(parts):
    *_, worlds = parts
    held_out = worlds.WORLDS["held_out"]
    splits = {name: worlds.configured(name, 0, 10, held_out).data.split for name in ("simclr", "pcl")}
    assert splits == {"simclr": "train[:80%]", "pcl": "train[:25%]"}
    data = worlds.evaluated(worlds.configured("simclr", 0, 10, held_out), held_out)
    assert (data["split"], data["test_split"]) == ("train[:80%]", "train[80%:]")


def test_rows_of_older_configs_are_marked_and_not_mixed_with_newer(parts, tmp_path):
    page, record, worlds = parts
    kept = record.Record(tmp_path, "results")
    older, newer = record.Measured({record.KNN: 50.0, record.LINEAR: 40.0, "alarms": []}, {}), {}
    for seed in range(3):
        config = worlds.configured("simclr", seed, 300)
        newer[seed] = configs.digest(config)
        kept.add(worlds.untrained_key(config, worlds.FASHION), older, config="of the network")
    tuned = record.Measured({record.FINETUNE: 60.0, "std": 1.5}, {})
    for name in ("simclr", "byol"):
        for seed in range(3):
            kept.add(f"{name}-{seed}", older, config="older")
        kept.add(f"finetuned-{name}", tuned, config="older")
    kept.add(f"finetuned-{worlds.untrained_key(worlds.configured('simclr', 0, 300), worlds.FASHION)}", tuned, config="")
    better = record.Measured({record.KNN: 70.0, record.LINEAR: 60.0, "alarms": []}, {})
    for seed in range(2):
        kept.add(f"simclr-{seed}", better, config=newer[seed], commit="123")

    found = {row.name: row for row in page.rows(kept.read(), worlds.FASHION, 300)}
    assert {name: (row.keys, row.stale) for name, row in found.items()} == {
        "byol": (("byol-0", "byol-1", "byol-2"), True),
        "simclr": (("simclr-0", "simclr-1"), False),
    }
    byol, simclr = page.table(kept.read(), [found["byol"], found["simclr"]])[2:]
    assert byol == "| byol † | resnet8 | 3 | 50.0 ± 0.0 (50.0) | 40.0 ± 0.0 (40.0) | +0.0 |  |  |"
    assert simclr == "| simclr | resnet8 | 2 | 70.0 ± 0.0 (50.0) | 60.0 ± 0.0 (40.0) | +20.0 |  | 123 |"
    # What was fine-tuned from the older network of SimCLR does not stand beside the newer one.
    assert page.fine_tuned(kept.read(), found.values())[-1] == "| byol † | 60.0 ± 1.5 | 60.0 ± 1.5 | +0.0 |"
    assert page.fine_tuned(kept.read(), [found["simclr"]]) == []


@pytest.mark.slow
def test_pages_are_those_of_the_records_and_of_the_configs_of_today(parts):
    """A row whose config has changed since is marked, so a page is never silently older than the configs it quotes."""
    page, record, worlds = parts
    for world in worlds.WORLDS.values():
        kept = record.Record(ROOT / "docs", world.record)
        if kept.path.exists():
            written = page.page(world, kept, 300)
            assert written == kept.page.read_text(), 'run python benchmarks/methods.py --methods ""'
