"""Emoji, of a small package that the tests make; one slow test reads the real ones."""

import base64
import hashlib
import io
import json
import os
import stat
import tarfile

import cv2
import numpy as np
import pytest

from ssl_jax.data import emoji, opening
from tests.debian import needs_npm

TONES = ("1F3FB", "1F3FF")


def entry(code, name, category, subcategory, *, tones=(), lacking=()):
    """Of emoji.json."""
    has = {f"has_img_{vendor}": vendor not in lacking for vendor in ("google", "twitter")}
    found = {"unified": code, "name": name, "category": category, "subcategory": subcategory}
    variations = {tone: {"image": f"{code}-{tone}.png".lower(), **has} for tone in tones}
    return {**found, "image": f"{code.lower()}.png", **has, "skin_variations": variations}


TABLE = [
    *(entry(f"1F9D1-200D-1F33{k}", f"FARMER {k}", "People & Body", "person-role", tones=TONES) for k in range(4)),
    *(entry(f"1F468-200D-1F33{k}", f"MAN FARMER {k}", "People & Body", "person-role") for k in range(4)),
    *(entry(f"1F41{k}", f"ANIMAL {k}", "Animals & Nature", "animal-mammal") for k in range(5)),
    entry("1F3C3-200D-2640-FE0F", "WOMAN RUNNING", "People & Body", "person-activity"),
    entry("1F426", "BIRD", "Animals & Nature", "animal-bird", lacking=("twitter",)),
    entry("1F3FB", "LIGHT SKIN", "Component", "skin-tone"),
]
IMAGES = 4 * 3 + 4 + 5 + 1


def color(vendor, position):
    return np.array([position, 10 * position % 251, 200 if vendor == "google" else 100], np.uint8)


def make(path, vendor):
    """Writes a package; image k of the table has color(vendor, k)."""
    names = [
        found["image"] for emoji_ in TABLE for found in (emoji_, *emoji_["skin_variations"].values())
    ]  # as the table has them
    files = {"package/emoji.json": json.dumps(TABLE).encode(), "package/img/other.txt": b"not read"}
    for position, name in enumerate(names):
        image = np.full((64, 64, 4), 255, np.uint8)
        image[..., :3] = color(vendor, position)[::-1]  # OpenCV's order
        image[:32, :, 3] = 0  # the upper half is transparent
        files[f"package/img/{vendor}/64/{name}"] = cv2.imencode(".png", image)[1].tobytes()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of two made packages, whose digests stand in for those of npm's."""
    for name, package in emoji.PACKAGES.items():
        made = package._replace(sha512=make(tmp_path / package.file, package.vendor))
        monkeypatch.setitem(emoji.PACKAGES, name, made)
    return tmp_path


def load(name, folder, split="train", **options):
    return opening.load(name, split=split, path=str(folder), **options)


def test_image_k_is_the_same_emoji_of_both_vendors_over_white(folder):
    google, twitter = (load(name, folder, "train+test") for name in emoji.PACKAGES)
    assert len(google) == len(twitter) == IMAGES
    assert google.class_names == twitter.class_names == ("Animals & Nature", "People & Body")
    assert google.labels.tolist() == twitter.labels.tolist()
    for index in range(IMAGES):
        ours, theirs = google[index], twitter[index]
        assert ours.shape == (64, 64, 3) and ours.dtype == np.uint8
        np.testing.assert_array_equal(ours[:32], 255)
        np.testing.assert_array_equal(ours[32:, :, :2], theirs[32:, :, :2])
        assert (ours[40, 3, 2], theirs[40, 3, 2]) == (200, 100)
    assert google.digest() != twitter.digest()


def test_no_group_is_divided_and_both_vendors_and_labelings_have_the_same_division(folder):
    named = {
        (name, split): load(name, folder, split)
        for name in ("emoji_google", "emoji_twitter", "emoji_google/subcategories")
        for split in ("train", "test")
    }
    first = {split: [of.image_name(k) for k in range(len(of))] for (_, split), of in named.items()}
    for (_, split), of in named.items():
        assert [of.image_name(k) for k in range(len(of))] == first[split]
    train, test = (named["emoji_google", split] for split in ("train", "test"))
    assert set(train.groups).isdisjoint(test.groups)
    # One of four farmers in three skin tones and as a man; two of five animals, as 30 % of 5 are 1.5.
    assert len(test) == 4 + 2 and len(train) == IMAGES - 6
    assert named["emoji_google/subcategories", "test"].class_names == (
        "Animals & Nature: animal-mammal",
        "People & Body: person-activity",
        "People & Body: person-role",
    )


