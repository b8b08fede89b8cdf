"""Packages of emoji from npm: the same things drawn by two vendors, Google (Noto Emoji) and Twitter (Twemoji).

A package is fetched once with npm, which takes its settings (registry, proxy) from the user's own, and stays packed in
the cache. Version and digest of each are fixed here, so all who use them have the same images.

The drawings are not part of ssl_jax, and have licenses of their own. Google's: Apache License 2.0. Twitter's: Creative
Commons Attribution 4.0. The packages and their table of emoji, emoji.json (Cal Henderson): MIT.
"""

import base64
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_jax import paths
from ssl_jax.data import splits

SIDE = 64  # pixels
TEST_SHARE = 0.3  # so that more than 1,000 images are for testing
LABELINGS = ("categories", "subcategories")
LEFT_OUT = "Component"  # a category: five patches of skin color


class Package(NamedTuple):
    """name, version: of npm. sha512: of the packed file, as npm's lock files have it. vendor: its name in the files."""

    name: str
    version: str
    sha512: str
    vendor: str

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}.tgz"


PACKAGES = {
    "emoji_google": Package(
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "google",
    ),
    "emoji_twitter": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "twitter",
    ),
}

# Parts of an emoji that make another variant of it: how it is joined and shown, female, male, facing right.
VARIANT = {"200D", "FE0F", "2640", "2642", "27A1"}
# Man and woman are a person, boy and girl a child.
NEUTRAL = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}
# Groups that are one. First gender variants whose codes do not show it: couples, royalty, the old, the pregnant, Mx
# Claus, dancers. Then what a vendor draws alike, pixel for pixel: families, a woman with and without blond hair, flags.
SAME = {
    **dict.fromkeys(("1F46B", "1F46C", "1F46D"), "1F9D1-1F91D"),
    "1F48F": "1F9D1-2764-1F48B",
    "1F491": "1F9D1-2764",
    **dict.fromkeys(("1F478", "1F934"), "1FAC5"),
    **dict.fromkeys(("1F474", "1F475"), "1F9D3"),
    **dict.fromkeys(("1F930", "1FAC3"), "1FAC4"),
    **dict.fromkeys(("1F385", "1F936"), "1F9D1-1F384"),
    "1F483": "1F57A",
    "1F46A": "1F9D1-1F9D2",
    "1F471": "1F9D1",
    "1F1ED-1F1F2": "1F1E6-1F1FA",  # Australia
    **dict.fromkeys(("1F1E7-1F1FB", "1F1F8-1F1EF"), "1F1F3-1F1F4"),  # Norway
    **dict.fromkeys(("1F1E8-1F1F5", "1F1F2-1F1EB"), "1F1EB-1F1F7"),  # France
    "1F1E8-1F1F6": "1F1F8-1F1E6",  # Saudi Arabia
    "1F1E9-1F1EC": "1F1EE-1F1F4",  # British Indian Ocean Territory
    "1F1EA-1F1E6": "1F1EA-1F1F8",  # Spain
    "1F1FA-1F1F2": "1F1FA-1F1F8",  # United States
}


class Drawing(NamedTuple):
    """One image of both vendors. file: its name in the packages. group: what all variants of its emoji share."""

    file: str
    name: str
    category: str
    subcategory: str
    group: str


class Read(NamedTuple):
    """What a package holds. images: the PNG file of each drawing."""

    drawings: tuple[Drawing, ...]
    images: tuple[bytes, ...]


def group(code: str) -> str:
    """What an emoji shares with its variants by gender and direction. code: its code points, "1F3C3-200D-2640"."""
    kept = (NEUTRAL.get(part, part) for part in code.split("-") if part not in VARIANT)
    found = "-".join(dict.fromkeys(kept))  # two men and a boy are drawn as a man and two boys are
    return SAME.get(found, found)


def table(text: str | bytes) -> tuple[Drawing, ...]:
    """The drawings that a package's emoji.json lists, with all skin tones, that both vendors have."""
    found: list[Drawing] = []
    for emoji in json.loads(text):
        if emoji["category"] == LEFT_OUT:
            continue
        for entry in (emoji, *emoji.get("skin_variations", {}).values()):
            if all(entry[f"has_img_{package.vendor}"] for package in PACKAGES.values()):
                kind = (emoji["category"], emoji["subcategory"], group(emoji["unified"]))
                found.append(Drawing(entry["image"], emoji["name"], *kind))
    return tuple(found)


def divide(drawings: Sequence[Drawing]) -> dict[str, list[int]]:
    """{"train": positions, "test": positions}: three tenths of the groups of each sub-category are for testing.

    It depends on the table alone, which is the same for both vendors and both labelings.
    """
    kinds = [(drawing.category, drawing.subcategory) for drawing in drawings]
    groups = [drawing.group for drawing in drawings]
    train, test = splits.divide([drawing.file for drawing in drawings], kinds, groups, share=TEST_SHARE)
    return {"train": train, "test": test}


def read(name: str, folder: str | None = None) -> Read:
    """The drawings of "emoji_google" or "emoji_twitter", fetched if they are not there yet.

    Args:
      folder: where the packed file is or shall be; None: below ssl_jax's cache.
    Raises: ValueError if it cannot be fetched, or is not the file that it should be; the message says what to do.
    """
    package = PACKAGES[name]
    path = (Path(folder).expanduser() if folder else paths.caches() / "emoji") / package.file
    if not path.exists():
        _fetch(package, path)
    return _read(package, path)


def _fetch(package: Package, path: Path) -> None:
    """Has npm put the package at `path`, whole or not at all."""
    wanted = f"{package.name}@{package.version}"
    command = f"npm pack {wanted}"
    by_hand = f"or run {command!r} on another machine, and put the file into {path.parent}"
    print(f"fetching {wanted} by npm, once", file=sys.stderr, flush=True)  # it may take a minute
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # Of a package no script is to run.
        words = ["npm", "pack", wanted, "--ignore-scripts"]
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise ValueError(
                f"{package.name} is not in {path.parent}, and fetching it (once) needs npm, which is not installed. "
                f"Install it (on Debian, as root: apt install npm), {by_hand}"
            ) from error
        packed = Path(folder) / path.name
        if done.returncode or not packed.exists():
            said = [line for line in done.stderr.splitlines() if line.startswith("npm error")] or [done.stderr.strip()]
            raise ValueError(
                f"{command!r} failed: {' '.join(said[:3])}\n"
                f"Check the network and npm's settings (npm config get registry), {by_hand}"
            )
        os.replace(packed, path)


@functools.lru_cache(maxsize=len(PACKAGES))  # a training opens its test images, too
def _read(package: Package, path: Path) -> Read:
    data = path.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != package.sha512:
        raise ValueError(f"{path} is not {package.name}@{package.version} as npm has it; delete it, and start again")
    top, inside = "package/", f"package/img/{package.vendor}/{SIDE}/"
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.name.startswith(inside) or member.name == f"{top}emoji.json":
                file = archive.extractfile(member)
                assert file is not None  # as a file is none of the kinds of members that have no content
                files[member.name] = file.read()
    drawings = table(files[f"{top}emoji.json"])
    return Read(drawings, tuple(files[inside + drawing.file] for drawing in drawings))
