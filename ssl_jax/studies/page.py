"""study.md and study.svg: the conclusion, the table, the plot, and what is needed to repeat the study."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.data.sources import Source
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import estimate
from ssl_jax.studies.measure import Table, protocols
from ssl_jax.studies.pictures import STYLE
from ssl_jax.studies.subjects import Pretrained
from ssl_jax.workdir import facts, files


def write(
    workdir: Path, config: ConfigDict, plan: Plan, table: Table, conclusion: Sequence[str], picture: Figure
) -> Path:
    """Writes both files and returns the page's path."""
    files.write(workdir / "study.svg", svg(picture))
    train, test = plan.data.pair
    counts = {"train": labelled(train), "test": labelled(test)}
    data = {**counts, "classes": len(train.class_names), "name": train.name}
    facts.describe(workdir, skipped={}, study=config.study, seeds=list(config.seeds), configs=digests(plan), data=data)
    described = facts.read(workdir)
    path = workdir / "study.md"
    files.write(path, page(config, plan, table, conclusion, described))
    return path


def labelled(source: Source) -> int:
    """The number of images that are measured on."""
    return 0 if source.labels is None else int(np.sum(source.labels >= 0))


def page(config: ConfigDict, plan: Plan, table: Table, conclusion: Sequence[str], described: dict[str, Any]) -> str:
    data = described["data"]
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items() if version)
    lines = [
        f"# {config.study.replace('_', ' ').capitalize()}",
        "",
        *(f"- {sentence}" for sentence in conclusion),
        "",
        "![accuracy with 95 % intervals](study.svg)",
        "",
        f"Test accuracy in percent on {data['name']} ({data['test']:,} labelled test images, {data['train']:,} for "
        f"training, {data['classes']} classes): mean ± half of the 95 % interval.",
        "",
        *markdown(config, plan, table),
        "",
        "## How it was measured",
        "",
        f"- {len(config.seeds)} seeds ({', '.join(map(str, config.seeds))}). Each is a pre-training with label draws "
        f"of its own ({config.draws}, averaged), which all subjects share, so that differences are paired by seed.",
        "- Intervals are Student's t over seeds, each by itself. Single differences that are claimed hold together at "
        "5 % (Holm), unless the sentence says that one does not; sentences on several numbers of labels, on labels and "
        "on steps saved are not corrected. All hold for these test images: with others, differences would change, too, "
        "by points where there are only some hundred.",
        "- An untrained network is the best on the test images, in each cell, of its variants (BatchNorm statistics as "
        "initialized or of training images, residual scales 1 or 0): if anything, it is flattered.",
        "- Pre-training sees the training images only. Hyper-parameters are chosen on a fifth of the drawn labels.",
        "",
        "| pre-training | method | steps | config |",
        "|---|---|---|---|",
        *(
            f"| {s.name} | {begun(s)}{s.data.config.method.name} | {length(s.data.config)} "
            f"| {described['configs'][s.name]} |"
            for s in plan.subjects
            if isinstance(s, Pretrained)
        ),
        "",
        f"Versions: {versions}; commit {described['commit']}; {described['devices']}.",
        "",
        "Settings (those of each pre-training are in `config.json`, every cell in `study.json`):",
        "",
        "```json",
        configs.dumps(config),
        "```",
        "",
    ]
    return "\n".join(lines)


def markdown(config: ConfigDict, plan: Plan, table: Table) -> list[str]:
    """The table: a row for each subject, a column for each protocol."""
    found = protocols(config)
    lines = [f"| | {' | '.join(map(str, found))} |", "|---" * (len(found) + 1) + "|"]
    for name, rows in table.items():
        cells = []
        for protocol in found:
            if protocol not in rows:
                cells.append("")
                continue
            value = estimate(rows[protocol][:, -1])
            cells.append(f"{value.mean:.1f}" + (f" ± {value.high - value.mean:.1f}" if value.seeds > 1 else ""))
        lines.append(f"| {plan.called(name)} | {' | '.join(cells)} |")
    return lines


def digests(plan: Plan) -> dict[str, str]:
    """The digest of each pre-training's config, without the seed."""
    return {
        subject.name: configs.digest(subject.data.config)
        for subject in plan.subjects
        if isinstance(subject, Pretrained)
    }


def begun(subject: Pretrained) -> str:
    return f"from {subject.begin.name}: " if subject.begin else ""


def length(config: ConfigDict) -> str:
    return f"{config.steps}" if config.steps else f"{config.epochs} epochs"


def svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
