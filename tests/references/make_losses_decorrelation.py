"""What lightly's losses give for fixed arrays, value and gradient, for test_decorrelation.py and test_spread.py.

    python tests/references/make_losses_decorrelation.py        (in an environment with torch and lightly)

Writes losses_decorrelation.npz: the arrays of `inputs` by name; for each loss "NAME/value", and "NAME/gradient" with
respect to the first array that the test gives it; "versions". Computed in float64.
"""

from pathlib import Path

import numpy as np


def inputs():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(10, 4))
    maps = rng.normal(size=(6, 4, 5))  # [batch, positions, dim]
    positions = 10.0 * rng.normal(size=(6, 4, 2))
    further = np.arange(1, 5)[:, None]  # the later a position, the further its neighbor: lightly orders pairs by that
    return {
        "z1": base + 0.5 * rng.normal(size=base.shape),
        "z2": base + 0.5 * rng.normal(size=base.shape),
        "views": base + 0.5 * rng.normal(size=(3, *base.shape)),
        "online": base[:, None] + 0.5 * rng.normal(size=(10, 3, 4)),
        "momentum": base[:, None] + 0.5 * rng.normal(size=(10, 3, 4)),
        "covariance": np.cov(rng.normal(size=(4, 10))) / 10,
        "directions": rng.normal(size=(4, 7)),
        "maps1": maps,
        "maps2": maps + 0.05 * further,
        "positions1": positions,
        "positions2": positions + 0.1 * further,
    }


def main():
    import lightly
    import torch
    from lightly import loss
    from lightly.loss.emp_ssl_loss import invariance_loss, tcr_loss
    from lightly.loss.hypersphere_loss import HypersphereLoss
    from lightly.loss.lejepa_loss import SIGReg
    from torch.nn.functional import normalize

    torch.set_default_dtype(torch.float64)
    arrays = inputs()
    saved = {**arrays, "versions": f"torch {torch.__version__}, lightly {lightly.__version__}"}
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def save(name, x, function):
        x = t[x].clone().requires_grad_()
        value = function(x).squeeze()
        value.backward()
        saved[f"{name}/value"], saved[f"{name}/gradient"] = value.detach().numpy(), x.grad.numpy()

    save("barlow_twins", "z1", lambda x: loss.BarlowTwinsLoss(lambda_param=0.1)(x, t["z2"]))
    save("vicreg", "z1", lambda x: loss.VICRegLoss(5.0, 7.0, 3.0)(x, t["z2"]))
    save("w_mse", "z1", lambda x: loss.WMSELoss(embedding_dim=4, w_size=10)(torch.cat([x, t["z2"]])))
    save("hypersphere", "z1", lambda x: HypersphereLoss(t=2.0, lam=0.7, alpha=1.5)(x, t["z2"]))

    vicregl = loss.VICRegLLoss(5.0, 7.0, 3.0)
    save("vicregl_global", "views", lambda x: vicregl._global_loss([(x[0], x), (x[1], x)], [(x[2], x)]))
    square = lambda maps: maps.reshape(6, 2, 2, -1)  # noqa: E731
    b, *grids = (square(t[name]) for name in ("maps2", "positions1", "positions2"))
    save(
        "vicregl_local",
        "maps1",
        lambda x: vicregl._local_l2_loss(square(x), b) + vicregl._local_location_loss(square(x), b, *grids),
    )

    tico = loss.TiCoLoss()
    tico.C = t["covariance"]
    save("tico", "z1", lambda x: tico(x, t["z2"]))
    saved["tico/covariance"] = tico.C.numpy()
    # Its embeddings are normalized before.
    save("mmcr", "online", lambda x: loss.MMCRLoss(0.3)(normalize(x, dim=-1), normalize(t["momentum"], dim=-1)))
    save("frossl", "views", lambda x: loss.FroSSLLoss()(list(x)))
    # EMPSSLLoss adds the coding rate, with the sign that makes it small.
    emp_ssl = lambda z: 200.0 * invariance_loss(z) - tcr_loss(z, eps=0.2)  # noqa: E731
    save("emp_ssl", "views", lambda x: emp_ssl(normalize(x, dim=-1)))
    sigreg = SIGReg()
    sigreg._generate_unit_vectors = lambda *_: normalize(t["directions"], dim=0)
    save("sigreg", "z1", sigreg)

    np.savez_compressed(Path(__file__).with_name("losses_decorrelation.npz"), **saved)
    print(saved["versions"])


if __name__ == "__main__":
    main()
