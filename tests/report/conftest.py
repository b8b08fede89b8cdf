import json

import numpy as np
import pytest

from tests.report.pages import Page


def scores(knn, linear, std):
    return {
        "knn/k20_t0.07/top1": {"mean": knn, "std": 0.0},
        "linear/10_per_class/top1": {"mean": linear, "std": std},
    }


def finish_run(made):
    """A finished run's files, of few and random images, in the directory `made`."""
    (made / "samples").mkdir(parents=True)
    config = {
        "seed": 0,
        "batch_size": 4,
        "steps": 30,
        "data": {"name": "fashion_mnist", "path": "", "image_size": [28, 28], "channels": 1},
        "model": {"name": "resnet8"},
        "method": {"name": "simclr", "projector": [256, 64]},
        "online_knn": {"bank": 30, "queries": 10, "k": 20},
    }
    facts = {
        "devices": "1 x cpu (cpu)",
        "num_images": 60,
        "versions": {"jax": "0.10.2"},
        "skipped": {"cat.jpg": "cut short"},
    }
    evaluation = {
        "pretrained": scores(85.7, 75.1, 0.9),
        "random": scores(79.3, 64.0, 1.2),
        "pixels": scores(84.6, 71.4, 0.8),
        "random_variants": {"initial": scores(70.0, 60.0, 1.0), "calibrated": scores(79.3, 64.0, 1.2)},
    }
    for name, value in (("config", config), ("run", facts), ("evaluation", evaluation)):
        (made / f"{name}.json").write_text(json.dumps(value))
    lines = [
        {"step": step, "loss": 4.0 / step, "chance_level": 2.0, "images_per_second": 8.0, "data_wait": 0.01}
        | {"embedding_std": 0.12, "rankme": 50.0, "embedding_dim": 64, "rank_limit": 64}
        | {"alignment": 0.3, "uniformity": -3.5, "grad_norm": 1.0}
        | ({"knn_top1": 80.0} if step == 30 else {})
        for step in (10, 20, 30)
    ]
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28, 1), dtype=np.uint8)
    np.savez(made / "samples" / "views.npz", original=images[:8], views=images[:48].reshape(8, 6, 28, 28, 1)[:, :2])
    np.savez(
        made / "samples" / "embeddings.npz",
        images=images,
        features=rng.normal(size=(60, 5)).astype(np.float32),
        labels=np.arange(60, dtype=np.int32) % 3,
        class_names=np.array(["Coat", "Bag", "Sandal"]),
    )
    return made


def measure_run(workdir):
    """Adds all that an evaluation can leave behind."""
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    more = {"linear/100_per_class/top1": 82.0, "linear/all/top1": 85.0}
    more |= {"finetune/10_per_class/top1": 76.0, "finetune/100_per_class/top1": 84.0}
    for points, subject in enumerate(("pixels", "random", "pretrained")):
        evaluation[subject] |= {protocol: {"mean": mean + points, "std": 0.5} for protocol, mean in more.items()}
    evaluation["data"] = {"name": "fashion_mnist", "train_images": 18_000, "classes": ["Coat", "Bag", "Sandal"]}
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    labels = np.arange(60, dtype=np.int32) % 3
    np.savez(
        workdir / "samples" / "predictions.npz",
        labels=labels,
        predictions=np.where(np.arange(60) < 12, 0, labels).astype(np.int32),  # four bags and four sandals for coats
        class_names=np.array(["Coat", "Bag", "Sandal"]),
    )
    rng = np.random.default_rng(1)
    keys = ["features/pretrained", "features/random", "attention/pretrained", "attention/head 1", "attention/head 2"]
    np.savez(
        workdir / "samples" / "patches.npz",
        images=rng.integers(0, 256, (8, 28, 28, 1), dtype=np.uint8),
        **{
            key: rng.integers(0, 256, (8, 4, 4, 3) if key.startswith("features") else (8, 96, 96, 3), dtype=np.uint8)
            for key in (*keys, "attention/random")
        },
    )
    return workdir


@pytest.fixture
def workdir(tmp_path):
    return finish_run(tmp_path / "a run")


@pytest.fixture
def measured(workdir):
    return measure_run(workdir)


@pytest.fixture(scope="session")
def finished_page(tmp_path_factory):
    """The page of `workdir` as it is: for those who only read it."""
    return Page(finish_run(tmp_path_factory.mktemp("finished") / "a run"))
