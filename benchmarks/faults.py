"""python benchmarks/faults.py [--only TEXT]: which of the faults below the default tier of the tests finds.

Each fault is one change of the package: a sign, an axis, a mask, an off by one, a missing stop_gradient. It is made in a
copy of the clone, and the tests named beside it are run there. Prints a line a fault, and how many were found.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Fault:
    file: str  # below ssl_jax/
    right: str  # occurs once there
    wrong: str
    tests: str  # below tests/


FAULTS = [
    # losses
    Fault("losses/contrastive.py", "return jnp.mean(others - _cosine_of_views(anchors) / temperature)",
          "return jnp.mean(others + _cosine_of_views(anchors) / temperature)", "losses/test_contrastive.py"),
    Fault("losses/contrastive.py", "weight = 2.0 - ops.num_rows(z1, axis_name) * share",
          "weight = 2.0 - len(z1) * share", "losses/test_contrastive.py"),
    Fault("losses/contrastive.py", "alike = lax.stop_gradient(jnp.sum(ops.normalize(z1) * ops.normalize(z2), axis=-1))",
          "alike = (jnp.sum(ops.normalize(z1) * ops.normalize(z2), axis=-1))", "losses/test_contrastive.py"),
    Fault("losses/decorrelation.py", "jnp.sum((1.0 - jnp.diagonal(c)) ** 2) + off_diagonal_weight",
          "jnp.sum((1.0 + jnp.diagonal(c)) ** 2) + off_diagonal_weight", "losses/test_decorrelation.py"),
    Fault("losses/decorrelation.py", "return loss + 2.0 * covariance * _covariance_penalty(z, axis_name)",
          "return loss + covariance * _covariance_penalty(z, axis_name)", "losses/test_decorrelation.py"),
    Fault("ops/collectives.py", "return z - global_mean(jnp.mean(z, axis=0), axis_name)",
          "return z - jnp.mean(z, axis=0)", "losses/test_decorrelation.py"),
    Fault("ops/collectives.py", "rsqrt(global_mean(jnp.mean(z * z, axis=0), axis_name) + eps)",
          "rsqrt(global_mean(jnp.mean(z * z, axis=1), axis_name) + eps)", "losses/test_decorrelation.py"),
    Fault("ops/numerics.py", "where=~jnp.eye(*pairs.shape, dtype=bool)", "where=jnp.ones(pairs.shape, dtype=bool)",
          "losses/test_distillation.py"),
    Fault("losses/distillation.py", "targets = lax.stop_gradient(targets.astype(jnp.float32))\n    return ops.cross_view_entropy",
          "targets = targets.astype(jnp.float32)\n    return ops.cross_view_entropy", "losses/test_distillation.py"),
    Fault("losses/clustering.py", "log_share - ops.global_logsumexp(log_kernel + log_c + log_weight, axis_name)",
          "log_share - nn.logsumexp(log_kernel + log_c + log_weight, axis=0)", "losses/test_clustering.py"),
    Fault("losses/clustering.py", "scores = lax.stop_gradient(scores.astype(jnp.float32))\n    largest",
          "scores = scores.astype(jnp.float32)\n    largest", "losses/test_clustering.py"),
    Fault("losses/masked.py", "jnp.var(target, axis=-1, keepdims=True, ddof=1)",
          "jnp.var(target, axis=-1, keepdims=True)", "losses/test_masked.py"),
    # what methods keep
    Fault("methods/toolkit/memories.py", '"pointer": (queue["pointer"] + count) % size', '"pointer": (queue["pointer"] + count + 1) % size',
          "methods/test_queue.py"),
    Fault("methods/toolkit/memories.py", "ops.normalize(momentum * old + (1.0 - momentum) * rows)",
          "ops.normalize((1.0 - momentum) * old + momentum * rows)", "methods/test_instdisc.py methods/test_queue.py"),
    Fault("methods/byol.py", "losses.negative_cosine(p2, t1", "losses.negative_cosine(p2, t2", "methods/test_byol.py"),
    # the step
    Fault("training/step.py", "return lax.pmean(output.loss, self.axis_name), output", "return output.loss, output", "training/test_step.py"),
    Fault("training/step.py", "state.rng, state.step))\n        batch", "state.rng, state.step + 1))\n        batch", "training/test_step.py"),
    Fault("training/step.py", "lambda n, o: jnp.where(finite, n, o), new, old", "lambda n, o: n, new, old", "training/test_step.py"),
    Fault("training/step.py", "jnp.where(finite, state.step + 1, 0)",
          "jnp.where(finite, state.step, 0)", "methods/test_every_method.py training/test_step.py"),
    Fault("training/step.py", "return (step == 1) | (step % log_every == 0)", "return step % log_every == 0", "training/test_step.py"),
    # optimizers
    Fault("optim.py", "return jax.tree.map(lambda a, n: a + (1.0 - decay) * (n.astype(jnp.float32) - a), average, new)",
          "return jax.tree.map(lambda a, n: a + decay * (n.astype(jnp.float32) - a), average, new)", "test_optim.py methods/test_byol.py"),
    Fault("optim.py", "return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))",
          "return end + (start - end) * 0.5 * (1.0 - jnp.cos(jnp.pi * share))", "test_optim.py methods/test_byol.py"),
    Fault("optim.py", "ratio = trust_coefficient * _norm(p) / (_norm(gradient) + decay * _norm(p) + 1e-8)",
          "ratio = trust_coefficient * _norm(p) / (_norm(gradient) - decay * _norm(p) + 1e-8)", "test_optim.py test_optim_rules.py"),
    Fault("optim.py", "optax.add_decayed_weights(weight_decay, all_but(exempt)),\n        optax.scale_by_learning_rate(lr),",
          "optax.add_decayed_weights(weight_decay),\n        optax.scale_by_learning_rate(lr),", "test_optim.py test_optim_rules.py"),
    Fault("optim.py", "depth + 1 if found[2] else depth - int(found[1])", "depth if found[2] else depth - int(found[1])", "test_optim.py"),
    # checkpoints
    Fault("training/checkpoint.py", "for step in sorted(self._manager.all_steps(), reverse=True):", "for step in sorted(self._manager.all_steps()):",
          "training/test_checkpoint.py"),
    Fault("training/checkpoint.py", "if found != own[name]]", "if found == own[name]]", "training/test_checkpoint.py"),
    Fault("training/checkpoint.py", "            for damaged_step in damaged:\n                self._set_aside(damaged_step)\n", "", "training/test_checkpoint.py"),
    # data
    Fault("data/pipeline.py", "epoch, position = divmod(step, num_images // batch_size)", "epoch, position = divmod(step + 1, num_images // batch_size)",
          "data/test_pipeline.py"),
    Fault("data/pipeline.py", "np.random.default_rng((seed, epoch)).permutation", "np.random.default_rng(seed).permutation", "data/test_pipeline.py"),
    Fault("data/pipeline.py", "counter=[0, view, index, step]", "counter=[0, 0, index, step]", "data/test_pipeline.py"),
    Fault("data/normalization.py", "(images - np.asarray(self.mean, np.float32))", "(images + np.asarray(self.mean, np.float32))", "data/test_augment.py"),
    # evaluation
    Fault("evaluation/knn.py", ".astype(np.float64) / temperature)", ".astype(np.float64) * temperature)", "evaluation/test_knn.py"),
    Fault("evaluation/knn.py", "places = (start + chosen * GROUP", "places = (chosen * GROUP", "evaluation/test_knn.py health/test_neighbors.py"),
    Fault("health/spectrum.py", "-jnp.sum(p * jnp.log(p", "jnp.sum(p * jnp.log(p", "health/test_spectrum.py"),
]  # fmt: skip


def found(fault: Fault, clone: Path) -> bool:
    path = clone / "ssl_jax" / fault.file
    text = path.read_text()
    if text.count(fault.right) != 1:
        raise SystemExit(f"error: {fault.file} has {text.count(fault.right)} times, not once: {fault.right}")
    path.write_text(text.replace(fault.right, fault.wrong))
    try:
        tests = [f"tests/{test}" for test in fault.tests.split()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        ended = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    finally:
        path.write_text(text)
    if ended.returncode not in (0, 1):
        raise SystemExit(f"error: pytest ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return ended.returncode == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only faults whose file has this text")
    chosen = [fault for fault in FAULTS if parser.parse_args().only in fault.file]
    with tempfile.TemporaryDirectory() as directory:
        clone = Path(directory) / "clone"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(directory) / "compiled")
        count = 0
        for fault in chosen:
            seen = found(fault, clone)
            count += seen
            wrong = " ".join(fault.wrong.split()) or "(left out)"
            print(f"{'found ' if seen else 'MISSED'} {fault.file}: {wrong}", flush=True)
    print(f"{count} of {len(chosen)} faults found")


if __name__ == "__main__":
    main()
