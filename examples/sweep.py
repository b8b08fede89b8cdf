"""A sweep over seeds with a logger. Ctrl-C saves the run that is going on and ends the loop; run it again to go on."""

import csv
import pathlib

import ssl_jax

pathlib.Path("runs").mkdir(exist_ok=True)
with open("runs/sweep.csv", "w", newline="") as file:  # or wandb.init(...), and wandb.log(metrics, step)
    writer = csv.writer(file)
    for seed in range(2):
        config = ssl_jax.get_config("simclr:tiny")
        config.seed, config.steps, config.log_every, config.evaluate_every = seed, 4, 2, 0

        def log(step, metrics, seed=seed):
            writer.writerow((seed, step, metrics["loss"], metrics["lr"]))

        ssl_jax.pretrain(config, workdir=f"runs/seed{seed}", on_metrics=log)
print(pathlib.Path("runs/sweep.csv").read_text())
