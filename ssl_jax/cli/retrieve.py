"""ssl_jax retrieve --workdir DIR --data GALLERY --query IMAGE_OR_DATA --out page.html
ssl_jax retrieve --backbone FILE [--model NAME] --data GALLERY --query IMAGE_OR_DATA --k 20 --out page.html,ranks.csv

For each query image, ranks the images of the gallery by the cosine similarity of frozen features.
"""

import sys
from typing import Any

from ssl_jax import config as configs
from ssl_jax import report
from ssl_jax.cli import backbones, showing
from ssl_jax.cli.flags import read_flags, start_devices, user_errors, written_files
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation import neighbors, ranks
from ssl_jax.evaluation.evaluation import image_size_of

K = 10


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax retrieve: the images of a gallery that are most similar to given ones",
            strings={
                **backbones.FLAGS,
                "data": f"the gallery: {backbones.DATA} (required)",
                "query": "one image file, or what --data takes: the images to find others for (required)",
                "split": "split of the gallery; default: train",
                "query_split": "split of the queries; default: train",
                "k": f"how many images to find for each query; default: {K}",
                "image_size": backbones.IMAGE_SIZE,
                "windows": backbones.WINDOWS,
                **showing.FLAGS,
                "out": "files to write, separated by commas: .html a page, .csv or .json the ranks (required)",
            },
        )
        backbones.require(flags, "data", "query", "out")
        written = written_files("out", flags.out, (".html", ".csv", ".json"))
        k = backbones.number(flags, "k")
        start_devices(flags.platform)
        backbone = backbones.load(flags)
        shown = showing.options(flags, backbone.facts["channels"])
        how = backbones.how_to_read(backbone)
        gallery = configs.call(opening.open_data, {"split": flags.split or "train", **how}, "--data", flags.data)
        backbone = backbones.for_images(backbone, gallery)
        queries = configs.call(
            opening.open_images, {"split": flags.query_split or "train", **how}, "--query", flags.query
        )
        backbones.check_channels(backbone, queries)
        windows = flags.windows or "mean"
        size = backbones.image_size(flags.image_size, backbone)
        options: dict[str, Any] = {"k": K if k is None else k, "image_size": size, "windows": windows}
        found = configs.call(neighbors.retrieve, options, "ssl_jax retrieve", backbone, gallery, queries)
        for path in written:
            if path.suffix == ".html":
                shown |= {"image_size": image_size_of(backbone, size), "file": flags.backbone or flags.workdir}
                made = ranks.shown(found, backbone, gallery, queries, windows=windows, **shown)
                report.write_retrieval(made, path)
            else:
                ranks.save(found, path)
            print(f"{path}: {found.indices.shape[1]:,} neighbors of {len(found.queries):,} queries")
        if inside := int(found.in_gallery.sum()):
            print(f"in the gallery, too: {inside:,} of the queries; no image is its own neighbor")
        if found.scores:
            print(
                f"in percent, over {found.scores.queries:,} queries with a label: precision at {options['k']} "
                f"{found.scores.precision[options['k']]:.1f}, mean average precision "
                f"{found.scores.mean_average_precision:.1f}"
            )
        backbones.print_left_out(queries, found.queries, flags.windows)
