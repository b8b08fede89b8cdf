"""For methods whose loss is of a covariance over the batch (Barlow Twins, VICReg and others)."""


def covariance_bytes(dim: int, times: int = 1) -> int:
    """Bytes of `times` covariances [dim, dim] and each dimension's mean and variance, forward and backward.

    For `Method.traffic`.
    """
    return 4 * times * dim * (dim + 8)