@pytest.mark.parametrize(
    "variants",
    [
        ("1F9D1-200D-1F680", "1F468-200D-1F680", "1F469-200D-1F680"),  # astronauts
        ("1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642-FE0F-200D-27A1-FE0F"),  # running, also to the right
        ("1F478", "1F934", "1FAC5"),  # princess, prince, person with a crown
        ("1F46B", "1F46D", "1F9D1-200D-1F91D-200D-1F9D1"),  # holding hands
        ("1F46A", "1F468-200D-1F469-200D-1F466", "1F469-200D-1F467-200D-1F467"),  # families
        ("1F1F3-1F1F4", "1F1E7-1F1FB"),  # Norway's flag
    ],
)
def test_variants_share_a_group(variants):
    assert len({emoji.group(code) for code in variants}) == 1


def test_other_things_do_not_share_a_group():
    codes = ("1F680", "1F9D1-200D-1F680", "1F9D1-200D-1F33E", "1F1F3-1F1F4", "1F1F3-1F1F1", "2764-FE0F", "1F9D1")
    assert len({emoji.group(code) for code in codes}) == len(codes)


def test_slices_channels_and_bytes(folder):
    whole = load("emoji_google", folder)
    part = load("emoji_google", folder, "train[:4]", channels=1)
    assert len(part) == 4 and part[0].shape == (64, 64, 1)
    np.testing.assert_array_equal(part.with_channels(3)[2], whole[2])
    np.testing.assert_array_equal(load("emoji_google", folder, channels=None)[0], whole[0])
    assert part.encoded(1) == whole.encoded(1) and whole.encoded(1).startswith(b"\x89PNG")
    assert part.digest() != whole.digest()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("emoji_google/colors", {}, "has no labels 'colors'; there are categories, subcategories"),
        ("emoji_google", {"split": "valid"}, "Unknown split 'valid'"),
        ("emoji_google", {"channels": 4}, "are in color; use channels 3, or 1 for gray ones, not 4"),
    ],
)
def test_what_is_not_there_is_refused(folder, name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, folder, **options)


def test_another_file_of_that_name_is_refused(folder):
    package = emoji.PACKAGES["emoji_google"]
    (folder / package.file).write_bytes(b"not the package")
    with pytest.raises(ValueError, match=r"is not emoji-datasource-google@16\.0\.0 as npm has it; delete it"):
        load("emoji_google", folder)


def fake_npm(folder, script):
    path = folder / "bin" / "npm"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path.parent)


def test_npm_fetches_a_package_once_into_the_cache(folder, monkeypatch):
    package = emoji.PACKAGES["emoji_google"]
    script = f'echo "$@" >> {folder}/asked\ncp {folder}/{package.file} .'
    monkeypatch.setenv("PATH", f"{fake_npm(folder, script)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for _ in range(2):
        assert len(opening.open_data("emoji_google")) == IMAGES - 6
    assert (folder / "asked").read_text() == "pack emoji-datasource-google@16.0.0 --ignore-scripts\n"
    assert os.listdir(folder / "cache" / "ssl_jax" / "emoji") == [package.file]


def test_without_npm_or_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    by_hand = "'npm pack emoji-datasource-twitter@16.0.0' on another machine, and put the file into"
    with pytest.raises(ValueError, match=f"needs npm, which is not installed.*apt install npm.*{by_hand}"):
        load("emoji_twitter", tmp_path)
    monkeypatch.setenv("PATH", fake_npm(tmp_path, "echo 'npm error code ENOTFOUND' >&2\nexit 1"))
    with pytest.raises(ValueError, match=rf"(?s)failed: npm error code ENOTFOUND.*npm config get registry.*{by_hand}"):
        load("emoji_twitter", tmp_path)
    assert not list(tmp_path.glob("*.tgz"))


@pytest.mark.slow
@needs_npm
def test_the_real_packages():
    pairs = {name: opening.open_pair(name) for name in emoji.PACKAGES}
    for train, test in pairs.values():
        assert (len(train), len(test), len(train.class_names)) == (2663, 1118, 9)
        assert set(train.groups).isdisjoint(test.groups)
        # No drawing is on both sides, even under another name.
        drawn = [{source[k].tobytes() for k in range(len(source))} for source in (train, test)]
        assert drawn[0].isdisjoint(drawn[1])
        assert all(image.shape == (64, 64, 3) for image in (train[0], test[0]))
    (google, _), (twitter, _) = pairs.values()
    assert [google.image_name(k) for k in range(99)] == [twitter.image_name(k) for k in range(99)]
    assert len(opening.open_data("emoji_google/subcategories").class_names) == 98
