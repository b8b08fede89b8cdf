"""Exact nearest neighbors of a large bank, ours and faiss's flat index: python benchmarks/knn.py --faiss PYTHON

PYTHON is that of an environment with faiss-cpu and numpy, which this package does not need:
    python -m venv DIR && DIR/bin/pip install faiss-cpu

All search the same random features by cosine, each in a process of its own, in turns, so that other load on the
machine falls on all. faiss stands there twice: with its index built before, and, as "faiss_whole", from the same
features as ours in each turn: it normalizes a copy of the bank and builds the index. Prints the seconds of each round,
the ratios (of the time of a core, too, which other load hardly changes), and the most memory that each process held;
and, for a part of the queries, whether the neighbors are those that scikit-learn finds. Run it under `taskset -c 0` for
one core on all sides.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHECKED = 200  # queries for which all three are compared


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faiss", default="", help="its Python; without it ours alone is timed")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="turns; the queries are divided among them")
    parser.add_argument("--serve", choices=SEARCHES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments)
    pythons = {"ours": sys.executable}
    pythons |= dict.fromkeys(("faiss", "faiss_whole"), arguments.faiss) if arguments.faiss else {}
    with tempfile.TemporaryDirectory() as directory:
        sides = {name: Side(name, python, Path(directory), arguments) for name, python in pythons.items()}
        for number in range(arguments.rounds):
            seconds = {name: side.search(number) for name, side in sides.items()}
            print(
                "  ".join(f"{name} {s:.2f} s ({core:.2f} s of a core)" for name, (s, core) in seconds.items()),
                flush=True,
            )
        found = {name: side.finish() for name, side in sides.items()}
        total, core = ({name: sum(s[i] for s in side.seconds) for name, side in sides.items()} for i in (0, 1))
        flops = 2 * arguments.rows * arguments.dim * arguments.queries
        for name, (_, memory) in found.items():
            rate = flops / core[name] / 1e9
            print(f"{name}: {total[name]:.1f} s, {rate:.0f} GFLOP per second of a core, at most {memory:.2f} GB held")
        for name in [name for name in found if name != "ours"]:
            print(f"{name} / ours: {total[name] / total['ours']:.2f}, of a core {core[name] / core['ours']:.2f}")
        expected = by_scikit_learn(arguments)
        for name, (rows, _) in found.items():
            # Where two similarities are equal but for rounding, their order is chance.
            print(f"{name}: {100 * np.mean(rows == expected):.3f} % of the neighbors are scikit-learn's, in its order")


def features(arguments):
    """(bank, queries)"""
    rng = np.random.default_rng(0)
    shapes = (arguments.rows, arguments.dim), (arguments.queries, arguments.dim)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


def by_scikit_learn(arguments):
    from sklearn.neighbors import NearestNeighbors

    bank, queries = features(arguments)
    found = NearestNeighbors(n_neighbors=arguments.k, metric="cosine", algorithm="brute").fit(bank)
    return found.kneighbors(queries[:CHECKED], return_distance=False)


class Side:
    """A process that searches when told to."""

    def __init__(self, name, python, directory, arguments):
        self.seconds, self.found = [], directory / f"{name}.npy"
        options = [f"--{key}={getattr(arguments, key)}" for key in ("rows", "dim", "queries", "k", "rounds")]
        command = [python, __file__, f"--serve={name}", *options]
        threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )
        self.answer()  # it is ready

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args} ended with status {self.process.wait()}; see above")
        return json.loads(line)

    def ask(self, message):
        print(message, file=self.process.stdin, flush=True)
        return self.answer()

    def search(self, number):
        self.seconds.append(self.ask(number))
        return self.seconds[-1]

    def finish(self):
        """(neighbors of the first queries, GB)"""
        memory = self.ask(f"-1 {self.found}")
        self.process.wait()
        return np.load(self.found), memory


def serve(arguments):
    bank, queries = features(arguments)
    search, parts = SEARCHES[arguments.serve](bank, arguments.k), np.array_split(queries, arguments.rounds)
    search(parts[0])  # compiles
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        if line.startswith("-1"):
            np.save(line.split(maxsplit=1)[1].strip(), search(parts[0][:CHECKED]))
            print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6), flush=True)
            return
        begun = time.perf_counter(), time.process_time()
        search(parts[int(line)])
        print(json.dumps((time.perf_counter() - begun[0], time.process_time() - begun[1])), flush=True)


def ours(bank, k):
    from ssl_jax.evaluation import search

    return lambda queries: search.nearest(bank, queries, k=k)[1]


def faiss(bank, k):
    index = flat_index(bank)
    return lambda queries: index.search(normalized(queries), k)[1]


def faiss_whole(bank, k):
    return lambda queries: flat_index(bank).search(normalized(queries), k)[1]


def flat_index(bank):
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(normalized(bank))
    return index


def normalized(features):
    import faiss

    features = features.copy()
    faiss.normalize_L2(features)
    return features


SEARCHES = {"ours": ours, "faiss": faiss, "faiss_whole": faiss_whole}

if __name__ == "__main__":
    main()
