"""What the documentation tells to type is accepted; what README.md and the first steps tell is run, shortened."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssl_jax.__main__ import COMMANDS
from ssl_jax.cli import flags
from ssl_jax.methods import METHODS
from ssl_jax.training.config_keys import of_sections
from tests.documented import PAGES, ROOT, commands, scripts
from tests.flags import environment

FIRST_STEPS = ROOT / "docs" / "first_steps.md"
# What makes a command short; a later value of a key replaces an earlier one.
SHORTER = {
    "train": ["--config.steps=2", "--config.batch_size=8", "--config.evaluate_every=0"],
    "evaluate": ["--protocols=knn", "--baselines=none"],
    "finetune": ["--steps=2", "--learning_rates=0.001"],
    "segment": ["--steps=2", "--learning_rates=0.001"],
}
RUN = {"train", "evaluate", "report", "embed", "retrieve", "finetune", "predict"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_documented_training_has_keys_and_values_that_there_are(page, capsys):
    for name, *arguments in commands(page):
        assert name in COMMANDS or name == "--version", name
        if name == "train" and not any(".py" in word for word in arguments):  # which would be the reader's own file
            with pytest.raises(SystemExit) as ended:
                flags.read_flags([*of_config(arguments), "--show-config"], program="train", sections=of_sections)
            assert ended.value.code == 0
    capsys.readouterr()


def test_a_documented_key_exists():
    listed = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "configs.md").read_text(encoding="utf-8"), re.MULTILINE)
    of_views = r"^(augment|mix)\.\w+"  # whose names are a method's
    keys = {re.sub(of_views, r"\1", name) for name in listed}
    sections = {name.split(".")[0] for name in keys if "." in name}
    for page in PAGES:
        if page.name == "studies.md":
            continue  # whose --config is a study's
        for name in re.findall(r"--config\.([a-z_0-9.]+)", page.read_text(encoding="utf-8")):
            key = re.sub(of_views, r"\1", name.rstrip("."))
            assert key in keys or key in sections or key in ("model.name", "optimizer.name"), f"{page}: {name}"


def test_the_readme_counts_and_lists_every_method():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"**{len(METHODS)} methods, one train step.**" in text
    listed = set(re.findall(r"`(\w+)`", text[text.index("## Methods") : text.index("## Results")]))
    assert not set(METHODS) - listed


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", FIRST_STEPS], ids=lambda page: page.stem)
def test_documented_commands_run_one_after_the_other(page, tmp_path):
    make_images(tmp_path)
    ran = set()
    for name, *arguments in commands(page):
        if name in ("plan", "--version") or "--backbone" in arguments:
            continue  # a compiler for chips, and a file of published weights, that are not at hand
        for flag, file in itertools.pairwise(arguments):
            if flag == "--query":
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tmp_path / "MY_IMAGES" / "a" / "0.png", tmp_path / file)
        shorter = [] if "--head_only" in arguments else SHORTER.get(name, [])
        run(["-m", "ssl_jax", name, *arguments, *shorter], tmp_path)
        ran.add(name)
    assert ran >= RUN, f"{page.name} no longer has {RUN - ran}"

    for script in scripts(page) if page == FIRST_STEPS else []:
        run(["-c", script.replace("steps = 300", "steps, config.batch_size = 2, 8")], tmp_path)


def run(arguments: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"python {' '.join(arguments)}\n{done.stderr[-3000:]}"


def make_images(folder: Path) -> None:
    """Under the names that the pages use: labelled images in two folders, other images, masks, a photo."""
    rng = np.random.default_rng(0)
    for number in range(60):  # more than the 20 neighbors of kNN
        kind, name = "ab"[number % 2], f"{number}.png"
        image = rng.integers(0, 128, (72, 80, 3)) + 100 * (number % 2)
        mask = np.zeros((72, 80), np.uint8)
        mask[: 10 + number] = 1
        for place, pixels in (("MY_IMAGES", image), ("MY_MASKS", mask)):
            (folder / place / kind).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / place / kind / name), pixels.astype(np.uint8))
    for other in ("photos", "NEW_IMAGES"):
        shutil.copytree(folder / "MY_IMAGES", folder / other)


def of_config(arguments: list[str]) -> list[str]:
    """The arguments that belong to --config: without flags such as --workdir, and their values."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word for before, word in pairs if word.startswith("--config") or before == "--config"]
