"""Where a run is planned for: a slice of TPUs, or machines of GPUs."""

from ssl_jax.planning.chips import Slice, parse_slice
from ssl_jax.planning.gpus import GPUS, Gpus, parse_gpus

Place = Slice | Gpus


def parse_place(text: str) -> Place:
    """The slice or the GPUs that `parse_slice` or `parse_gpus` take. Raises: ValueError if there are no such."""
    try:
        return parse_gpus(text) or parse_slice(text)
    except ValueError as error:
        if "no chip" in str(error) or "no accelerator" in str(error):
            raise ValueError(f"{error}; or COUNTxGPU, such as 8xH100, with one of {', '.join(GPUS)}") from error
        raise
