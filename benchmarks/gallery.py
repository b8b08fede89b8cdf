"""A run of each family on Google's emoji, and docs/gallery.md of their reports: python benchmarks/gallery.py

Trains, evaluates and reports each of RUNS into runs/gallery/NAME, by the commands that the page shows. Keeps its
numbers in docs/gallery/numbers.json, pictures of its report beside them, and writes the page. What is finished stays,
what was stopped goes on, and a run whose config changed is made again. --runs simclr,mae makes some of them, in this
order; --runs "" only writes the page.
"""

import argparse
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from PIL import Image

from ssl_jax import config as configs
from ssl_jax.report import scores
from ssl_jax.workdir import config_file, facts
from ssl_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
FOLDER = ROOT / "docs" / "gallery"  # its pictures and numbers
WORKDIR = "runs/gallery"
SIDE, STEPS = 32, 300  # pixels of an image
WIDTH, MOST_BYTES = 720, 60_000  # of a picture
IMAGES = {
    "data.name": "emoji_google",
    "data.channels": 3,
    "data.mean": (0.808, 0.757, 0.717),
    "data.std": (0.275, 0.285, 0.329),
    "data.image_size": (SIDE, SIDE),
    "batch_size": 128,
}
COLORS = {"saturation": 0.6, "hue": 0.1, "grayscale": 0.2}  # the tiny configs have none: their images are gray
LABELS = {"knn/k20_t0.07/top1": "kNN", "linear/10_per_class/top1": "10 labels", "linear/all/top1": "all labels"}


@dataclasses.dataclass(frozen=True)
class Run:
    """config: NAME:SCALE. changes: of its keys, beside IMAGES. views: which get SIDE pixels. colors: whether colors of
    views change, too. pictures: of the report. seen: what they show."""

    family: str
    config: str
    pictures: tuple[str, ...]
    seen: str
    changes: dict = dataclasses.field(default_factory=dict)
    views: tuple[str, ...] = ("view",)
    colors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.split(":")[0]

    @property
    def workdir(self) -> str:
        return f"{WORKDIR}/{self.name}"

    @property
    def settings(self) -> dict:
        """Every key that differs from the config's."""
        sizes = {f"augment.{view}.size": (SIDE, SIDE) for view in self.views}
        colors = {f"augment.{view}.{key}": value for view in self.colors for key, value in COLORS.items()}
        often = {"steps": STEPS, "log_every": 20, "evaluate_every": 100}
        return IMAGES | often | sizes | colors | self.changes

    def configured(self):
        config = configs.get_config(self.config)
        with config.unlocked():  # views have more keys than a config names
            config.update_from_flattened_dict(self.settings)
        return config

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of ssl_jax: train, evaluate, report."""
        overrides = [f"--config.{key}={shown(value)}" for key, value in self.settings.items()]
        return [
            ["train", f"--config={self.config}", *overrides, f"--workdir={self.workdir}"],
            ["evaluate", f"--workdir={self.workdir}"],
            ["report", self.workdir, "--files"],
        ]


RUNS = (
    Run(
        "Generative, hidden patches",
        "mae:tiny",
        ("drawn",),
        "Three quarters of the patches are hidden. What is filled in goes on with the colors and outlines around it; "
        "faces are a blur where both eyes are hidden, and some patches of a white background are bluish.",
        {"model.image_size": SIDE},
    ),
    Run(
        "Generative, autoencoder",
        "vae:tiny",
        ("drawn",),
        "Shapes and main colors come back, details do not: after 300 steps the face has no eyes. Samples have the "
        "colors of emoji, and show no things yet.",
    ),
    Run(
        "Pretext task",
        "colorization:tiny",
        ("drawn",),
        "Skin, hearts and yellow faces get their colors. Where gray tells little, as of the line of the chart, it "
        "stays gray; colors run over the outlines.",
    ),
    Run(
        "Contrastive",
        "simclr:tiny",
        ("views", "neighbors"),
        "Above, images on the left, and two views of each: crops, whose colors change. Below, images of each category "
        "on the left, and what is nearest to them. Flags are beside flags, keys beside keys, surfers beside surfers of "
        "every skin. What has one shape and color in two categories is mixed, as a ghost and gray turbans.",
        colors=("view",),
    ),
    Run(
        "Distillation",
        "dino:tiny_vit",
        ("patches-attention", "neighbors"),
        "Above, where the class token looks: one head at the background, another at clothes and water, a random "
        "network at all places alike. Below, what is nearest to images of each category shares their colors more than "
        "the thing: green is beside green, blue policemen are beside blue flags. With 300 steps of 64 images it is "
        "below its random network by kNN and with 10 labels.",
        {"batch_size": 64, "model.image_size": SIDE, "model.patch_size": 4, "augment.local.size": (16, 16)},
        views=("global1", "global2"),
        colors=("global1", "global2", "local"),
    ),
    Run(
        "Decorrelation",
        "vicreg:tiny",
        ("neighbors",),
        "Images of each category on the left, and what is nearest to them. Flags, keys and surfers are beside their "
        "like. Others share color and outline alone: a cactus is beside a pear and a snake, an eye beside what is "
        "black and white.",
        views=("view1", "view2"),
        colors=("view1", "view2"),
    ),
    Run(
        "Clustering",
        "swav:tiny",
        ("neighbors",),
        "Flags, keys, surfers and people with red hair are beside their like; a cactus is beside hands, an eye beside "
        "telephones. In these few steps it stays below its random network by kNN and with 10 labels.",
        views=("global",),
        colors=("global", "local"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=",".join(run.name for run in RUNS), help="names, with commas; all by default")
    chosen = parser.parse_args().runs.split(",")
    unknown = sorted(set(chosen) - {"", *(run.name for run in RUNS)})
    if unknown:
        parser.error(f"no runs {unknown}; there are {', '.join(run.name for run in RUNS)}")
    of_name = {run.name: run for run in RUNS}
    for name in filter(None, chosen):
        make(of_name[name])
    if found := kept():
        PAGE.write_text(page(found), encoding="utf-8")
        print(f"wrote {PAGE}")


def make(run: Run) -> None:
    workdir = ROOT / run.workdir
    if (workdir / "config.json").exists() and configs.differences(config_file.read_config(workdir), run.configured()):
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    results = ("backbone.safetensors", "evaluation.json", "report.html")
    for arguments, result in zip(run.commands, results, strict=True):
        if not (workdir / result).exists():
            print("ssl_jax", shlex.join(arguments), flush=True)
            with (workdir / "log.txt").open("a") as log:
                command = [sys.executable, "-m", "ssl_jax", *arguments]
                subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
    FOLDER.mkdir(exist_ok=True)
    for picture in run.pictures:
        shrink(workdir / "pictures" / f"{picture}.png", FOLDER / f"{run.name}-{picture}.webp")
    found = dict(sorted((kept() | {run.name: numbers(run, workdir)}).items()))
    (FOLDER / "numbers.json").write_text(json.dumps(found, indent=1) + "\n")


def shrink(source: Path, target: Path) -> None:
    """Raises: ValueError if the picture is too large in any quality."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    for quality in (90, 80, 70, 55, 40):
        image.save(target, quality=quality, method=6)
        if target.stat().st_size <= MOST_BYTES:
            return
    raise ValueError(f"{target} has {target.stat().st_size:,} bytes, more than {MOST_BYTES:,}; show fewer images")


