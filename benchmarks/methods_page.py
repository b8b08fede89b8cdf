"""The page of benchmarks/methods.py: the table, which gains show, and how the ranks of two tables agree."""

import dataclasses
import re

import methods_gains
import numpy as np
from methods_record import FINETUNE, KNN, LINEAR, NAMES, Record
from methods_worlds import DRAWS, FASHION, GIVEN, LONGER, UNTRAINED_SEEDS, WORLDS, configured, untrained_key

from ssl_jax import config as configs
from ssl_jax.evaluation import comparisons, finetuning_recipes
from ssl_jax.methods import METHODS

ABOVE = "above under both"
# Of FASHION: why a method is not above its untrained network after LONGER times the steps, either. kNN on held-out
# images and of whitened features is from not_above.py.
REASONS = {
    "bigan": "not found; one seed on held-out training images has 78.3 (78.1) by kNN, of whitened features 83.0 (82.6)",
    "bigbigan": "its discriminator does not beat chance in these steps (accuracy 0.37 to 0.58), so the encoder learns "
    "nothing from it; the paper trains for 500,000. With twice in place of ten times the others' learning rate for the "
    "encoder it does (0.60), but kNN on held-out training images is 74.8",
    "deepcluster": "in part: few directions carry most of the variance, which its k-means whitens; of whitened "
    "features, kNN on held-out training images has 81.8 (81.6), one seed",
}
FIRST_JAX = "0.10.2"  # of entries that do not say
MARK = "†"
STALE = (
    f"- {MARK}: measured with an older config. Its settings have changed since, so another run may give other numbers."
)
HEADER = (
    "| method | backbone | seeds | kNN | 10 labels | gain | alarms | commit |",
    "|---|---|---|---|---|---|---|---|",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A method. keys, bases: of the record, of each seed of it and of its untrained network. tuned, tuned_base: of the
    fine-tuned networks, which the record need not have. stale: whether its config has changed since."""

    name: str
    backbone: str
    keys: tuple
    bases: tuple
    tuned: str
    tuned_base: str
    stale: bool = False


def page(world, record, steps):
    known = record.read()
    measured = rows(known, world, steps)
    longer = rows(known, world, steps, "longer-")
    lines = [
        f"# Results on {world.title}" if world is not FASHION else "# Results",
        "",
        f"Every method's `tiny` config on {world.title}: {steps} steps of 256 images (fewer where the config says so), "
        "then test accuracy in percent.",
        "",
        "- kNN: of frozen features, k 20, temperature 0.07.",
        f"- 10 labels: a linear probe (logistic regression) of frozen features on 10 labels per class, mean of "
        f"{len(DRAWS)} draws.",
        "- In parentheses what the untrained network gives under the same protocol, mean over 3 to "
        f"{len(UNTRAINED_SEEDS)} seeds; of each seed the best of its variants on these test images, so it is rather "
        f"flattered. gain: over it, "
        "of the column before.",
        "- seeds: of the pre-training. ± is the standard deviation over them. A row with one seed has none: "
        "another seed may differ by points.",
        "- alarms: of the run's log: `loss` that stays at its chance level, `rankme` where few dimensions are in use.",
        "- commit: of the code that the frozen features were made with; + where files had changed since.",
        *([STALE] if any(row.stale for row in (*measured, *longer)) else []),
        f"- {world.chosen}",
        "",
        "A few minutes of training say which method learns at all and how fast, not which is best after 1000 epochs.",
        above_pixels(known, measured),
        "",
        *HEADER,
        pixels(known),
        *table(known, measured)[len(HEADER) :],
    ]
    lines += not_above(known, measured, longer, steps, REASONS if world is FASHION else {})
    lines += fine_tuned(known, measured)
    missing = sorted(set(METHODS) - {row.name for row in measured})
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    elsewhere = [name for name in METHODS if configured(name, 0, steps, world).data.name != world.name]
    if elsewhere:
        lines += [
            "",
            f"Trained on color images, those of their configs, and measured on {world.title}: {', '.join(elsewhere)}.",
        ]
    of_others = [f"{name} of {GIVEN[name][1]}" for name in (row.name for row in measured) if name in GIVEN]
    if of_others:
        lines += ["", f"Start with the trained network of another method, from the same seed: {', '.join(of_others)}."]
    lines += methods_gains.shown(methods_gains.gains(record, measured))
    if world.name != FASHION.name:
        other = Record(record.folder, FASHION.record).read()
        lines += agreement(known, measured, other, rows(other, FASHION, steps), FASHION.title)
    option = "" if world is FASHION else f"--data {next(name for name in WORLDS if WORLDS[name] is world)} "
    if "images" in known:
        of_both = " and ".join(f"{known['images'][name]} for {name}" for name in ("training", "testing"))
        lines += ["", f"Images of {world.title}, with their digests: {of_both}."]
    versions = sorted({found.get("jax", FIRST_JAX) for found in known.values()})
    lines += [
        "",
        f"Made by `python benchmarks/methods.py {option}--steps {steps}` with JAX {' and '.join(versions)}; "
        f"[{record.path.name}]({record.path.name}) has the numbers and the hashes of the configs.",
        "",
    ]
    return "\n".join(lines)


def above_pixels(known, measured):
    """How many methods are above raw pixels."""
    counts = []
    for protocol, name in NAMES.items():
        above = [row.name for row in measured if _mean(known, row.keys, protocol) > known["pixels"][protocol]]
        named = f" ({', '.join(above)})" if 0 < len(above) <= 5 else ""
        counts.append(f"{len(above)} by {name}{named}")
    return (
        f"Raw pixels are strong on such images: of {len(measured)} methods {' and '.join(counts)} have a higher mean."
    )


def _mean(known, keys, protocol):
    return np.mean([known[key][protocol] for key in keys])


def not_above(known, measured, longer, steps, reasons):
    """The section on methods that are not above their untrained network under every protocol after `steps`: what more
    steps give, and why."""
    short = {row.name: found for row in measured if (found := short_of(known, row))}
    if not short:
        return []
    longer = [row for row in longer if row.name in short]
    after = {row.name: short_of(known, row) for row in longer}
    lines = [
        "",
        "## Not above their untrained network",
        "",
        f"Under which protocols of frozen features the mean is not above, after {steps} steps and after "
        f"{LONGER * steps} (one seed: another may differ), and the reason as far as it was found.",
        "",
        f"| method | after {steps} | after {LONGER * steps} | reason |",
        "|---|---|---|---|",
    ]
    for name in short:
        then = (", ".join(after[name]) or ABOVE) if name in after else "not measured"
        reason = "too few steps, as far as one seed says" if then == ABOVE else reasons.get(name, "not found")
        lines.append(f"| {name} | {', '.join(short[name])} | {then} | {reason} |")
    return [*lines, "", f"{LONGER * steps} steps:", "", *table(known, longer)] if longer else lines


def short_of(known, row):
    """The names of the protocols under which the row is not above its untrained network."""
    return [
        name
        for protocol, name in NAMES.items()
        if _mean(known, row.keys, protocol) <= _mean(known, row.bases, protocol)
    ]


def rows(known, world, steps, prefix=""):
    """Of the methods that the record has, with the network that each starts from. What was measured with today's config
    is not mixed with what is older."""
    found = []
    trained = LONGER * steps if prefix else steps
    for name in METHODS:
        keys = sorted(
            key for key in known if re.fullmatch(rf"{prefix}{name}(-\d+)?" if prefix else rf"{name}-\d+", key)
        )
        fresh = [
            key
            for key in keys
            if known[key].get("config") == _digest(name, 0 if prefix else _seed(key), trained, world)
        ]
        keys = fresh or keys
        if not keys:
            continue
        of_seeds = [untrained_key(configured(name, seed, steps, world), world) for seed in UNTRAINED_SEEDS]
        bases = tuple(base for base in of_seeds if base in known)
        if of_seeds[0] in bases:
            backbone = configured(name, 0, steps, world).model.name
            tuned = (f"finetuned-{prefix}{name}", f"finetuned-{of_seeds[0]}")
            found.append(Row(name, backbone, tuple(keys), bases, *tuned, stale=not fresh))
    return found


def _seed(key):
    return int(key.rpartition("-")[2])


def _digest(name, seed, steps, world):
    return configs.digest(configured(name, seed, steps, world))


def table(known, rows):
    """known: the record's numbers."""
    return [*HEADER, *(_line(row, known) for row in rows)]


def pixels(known):
    return f"| raw pixels | | | {known['pixels'][KNN]:.1f} | {known['pixels'][LINEAR]:.1f} | | | |"


def _line(row, known):
    found, bases = ([known[key] for key in keys] for keys in (row.keys, row.bases))
    means, base = ({protocol: np.mean([one[protocol] for one in of]) for protocol in NAMES} for of in (found, bases))
    spread = {p: f" ± {np.std([one[p] for one in found], ddof=1):.1f}" if len(found) > 1 else "" for p in NAMES}
    cells = [
        f"{row.name} {MARK}" if row.stale else row.name,
        row.backbone,
        len(found),
        *(f"{means[protocol]:.1f}{spread[protocol]} ({base[protocol]:.1f})" for protocol in NAMES),
        f"{means[LINEAR] - base[LINEAR]:+.1f}",
        ", ".join(sorted({alarm for one in found for alarm in one["alarms"]})),
        ", ".join(sorted({one["commit"] for one in found if "commit" in one})),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def fine_tuned(known, rows):
    """The section on whole networks that were trained on few labels."""
    # What was fine-tuned from a network of another config than the frozen features' is left out.
    pairs = [(row, known.get(row.tuned), known.get(row.tuned_base)) for row in rows]
    pairs = [(row, *both) for row, *both in pairs if all(both) and both[0]["config"] == known[row.keys[0]]["config"]]
    if not pairs:
        return []
    lines = [
        "",
        "## Fine-tuned",
        "",
        f"The whole network trained on 10 labels per class for {finetuning_recipes.Recipe.steps} steps, the learning "
        "rate chosen on a fifth of the labels: mean of 3 draws of the labels, ± their standard deviation. Of seed 0 "
        "alone, so a gain may change by some 2 points.",
        "",
        "| method | fine-tuned | untrained network | gain |",
        "|---|---|---|---|",
    ]
    for row, *both in pairs:
        cells = [
            f"{row.name} {MARK}" if row.stale else row.name,
            *(f"{one[FINETUNE]:.1f} ± {one['std']:.1f}" for one in both),
        ]
        lines.append(f"| {' | '.join([*cells, f'{both[0][FINETUNE] - both[1][FINETUNE]:+.1f}'])} |")
    return lines


def agreement(known, rows, other, other_rows, title):
    """The section on how the ranks of methods agree with those of another table, of `title`."""
    named = {row.name: row for row in other_rows}
    both = [row for row in rows if row.name in named]
    lines = ["", f"## Beside {title}", ""]
    if len(both) < 4:
        return [*lines, f"{len(both)} methods are in both tables; their ranks are compared from four on."]
    lines += [
        f"Rank correlation (Spearman's) of the accuracies of {len(both)} methods in both tables, with its 95 % "
        "interval over methods:",
        "",
    ]
    for protocol, name in NAMES.items():
        ours, theirs = (
            [np.mean([numbers[key][protocol] for key in row.keys]) for row in chosen]
            for numbers, chosen in ((known, both), (other, [named[row.name] for row in both]))
        )
        found = comparisons.rank_correlation(ours, theirs)
        lines.append(f"- {name}: {found.value:.2f} ({found.low:.2f} to {found.high:.2f})")
    return lines
