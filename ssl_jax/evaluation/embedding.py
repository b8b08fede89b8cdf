"""Embeddings: features of images together with the images' names, for other programs."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.features import BATCH, Extracted, check_windows, extract, over_windows
from ssl_jax.paths import AnyPath
from ssl_jax.weights import Backbone
from ssl_jax.workdir import files

FORMATS = (".npz", ".parquet")


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Features of the images that could be decoded.

    names: as `Source.image_name` gives them.
    labels: indices into class_names, -1 for an image without a label; None if the source has no labels.
    """

    names: list[str]
    features: Float[np.ndarray, "images dim"]
    labels: Int[np.ndarray, " images"] | None
    class_names: tuple[str, ...]

    def save(self, path: AnyPath) -> None:
        """Writes the file whole or not at all.

        .npz: "names", "embeddings" float32 [images, dim]; if there are labels, also "labels" and "class_names".
        .parquet: columns name, embedding (a list of float32 of fixed length); if there are labels, also label, the name
        of the class.

        Raises: as `check_format`.
        """
        check_format(path)
        (self._save_parquet if path.suffix == ".parquet" else self._save_npz)(path)

    def _save_npz(self, path: AnyPath) -> None:
        arrays = {"names": np.array(self.names, np.str_), "embeddings": self.features}
        if self.labels is not None:
            arrays |= {"labels": self.labels, "class_names": np.array(self.class_names, np.str_)}
        files.write_arrays(path, arrays)

    def _save_parquet(self, path: AnyPath) -> None:
        import pyarrow
        import pyarrow.parquet

        values = pyarrow.array(self.features.ravel())
        columns = {
            "name": pyarrow.array(self.names),
            "embedding": pyarrow.FixedSizeListArray.from_arrays(values, self.features.shape[1]),
        }
        if self.labels is not None:
            columns["label"] = pyarrow.array([self.class_names[k] if k >= 0 else None for k in self.labels])
        with files.replacing(path) as file:
            pyarrow.parquet.write_table(pyarrow.table(columns), file)


def check_format(path: AnyPath, formats: tuple[str, str] = FORMATS) -> None:
    """Raises: ValueError if the file's name does not end in one of `formats`, or the format's library is missing."""
    if path.suffix not in formats:
        raise ValueError(f"the file's name must end in {' or '.join(formats)}, got {path.name!r}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            raise ValueError(
                f"{path.name} needs pyarrow: pip install 'ssl_jax[parquet]', or use {formats[0]}"
            ) from error


def embed(
    backbone: Backbone, source: Source, *, image_size: tuple[int, int] | None = None, windows: str = "mean"
) -> tuple[list[str], Float[np.ndarray, "images dim"]]:
    """(names, features) of the images that can be decoded, in order; others are left out, with a warning.

    Args:
      image_size: (height, width) in pixels that images are read at, see `pipeline.eval_batches`; the backbone's own if
        not given.
      windows: of images that are windows of larger ones (see `ssl_jax.data.windows`), "mean": the mean over the windows
        of each larger image; "all": each window.
    Returns: names as `Source.image_name` has them; features as `Backbone.features` gives them, float32.
    Raises: ImagesError if no image can be decoded; ValueError for images that do not fit, an unknown image size or
      normalization.
    """
    found = embeddings(backbone, source, image_size=image_size, windows=windows)
    return found.names, found.features


def embeddings(
    backbone: Backbone, source: Source, *, image_size: tuple[int, int] | None = None, windows: str = "mean"
) -> Embeddings:
    """As `embed`, but with labels."""
    names, found = named_features(backbone, source, image_size=image_size, windows=windows)
    return Embeddings(names, found.features, found.labels if source.class_names else None, source.class_names)


def named_features(
    backbone: Backbone, source: Source, *, image_size: tuple[int, int] | None = None, windows: str = "mean"
) -> tuple[list[str], Extracted]:
    """As `embed`, but with labels and the images' indices in the source."""
    return named_rows(
        lambda images: backbone.features(images, batch_size=BATCH),
        Uniform(source, backbone.normalization),
        image_size_of(backbone, image_size),
        windows,
    )


def named_rows(
    function: Callable[[np.ndarray], Float[np.ndarray, "batch dim"]],
    source: Source,
    image_size: tuple[int, int],
    windows: str,
) -> tuple[list[str], Extracted]:
    """(names of the images that can be decoded, what `function` gives for them), see `embed`."""
    check_windows(windows)
    # A few images need no full batch. Powers of two, so that few programs are compiled.
    batch_size = min(BATCH, 1 << (len(source) - 1).bit_length())
    found = over_windows(source, extract(function, _read(source, image_size), batch_size), windows)
    name = source.image_name if windows == "all" else source.whole_name
    return [name(int(index)) for index in found.index], found


def _read(source: Source, image_size: tuple[int, int]) -> Iterator[Mapping[str, np.ndarray]]:
    read = pipeline.eval_batches(source, image_size=image_size, batch_size=BATCH)
    with tqdm(desc=f"embedding {source.name}", total=len(source), unit=" images", delay=1) as progress:
        for batch in read:
            yield batch
            progress.update(len(batch["index"]))
