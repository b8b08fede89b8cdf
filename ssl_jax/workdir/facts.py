"""run.json: what a run was given and where it ran."""

import functools
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import dist, paths
from ssl_jax.data.sources import Source
from ssl_jax.paths import AnyPath
from ssl_jax.workdir.files import load, write

NAME = "run.json"
COMMITTED = "commit_success.txt"  # Orbax writes it last, in a store, where it cannot rename a directory
GIVEN = ("backbone", "method", "optimizer", "augment")  # what a script may give in place of a section of the config
PACKAGES = ("ssl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless")


def of_source(source: Source, *, given: bool) -> dict[str, Any]:
    """What run.json says of the images that a run is trained on.

    name, kind, digest: of the source; its kind is its class. given: whether a program gave the source. Then the config
    does not say which images they are.
    """
    return {"name": source.name, "kind": type(source).__name__, "digest": source.digest(), "given": given}


def trained_on(workdir: AnyPath) -> dict[str, Any]:
    """`of_source` of the run in `workdir`; {} if its run.json has none, as in earlier versions."""
    return read(workdir).get("source", {})


def read(workdir: AnyPath) -> dict[str, Any]:
    """run.json; {} if there is none."""
    path = workdir / NAME
    return load(path, lambda text: dict(json.loads(text))) if path.exists() else {}


def has_checkpoints(workdir: AnyPath) -> bool:
    return bool(complete_steps(workdir / "checkpoints"))


def complete_steps(checkpoints: AnyPath) -> list[int]:
    """The steps of the complete checkpoints in a directory, sorted."""
    steps = sorted(int(name) for name in paths.names(checkpoints) if name.isdigit())
    if not paths.is_remote(checkpoints):
        return steps
    return [step for step in steps if (checkpoints / str(step) / COMMITTED).exists()]


def check_given(workdir: AnyPath, of_run: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks the backbone, method, optimizer and augmentation that a script gave.

    `of_run`: {what: {"name", "given"}} of this start.
    Raises: ConfigError if a script gave the run in `workdir` another one when it began, or gives one only now.
    """
    if not has_checkpoints(workdir):
        return
    begun = read(workdir)
    for what in GIVEN:
        then, now = begun.get(what), of_run[what]
        if then is None or then == now or not (then["given"] or now["given"]):
            continue  # a run of an earlier version, or a part from the config: the check of config.json compares those
        if then["given"]:
            remedy = f"give the same again, pretrain(..., {what}={then['name']})"
        else:
            remedy = f"leave {what} out, as it was then"
        raise configs.ConfigError(
            f"the run in {workdir} began with the {what} {then['name']}, and this start has "
            f"{now['name']}{'' if now['given'] else ', which the config names'}; {remedy}, or use another workdir"
        )


def check_begin(workdir: AnyPath, digest: str) -> None:
    """Raises: ConfigError if the run in `workdir` has checkpoints and, by its run.json, began with other weights."""
    begun = read(workdir).get("begin") if has_checkpoints(workdir) else None
    if begun is None or begun["digest"] == digest:
        return
    remedy = "give the same again, pretrain(..., begin=...)" if begun["given"] else "restore that file"
    raise configs.ConfigError(
        f"the run in {workdir} began with the weights {begun['name']} (digest {begun['digest']}), and these have the "
        f"digest {digest}; {remedy}, or use another workdir"
    )


def check_constants(workdir: AnyPath, digests: Mapping[str, str]) -> None:
    """Checks what the method is given that no step changes, by its digests: {name: digest}.

    Raises: ConfigError if the run in `workdir` has checkpoints and, by its run.json, began with others.
    """
    if not has_checkpoints(workdir):
        return
    begun = read(workdir).get("constants", {})
    for name in sorted(begun.keys() | digests.keys()):
        then, now = begun.get(name), digests.get(name)
        if then != now:
            raise configs.ConfigError(
                f"the run in {workdir} began with another {name}: its digest was {then}, and is {now} now; restore the "
                f"{name} as it was, or use another workdir"
            )


def check_images(workdir: AnyPath, *, num_images: int, images_digest: str) -> None:
    """Raises: ConfigError if the run in `workdir` has checkpoints and, by its run.json, began on other images."""
    if not has_checkpoints(workdir):
        return
    begun = read(workdir)
    source = begun.get("source", {})
    digest = source.get("digest", begun.get("images_digest", images_digest))
    if (then := begun.get("num_images", num_images)) != num_images:
        differs = f"{num_images:,} images, {then:,} when the run began"
    elif digest != images_digest:
        differs = f"{num_images:,} images as when the run began, but not the same ones, or in another order"
    else:
        return
    if source.get("given"):
        raise configs.ConfigError(
            f"the run in {workdir} began on images that a program gave, {source['kind']} "
            f"{source['name']!r}, but these differ: {differs}\ngive the same again, pretrain(config, "
            "images, workdir=...), or use another workdir"
        )
    raise configs.ConfigError(
        f"the data set, and so the order of its images, has changed since the run in {workdir} began: "
        f"{differs}\nrestore the data set as it was, or begin anew in another --workdir"
    )


def check_measured(workdir: AnyPath, found: Iterable[Source], data: str) -> None:
    """Checks that the run was trained on images of its config.

    found: the images of the config, whole or their training part; none is taken after one that the run was trained on.
    data: what the config calls them.
    Raises: ConfigError if run.json names the images that the run was trained on, and none of `found` has them.
    """
    trained = trained_on(workdir)
    if not trained or any(trained["digest"] == source.digest() for source in found):
        return
    if trained["given"]:
        raise configs.ConfigError(
            f"the run in {workdir} was trained on images that a program gave, {trained['kind']} "
            f"{trained['name']!r}, and its config does not name them; give the images to measure on: "
            "--data DATA, or evaluate(workdir, train, test)"
        )
    raise configs.ConfigError(
        f"the images of {trained['name']} have changed since the run in {workdir} was trained on them; restore them, "
        f"or measure on what is there now: --data {data}"
    )


def check_processes(config: ConfigDict, workdir: AnyPath) -> None:
    """Raises: ProcessError if the processes of this run differ in what they run."""
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    settings = {f"config.{key}": value for key, value in configs.flatten(config).items()}
    where = {"devices of a process": devices, "commit": commit(), "workdir": str(workdir)}
    dist.check_same(where | versions() | settings)


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def describe(workdir: AnyPath, *, skipped: Mapping[str, str], **facts: Any) -> None:
    """Writes run.json: packages, commit, machine, the images that any process skipped, and the given facts.

    All processes of a run must call it.
    """
    device = jax.devices()[0]
    everywhere = dist.gather_facts(dict(skipped))
    text = json.dumps(
        {
            "versions": versions(),
            "commit": commit(),
            "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
            "processes": jax.process_count(),
            "skipped": {name: reason for found in everywhere for name, reason in found.items()},
            **facts,
        },
        indent=2,
    )
    if dist.is_first():
        write(workdir / NAME, text)


@functools.cache  # the search for each takes some milliseconds, and a start asks three times
def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # ssl_jax itself, run from a clone


def commit() -> str | None:
    """The commit of the clone that the code runs from, with a + if files differ; or of git's archive; else None."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parents[1]),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        archived = (Path(__file__).parents[1] / "commit.txt").read_text().strip()  # filled in by git archive
        return archived[:12] if archived.isalnum() else None
