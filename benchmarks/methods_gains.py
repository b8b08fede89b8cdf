"""Which gains over the untrained network show, of the page of benchmarks/methods.py."""

import dataclasses
import functools

import numpy as np
from methods_record import FROZEN, NAMES

from ssl_jax.evaluation import comparisons

MARGIN = 1.0  # points: the largest difference that does not matter
LEVEL = 0.05  # of all claims of a page together
# The spread over three seeds is little known, so it is shrunk towards that of all methods, if there are so many.
PRIOR_SEEDS, LEAST_METHODS = 3, 10


@dataclasses.dataclass(frozen=True)
class Gain:
    """Of a method over its untrained network, in points. seeds: of both. verdict: set for all gains of a page."""

    name: str
    protocol: str
    difference: comparisons.Difference
    seeds: tuple
    verdict: str = ""

    @property
    def is_claim(self):
        """Whether it says something of other seeds."""
        return min(self.seeds) > 1


def gains(record, rows):
    """Those of all rows whose right images are kept, for both protocols, with verdicts that hold together."""
    groups = record.groups("pixels") if record.has_right("pixels") else None
    priors, found = {protocol: prior(record.read(), rows, protocol) for protocol in FROZEN.values()}, []
    right_of = functools.cache(record.right)  # all methods of a network have its untrained seeds in common
    for row in (row for row in rows if not row.stale):
        ours, theirs = ([key for key in keys if record.has_right(key)] for keys in (row.keys, row.bases))
        for protocol in FROZEN.values() if ours and theirs else ():
            right = [100.0 * np.stack([right_of(key, protocol) for key in keys]) for keys in (ours, theirs)]
            of_both = (priors[protocol] if len(ours) > 1 else None, None)
            difference = comparisons.crossed_bootstrap(*right, groups=groups, priors=of_both)
            found.append(Gain(row.name, protocol, difference, (len(ours), len(theirs))))
    return judged(found)


def prior(known, rows, protocol):
    """Of the variance over a method's seeds; None where too few methods have three."""
    chosen = [row for row in rows if len(row.keys) == PRIOR_SEEDS and not row.stale]
    of_seeds = [[known[key][protocol] for key in row.keys] for row in chosen]
    variances = [variance for variance in np.var(of_seeds, axis=1, ddof=1) if variance] if of_seeds else []
    return comparisons.seed_prior(variances, PRIOR_SEEDS - 1) if len(variances) >= LEAST_METHODS else None


def judged(found):
    claims = [gain for gain in found if gain.is_claim]
    corrected = iter(comparisons.holm([gain.difference.p_value for gain in claims]).tolist())
    return [
        dataclasses.replace(gain, verdict=_verdict(gain.difference, next(corrected)) if gain.is_claim else "one seed")
        for gain in found
    ]


def _verdict(difference, corrected):
    if corrected < LEVEL:
        return "above" if difference.mean > 0 else "below"
    return "same" if comparisons.equivalent(difference, MARGIN) else "not shown"


def shown(found):
    """The section on gains."""
    lines = ["", "## Which gains show", ""]
    if not found:
        return [
            *lines,
            "None yet: the rows above are older than the files of which images a method has right. "
            "`--seeds 0,1,2` measures them again.",
        ]
    claims = sum(gain.is_claim for gain in found)
    lines += [
        "Gain over the untrained network, in points, with its 95 % interval: for other seeds of both, other draws of "
        "the 10 labels, and other test images, the same labels and images for both "
        "(`ssl_jax/evaluation/comparisons.py`). The variance over a method's seeds is shrunk towards that "
        "of all methods (`seed_prior` there). seeds: of the method and of the network. Only methods are here that "
        "were measured with today's config, and of which it is kept which images were right.",
        "",
        f"- above, below: the gain is not 0. Of {claims} tests, these verdicts hold together at 5 % (Holm); each "
        "interval is by itself, so one may exclude 0 where the verdict does not.",
        f"- same: not shown to differ, and the whole interval is within {MARGIN:.0f} point of 0 (not corrected).",
        "- not shown: neither.",
        "- one seed: of the method or of its untrained network. The interval says nothing of its other seeds, and "
        "nothing is claimed.",
        "",
        counted(found),
        "",
        "| method | seeds | kNN | | 10 labels | |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(gain.name for gain in found):
        of_row = [gain for gain in found if gain.name == name]
        cells = [cell for gain in of_row for cell in (_interval(gain.difference), gain.verdict)]
        lines.append(f"| {' | '.join([name, ' and '.join(map(str, of_row[0].seeds)), *cells])} |")
    return lines


def counted(found):
    """How many methods are shown to be above their untrained network."""
    parts = []
    for protocol, name in NAMES.items():
        claims = [gain for gain in found if gain.is_claim and gain.protocol == protocol]
        parts.append(f"{sum(gain.verdict == 'above' for gain in claims)} of {len(claims)} methods by {name}")
    return f"Shown to be above: {' and '.join(parts)}."


def _interval(difference):
    return f"{difference.mean:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})"