def numbers(run: Run, workdir: Path) -> dict:
    """What the page says of a run."""
    metrics = read_metrics(workdir / "metrics.jsonl")
    losses = [line for line in metrics if "loss" in line]
    rows = {row.protocol: row for row in scores.rows(json.loads((workdir / "evaluation.json").read_text()))}
    return {
        "config": configs.digest(run.configured()),
        "commit": facts.commit(),
        "loss": round(losses[-1]["loss"], 4),
        "chance_level": losses[-1].get("chance_level"),
        "scores": {
            name: {subject: round(score.mean, 1) for subject, score in rows[protocol].scores.items()}
            for protocol, name in LABELS.items()
        },
    }


def kept() -> dict:
    """numbers.json: name of a run -> its numbers."""
    path = FOLDER / "numbers.json"
    return json.loads(path.read_text()) if path.exists() else {}


HEAD = """# Gallery

A run of each family of methods on [Google's emoji](data.md#emoji-of-two-vendors): 2,663 drawings in color, read at
{side} x {side} pixels, {steps} steps of a `tiny` config on a CPU. Each was measured by `ssl_jax evaluate` on 1,118
other drawings, and reported by `ssl_jax report`. The pictures are those of its report.

Accuracy in percent, of 9 categories; always to say the largest one is right for 59. In parentheses the best of several
random networks. Raw pixels have {pixels}. One run each, of one seed: another
seed may differ by points. No setting was chosen on these images, and steps are few. So no order of the methods follows;
[results.md](results.md) compares them. `python benchmarks/gallery.py` makes this page.

| run | family | loss | {protocols} |
|---|---|---|{rules}|
"""


def page(found: dict) -> str:
    runs = [run for run in RUNS if run.name in found]
    pixels = found[runs[0].name]["scores"]  # the same for all runs
    head = HEAD.format(
        side=SIDE,
        steps=STEPS,
        pixels=", ".join(f"{scores['pixels']} ({name})" for name, scores in pixels.items()),
        protocols=" | ".join(LABELS.values()),
        rules="|".join("---" for _ in LABELS),
    )
    rows = [row(run, found[run.name]) for run in runs]
    return head + "\n".join(rows) + "\n\n" + "\n\n".join(section(run) for run in runs) + "\n"


def row(run: Run, found: dict) -> str:
    chance = found["chance_level"]
    loss = f"{found['loss']:.3f}" + ("" if chance is None else f" (chance {chance:.3f})")
    cells = [f"{scores['pretrained']} ({scores['random']})" for scores in found["scores"].values()]
    return f"| {' | '.join([f'[{run.name}](#{run.name})', run.family, loss, *cells])} |"


def section(run: Run) -> str:
    pictures = "\n\n".join(
        f"![{run.name}, from its report: {picture}](gallery/{run.name}-{picture}.webp)" for picture in run.pictures
    )
    return f"## {run.name}\n\n{wrapped(run.commands)}\n\n{pictures}\n\n{run.seen}"


def wrapped(commands: list[list[str]]) -> str:
    """Lines of code for a shell."""
    lines = []
    for arguments in commands:
        text = textwrap.wrap(
            f"ssl_jax {shlex.join(arguments)}",
            116,
            break_long_words=False,
            break_on_hyphens=False,
            subsequent_indent="    ",
        )
        lines += [f"{line} \\" for line in text[:-1]] + text[-1:]
    return textwrap.indent("\n".join(lines), "    ")


def shown(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
