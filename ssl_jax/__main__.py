"""One command for all programs: ssl_jax COMMAND ARGUMENTS, which is python -m ssl_jax COMMAND ARGUMENTS."""

import gc
import importlib
import os
import sys

import ssl_jax

# Name -> (module whose `main` it is, what it does). Only the one that is asked for is imported.
COMMANDS = {
    "inspect": ("ssl_jax.cli.inspect", "looks at a data set, and says what it means for a config"),
    "pack": ("ssl_jax.cli.pack", "packs a large data set into shards that open at once"),
    "bench-input": ("ssl_jax.cli.bench_input", "measures how fast images are read for training, and what limits it"),
    "train": ("ssl_jax.cli.train", "pre-trains a backbone on images without labels"),
    "evaluate": ("ssl_jax.cli.evaluate", "measures what the features of a backbone are worth"),
    "embed": ("ssl_jax.cli.embed", "writes the features of images to a file"),
    "retrieve": ("ssl_jax.cli.retrieve", "finds the images most similar to given ones"),
    "finetune": ("ssl_jax.cli.finetune", "trains a backbone and a linear layer on labelled images"),
    "segment": ("ssl_jax.cli.segment", "trains a head on a backbone that names the class of each pixel"),
    "predict": ("ssl_jax.cli.predict", "predicts the classes of images, their labels, measurements, or masks"),
    "export": ("ssl_jax.cli.export", "writes a backbone for other programs"),
    "report": ("ssl_jax.cli.report", "writes the page of a run, or of several compared"),
    "study": ("ssl_jax.cli.study", "measures what pre-training is worth in labels, in steps, across domains"),
    "plan": ("ssl_jax.cli.plan", "says what a run needs and costs, before it is run"),
}

# For GLIBC_TUNABLES: memory comes from the heap alone, which is never given back, in large pages.
KEPT_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"


def main(argv: list[str] | None = None) -> None:
    if argv is None:
        keep_memory()
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print("usage: ssl_jax COMMAND ARGUMENTS; ssl_jax COMMAND --help lists the arguments\n")
        print("\n".join(f"  {name:11} {purpose}" for name, (_, purpose) in COMMANDS.items()))
    elif command == "--version":
        print(ssl_jax.__version__)
    elif command in COMMANDS:
        # Instead of after each 700 new objects. Imports and JAX make 400,000 that stay, and looking for garbage among
        # them took a tenth of the time to the first step. So at most some 100 MB of garbage wait.
        gc.set_threshold(500_000)
        importlib.import_module(COMMANDS[command][0]).main(arguments)
    else:
        from ssl_jax.config import nearest  # only here, as `keep_memory` imports what stands above twice

        sys.exit(f"error: no command {command!r}; {nearest(command, list(COMMANDS))}")


def keep_memory() -> None:
    """Starts this program again with `KEPT_MEMORY`, unless the environment says how memory is got.

    XLA's CPU backend asks for its memory anew in each step, and the system clears each page of it first. With memory
    that is kept, in large pages, a step takes some 0.8 of the time. glibc reads the variable when a program starts.
    """
    chosen = {"GLIBC_TUNABLES", "LD_PRELOAD"} & os.environ.keys()
    if sys.platform == "linux" and not chosen and "jax" not in sys.modules:
        os.environ["GLIBC_TUNABLES"] = KEPT_MEMORY
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
