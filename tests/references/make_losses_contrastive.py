"""What lightly's losses give for fixed arrays, for tests/losses/test_contrastive.py and test_clustering.py.

    python tests/references/make_losses_contrastive.py        (in an environment with torch and lightly)

Writes losses_contrastive.npz: the arrays of `inputs` by name; for each loss "NAME/value" and "NAME/gradient", with
respect to the first of its arrays; "sinkhorn", "smog/groups"; "versions". Computed in float64.
"""

from pathlib import Path

import numpy as np


def inputs():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 4))
    return {
        "z1": z + 0.5 * rng.normal(size=z.shape),
        "z2": z + 0.5 * rng.normal(size=z.shape),
        "z3": z + 0.5 * rng.normal(size=z.shape),
        "queue": rng.normal(size=(9, 4)),
        "groups": rng.normal(size=(3, 4)),
        "high": rng.uniform(-1, 1, (2, 6, 5)),  # views, batch, prototypes
        "low": rng.uniform(-1, 1, (3, 6, 5)),
        "queue_scores": rng.uniform(-1, 1, (2, 4, 5)),
    }


def main():
    import lightly
    import torch
    from lightly import loss
    from lightly.loss.swav_loss import sinkhorn
    from lightly.models.modules import SMoGPrototypes

    torch.set_default_dtype(torch.float64)
    arrays = inputs()
    saved = {**arrays, "versions": f"torch {torch.__version__}, lightly {lightly.__version__}"}
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def save(name, x, function):
        x = x.clone().requires_grad_()
        value = function(x).sum()  # SwaV's has one entry
        value.backward()
        saved[f"{name}/value"], saved[f"{name}/gradient"] = value.detach().numpy(), x.grad.numpy()

    save("nt_xent", t["z1"], lambda z: loss.NTXentLoss(temperature=0.2)(z, t["z2"]))
    save("dcl", t["z1"], lambda z: loss.DCLLoss(temperature=0.2)(z, t["z2"]))
    save("dclw", t["z1"], lambda z: loss.DCLWLoss(temperature=0.2, sigma=0.4)(z, t["z2"]))

    moco = loss.NTXentLoss(temperature=0.2, memory_bank_size=(9, 4))
    moco.memory_bank.bank = torch.nn.functional.normalize(t["queue"])
    save("info_nce", t["z1"], lambda z: moco(z, t["z2"]))

    swav = loss.SwaVLoss(temperature=0.2, sinkhorn_epsilon=0.1, sinkhorn_iterations=4)
    save("swav", t["high"], lambda x: swav(list(x), list(t["low"])))
    save("swav_queue", t["high"], lambda x: swav(list(x), list(t["low"]), list(t["queue_scores"])))
    saved["sinkhorn"] = sinkhorn(t["high"][0], iterations=4, epsilon=0.1).numpy()

    prototypes = SMoGPrototypes(t["groups"], beta=0.9)
    # z3 through the groups only: it is the projection, z1 the prediction, z2 the teacher's.
    groups = prototypes.get_updated_group_features(t["z3"])
    saved["smog/groups"] = groups.numpy()
    save(
        "smog",
        t["z3"],
        lambda z: torch.nn.functional.cross_entropy(
            prototypes(t["z1"], prototypes.get_updated_group_features(z), temperature=0.2),
            prototypes.assign_groups(t["z2"]),
        ),
    )

    np.savez_compressed(Path(__file__).with_name("losses_contrastive.npz"), **saved)
    print(saved["versions"])


if __name__ == "__main__":
    main()
