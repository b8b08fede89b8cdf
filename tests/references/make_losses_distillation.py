"""What lightly's losses give for fixed arrays, value and gradient, for tests/losses/test_distillation.py.

    python tests/references/make_losses_distillation.py        (in an environment with torch and lightly)

Writes losses_distillation.npz: the arrays of `inputs` by name; for each loss "NAME/value", and "NAME/gradient" with
respect to the student's (the anchors', z's); "versions". Computed in float64.
"""

from pathlib import Path

import numpy as np


def inputs():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 6)) < 0.4
    mask[1] = False  # an image that is not masked
    return {
        "prediction": rng.normal(size=(5, 4)),
        "target": rng.normal(size=(5, 4)),
        "student": rng.normal(size=(4, 3, 5)),  # views: two global ones, two local ones
        "teacher": 0.2 * rng.normal(size=(2, 3, 5)),
        "center": 0.1 * rng.normal(size=5),
        "patches": rng.normal(size=(3, 6, 5)),
        "teacher_patches": 0.2 * rng.normal(size=(3, 6, 5)),
        "mask": mask,
        "anchors": rng.normal(size=(3 * 4, 6)),
        "targets": rng.normal(size=(4, 6)),
        "prototypes": rng.normal(size=(7, 6)),
    }


def main():
    import lightly
    import torch
    from lightly import loss

    torch.set_default_dtype(torch.float64)
    arrays = inputs()
    saved = {**arrays, "versions": f"torch {torch.__version__}, lightly {lightly.__version__}"}
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def save(name, x, function):
        x = x.clone().requires_grad_()
        value = function(x)
        value.backward()
        saved[f"{name}/value"], saved[f"{name}/gradient"] = value.detach().numpy(), x.grad.numpy()

    save("negative_cosine", t["prediction"], lambda x: loss.NegativeCosineSimilarity()(x, t["target"]))
    save("koleo", t["prediction"], loss.KoLeoLoss())

    dino = loss.DINOLoss(output_dim=5, teacher_temp=0.05, student_temp=0.2)
    dino.center.copy_(t["center"])
    save("dino", t["student"], lambda x: dino(list(t["teacher"]), list(x), teacher_temp=0.05))

    ibot = loss.IBOTPatchLoss(output_dim=5, teacher_temp=0.05, student_temp=0.2)
    ibot.center.center.copy_(t["center"])
    mask = t["mask"]
    save("ibot", t["patches"], lambda x: ibot(t["teacher_patches"][mask], x[mask], mask.reshape(3, 2, 3)))

    for name, function in [("msn", loss.MSNLoss()), ("pmsn", loss.PMSNLoss())]:
        save(name, t["anchors"], lambda x, function=function: function(x, t["targets"], t["prototypes"]))

    np.savez_compressed(Path(__file__).with_name("losses_distillation.npz"), **saved)
    print(saved["versions"])


if __name__ == "__main__":
    main()
