"""benchmarks/gallery.py: its page is made of kept numbers of configs as they are now. Nothing is trained."""

import dataclasses
import shlex

import numpy as np
import pytest
from PIL import Image

from benchmarks import gallery
from ssl_jax import config as configs
from ssl_jax.cli import flags
from ssl_jax.training.config_keys import of_sections

FOUND = {
    "config": "abc",
    "commit": "def",
    "loss": 1.25,
    "chance_level": None,
    "scores": {name: {"pretrained": 70.0, "random": 60.0, "pixels": 50.0} for name in gallery.LABELS.values()},
}


@pytest.mark.parametrize("run", gallery.RUNS, ids=lambda run: run.name)
def test_a_command_gives_the_config_whose_numbers_are_kept(run):
    train, evaluate, report = run.commands
    parsed = flags.read_flags(
        [word for word in train[1:] if word.startswith("--config")], program="train", sections=of_sections
    )
    assert not configs.differences(parsed.config, run.configured())
    assert evaluate == ["evaluate", f"--workdir={run.workdir}"] and report[1] == run.workdir


def test_the_page_is_made_of_numbers_of_the_configs_as_they_are():
    kept, of_name = gallery.kept(), {run.name: run for run in gallery.RUNS}
    for name, numbers in kept.items():
        assert numbers["config"] == configs.digest(of_name[name].configured()), (
            f"run python benchmarks/gallery.py --runs {name}"
        )
        for picture in of_name[name].pictures:
            assert (gallery.FOLDER / f"{name}-{picture}.webp").stat().st_size <= gallery.MOST_BYTES
        assert of_name[name].seen, name
    page = gallery.PAGE.read_text(encoding="utf-8") if gallery.PAGE.exists() else ""
    assert page == (gallery.page(kept) if kept else ""), "run python benchmarks/gallery.py --runs ''"


def test_a_page_has_the_runs_that_there_are_numbers_of():
    run = dataclasses.replace(gallery.RUNS[0], seen="What is seen.")
    text = gallery.page({run.name: FOUND})
    assert f"| [{run.name}](#{run.name}) | {run.family} | 1.250 | 70.0 (60.0) | 70.0 (60.0) | 70.0 (60.0) |" in text
    assert "Raw pixels have 50.0 (kNN), 50.0 (10 labels), 50.0 (all labels)." in " ".join(text.split())
    assert text.count("\n## ") == 1
    command = text[text.index("    ssl_jax train") :].split("\n    ssl_jax evaluate")[0]
    assert shlex.split(command.replace("\\\n", " "))[1:] == run.commands[0]


def test_a_picture_is_made_small_or_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (900, 1500, 3), np.uint8)).save(tmp_path / "noise.png")
    with pytest.raises(ValueError, match=r"noise\.webp has [\d,]+ bytes, more than 60,000; show fewer images"):
        gallery.shrink(tmp_path / "noise.png", tmp_path / "noise.webp")
    Image.new("RGB", (1500, 900), "white").save(tmp_path / "white.png")
    gallery.shrink(tmp_path / "white.png", tmp_path / "white.webp")
    with Image.open(tmp_path / "white.webp") as small:
        assert small.size == (720, 432)
