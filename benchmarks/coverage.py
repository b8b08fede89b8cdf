"""How often the intervals of crossed_bootstrap hold the true difference: python benchmarks/coverage.py [--pairs 1000]

Simulates pairs of methods on 400 test images. An image is as hard for both; seeds, and seeds on single images, differ.
In the last two cases methods differ in how much their seeds do; in the last one 60 others give a prior (`seed_prior`).

Prints in which share of the pairs the 95 % interval holds the true difference, and how often the p-value is below a
level where there is no difference, over that level: 1 is right, above 1 claims too much.
"""

import argparse

import numpy as np

from ssl_jax.evaluation.comparisons import crossed_bootstrap, seed_prior

IMAGES = 400
LEVELS = (0.05, 0.01, 0.003, 0.001)
# name: (seeds of both sides, their standard deviations over seeds, that over images, that of single answers)
CASES = {
    "seeds differ most": ((3, 3), (0.1, 0.1), 0.0, 0.0),
    "seeds and images": ((3, 3), (0.02, 0.02), 0.5, 0.15),
    "images alone": ((3, 3), (0.0, 0.0), 0.5, 0.15),
    "one side's seeds": ((3, 3), (0.1, 0.01), 0.0, 0.0),
    "one side's, the other has 12": ((3, 12), (0.1, 0.01), 0.0, 0.0),
    "3 and 12 seeds, alike": ((3, 12), (0.1, 0.1), 0.0, 0.0),
}
OTHERS, FREEDOM = 60, 4  # methods of the prior; the smaller, the more their variances over seeds differ


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'':30}{'held':>8}" + "".join(f"{f'p < {level}':>12}" for level in LEVELS))
    for name, case in CASES.items():
        pairs = [crossed_bootstrap(*simulated(rng, *case), resamples=200, seed=k) for k in range(arguments.pairs)]
        say(name, pairs)
    say("3 and 12, methods differ", [of_some_method(rng, k, with_prior=False) for k in range(arguments.pairs)])
    say("the same, with a prior", [of_some_method(rng, k, with_prior=True) for k in range(arguments.pairs)])


def say(name, found):
    held = np.mean([one.low <= 0 <= one.high for one in found])
    p_values = np.array([one.p_value for one in found])
    rates = "".join(f"{np.mean(p_values < level) / level:>12.1f}" for level in LEVELS)
    print(f"{name:30}{100 * held:>8.1f}{rates}", flush=True)


def of_some_method(rng, seed, *, with_prior):
    """A method with three seeds, and a network with twelve."""
    variances = 0.1**2 * FREEDOM / rng.chisquare(FREEDOM, 1 + OTHERS)
    sides = simulated(rng, (3, 12), (np.sqrt(variances[0]), 0.1), 0.0, 0.0)
    prior = seed_prior(variances[1:] * rng.chisquare(2, OTHERS) / 2, 2) if with_prior else None
    return crossed_bootstrap(*sides, priors=(prior, None), resamples=200, seed=seed)


def simulated(rng, seeds, of_seeds, of_images, of_answers):
    """Two methods without a difference, [seeds, images] each."""
    images = rng.normal(0, of_images, IMAGES)
    return [
        images + spread * rng.normal(size=(count, 1)) + of_answers * rng.normal(size=(count, IMAGES))
        for count, spread in zip(seeds, of_seeds, strict=True)
    ]


if __name__ == "__main__":
    main()
