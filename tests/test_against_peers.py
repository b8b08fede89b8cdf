"""benchmarks/against_peers.py: its pages are made of runs of the configs as they are now. Nothing is trained."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from ssl_jax import config as configs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("against_peers")


@pytest.mark.parametrize("name", ["lightly", "stable-pretraining"])
def test_the_page_is_made_of_runs_of_the_configs_as_they_are(benchmark, name):
    library = benchmark.LIBRARIES[name]
    known = library.record.read()
    assert known
    for key, entry in known.items():
        _, method, seed = key.split("-")
        assert entry["config"] == configs.digest(library.config_of(method, int(seed))), f"measure {key} again"
    assert library.record.page.read_text(encoding="utf-8") == benchmark.page(library, known)


def test_neighbors_vote_by_similarity(benchmark):
    bank = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0]])
    labels = np.array([0, 0, 1, 1, 2])
    queries = np.array([[2.0, 0.1], [0.1, 3.0], [0.0, 5.0]])
    right = benchmark.knn_right(bank, labels, queries, np.array([0, 1, 0]), k=3)
    assert right.tolist() == [True, True, False]
