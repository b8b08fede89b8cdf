"""The commands with a run and images that are in a bucket."""

import json

import numpy as np
import pytest

import ssl_jax
from ssl_jax import paths
from ssl_jax.cli import embed, evaluate, finetune, predict, report, train
from tests.stores.test_run import SETTINGS, upload_images


@pytest.mark.slow
def test_a_run_in_a_bucket_is_evaluated_reported_and_used(bucket, tmp_path, capsys):
    data, workdir = upload_images(bucket), f"{bucket}/commands"
    settings = {**SETTINGS, "steps": 4, "data.path": data}
    config = [f"--config.{key}={value}" for key, value in settings.items()]
    for place in (workdir, str(tmp_path / "run")):
        train.main(["--config=simclr:tiny", f"--workdir={place}", *config])
        evaluate.main([f"--workdir={place}", "--protocols=knn", "--baselines=random"])
    train.main(["--config=simclr:tiny", f"--workdir={workdir}", *config])
    assert "all 4 steps are done already" in capsys.readouterr().out

    there, here = paths.path(workdir), tmp_path / "run"
    scores = [json.loads(paths.read_bytes(place / "evaluation.json")) for place in (there, here)]
    assert scores[0]["pretrained"] == scores[1]["pretrained"]
    evaluate.main(
        [f"--workdir={workdir}", "--protocols=knn", "--baselines=none", f"--out={bucket}/s.json,{bucket}/s.html"]
    )
    assert json.loads(paths.read_bytes(paths.path(f"{bucket}/s.json")))["pretrained"] == scores[0]["pretrained"]

    report.main([workdir, "--files"])
    page = paths.read_bytes(there / "report.html").decode()
    assert "kNN" in page and len(page) > 20_000
    assert "views.png" in paths.names(there / "pictures")

    embed.main([f"--workdir={workdir}", f"--data={data}", f"--out={bucket}/photos.npz"])
    backbone = ssl_jax.load_backbone(workdir)
    names, features = ssl_jax.embed(backbone, ssl_jax.data.open_data(data, channels=1))
    with np.load(paths.opened(paths.path(f"{bucket}/photos.npz"))) as found:
        assert found["names"].tolist() == list(names)
        np.testing.assert_array_equal(found["embeddings"], features)

    finetune.main([f"--workdir={workdir}", f"--data={data}", "--head_only", f"--out={bucket}/tuned"])
    predict.main([f"--workdir={bucket}/tuned", f"--data={data}", f"--out={bucket}/predictions.csv"])
    assert len(paths.read_bytes(paths.path(f"{bucket}/predictions.csv")).splitlines()) == 97
