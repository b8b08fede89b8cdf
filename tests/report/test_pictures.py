import base64
import re

import cv2
import numpy as np
import pytest

from ssl_jax.report import charts, images, scatter


def decode(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_small_image_is_kept_to_the_pixel():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(images.data_uri(image)), image)


@pytest.mark.parametrize("shape, shown", [((224, 112, 3), (96, 48)), ((300, 2, 1), (96, 1)), ((28, 28, 5), (28, 28))])
def test_images_of_any_size_and_channels_are_shown(shape, shown):
    image = np.full(shape, 77, np.uint8)
    assert decode(images.data_uri(image)).shape == (*shown, 3)
    assert (decode(images.data_uri(image)) == 77).all()


def embeddings(angles, labels, class_names=("even", "odd")):
    """Images on a circle, image i all of gray level i; their similarity is known from the angles."""
    radians = np.deg2rad(np.array(angles, np.float32))
    count = len(angles)
    return {
        "images": np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 1)),
        "features": np.stack([np.cos(radians), np.sin(radians)], axis=1) * np.arange(1, count + 1)[:, None],
        "labels": np.array(labels, np.int32),
        "class_names": np.array(class_names),
    }


def test_neighbors_are_the_nearest_by_angle_best_first():
    even, odd = images.neighbor_gallery(embeddings([0, 50, 10, 100, -20], [0, 1, 0, 1, 0]))
    levels = [int(decode(neighbor.image)[0, 0, 0]) for neighbor in even.neighbors]
    assert levels == [2, 4, 1, 3]  # 10, 20, 50, 100 degrees away
    assert [neighbor.agrees for neighbor in even.neighbors] == [True, True, False, False]
    assert [neighbor.name for neighbor in odd.neighbors] == ["even", "odd", "even", "even"]  # 40, 50, 50, 70 degrees
    assert (even.name, odd.name) == ("even", "odd")


def test_unlabeled_neighbors_neither_agree_nor_differ():
    gallery = images.neighbor_gallery(embeddings([0, 50, 10], [-1, -1, -1], class_names=()))
    assert len(gallery) == 3
    assert {neighbor.agrees for query in gallery for neighbor in query.neighbors} == {None}


def test_many_classes_are_shown_by_ten_spread_over_them():
    gallery = images.neighbor_gallery(embeddings(range(30), range(30), [f"{i}" for i in range(30)]))
    assert [query.name for query in gallery] == ["0", "3", "6", "10", "13", "16", "19", "23", "26", "29"]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_agreement_counts_nearest_labeled_neighbors(block):
    # Of 0, 10, 50, 55 degrees each has the other of its pair nearest; the unlabeled image at 5 is not asked.
    assert images.agreement(embeddings([0, 10, 5, 50, 55], [0, 0, -1, 0, 1]), block=block) == 50.0
    assert images.agreement(embeddings([0, 10], [0, -1])) is None


def test_map_keeps_clusters_together_and_all_images():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.int32), 40)
    features = (np.eye(3)[labels] + 0.05 * rng.normal(size=(120, 3))).astype(np.float32)
    data = {"features": features, "labels": labels, "class_names": np.array(["a", "b"])}
    groups = scatter.layout(data)
    assert [group.name for group in groups] == ["a", "b", "class 2"]
    assert [len(group.points) for group in groups] == [40, 40, 40]
    points = np.array([group.points for group in groups])
    assert (points >= scatter.MARGIN - 1).all()
    assert (points <= np.array([scatter.WIDTH, scatter.HEIGHT]) - scatter.MARGIN + 1).all()
    centers = points.mean(axis=1)
    distance = np.linalg.norm(points[:, :, None] - centers, axis=-1)  # [class, image, center]
    assert (distance.argmin(axis=2) == np.arange(3)[:, None]).all()
    for group in groups:
        assert group.label in group.points


def test_map_draws_the_most_frequent_classes_and_the_rest_as_others():
    labels = np.concatenate([np.repeat(np.arange(10), 3), np.arange(10, 15), [-1]]).astype(np.int32)
    features = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    groups = scatter.layout({"features": features, "labels": labels, "class_names": np.array([], np.str_)})
    assert (groups[0].name, groups[0].style, len(groups[0].points)) == ("other classes and unlabeled", None, 6)
    assert [(group.name, group.style) for group in groups[1:]] == [(f"class {i}", i) for i in range(10)]


@pytest.mark.parametrize("shape", [(28, 28, 1), (64, 32, 3), (16, 64, 5)])
def test_thumbnail_of_a_point_is_its_image(shape):
    rng = np.random.default_rng(0)
    count = images.SHEET_COLUMNS + 10
    levels = rng.integers(40, 256, count).astype(np.uint8)
    shown = np.broadcast_to(levels[:, None, None, None], (count, *shape))
    labels = rng.integers(-1, 2, count).astype(np.int32)
    data = {"features": rng.normal(size=(count, 4)), "labels": labels, "class_names": np.array(["a", "b"])}
    groups = scatter.layout(data)
    data_uri = images.sheet(shown)
    raw = np.frombuffer(base64.b64decode(data_uri.removeprefix("data:image/webp;base64,")), np.uint8)
    sheet = cv2.imdecode(raw, cv2.IMREAD_COLOR)
    side = images.SHEET_SIDE
    assert sheet.shape == (2 * side, images.SHEET_COLUMNS * side, 3)
    made = scatter.thumbnails(groups)
    places = [(x, y, row) for group in groups for (x, y), row in zip(group.points, group.images, strict=True)]
    assert sorted(row for *_, row in places) == list(range(count))
    for group in groups:
        assert set(labels[group.images]) == {-1 if group.style is None else group.style}
    for thumbnail, (x, y, row) in zip(made, places, strict=True):
        center = sheet[side * thumbnail.row + side // 2, side * thumbnail.column + side // 2]
        assert np.abs(center.astype(int) - levels[row]).max() <= 6  # WebP loses a little
        assert (thumbnail.left, thumbnail.top) == (round(x / 10, 1), round(y / 7.6, 1))
        assert thumbnail.away == ("r" if x > 500 else "") + ("t" if y < 380 else "")


def test_sheet_keeps_colors_and_the_aspect():
    tall = np.zeros((1, 64, 16, 3), np.uint8)
    tall[:] = (250, 100, 20)
    raw = np.frombuffer(base64.b64decode(images.sheet(tall).split(",")[1]), np.uint8)
    tile = cv2.imdecode(raw, cv2.IMREAD_COLOR)[:32, :32, ::-1].astype(int)
    assert np.abs(tile[:, 14:18] - (250, 100, 20)).max() < 30  # WebP halves the resolution of color
    assert tile[:, [0, 8, 23, 31]].max() < 30


@pytest.mark.parametrize("count", [0, 2, 9])
def test_too_few_images_have_no_map(count):
    data = {"features": np.zeros((count, 3), np.float32), "labels": np.zeros(count, np.int32), "class_names": []}
    assert scatter.layout(data) == []


@pytest.mark.parametrize("distinct", [1, 2, 19])
@pytest.mark.parametrize("dim", [1, 3])
def test_embeddings_that_collapsed_have_a_map(distinct, dim):
    features = np.ones((40, dim), np.float32)
    features[: distinct - 1, 0] += np.arange(1, distinct)
    data = {"features": features, "labels": np.zeros(40, np.int32), "class_names": np.array(["a"])}
    assert np.isfinite(scatter.layout(data)[0].points).all()


def test_curve_breaks_where_a_value_is_not_finite():
    steps = np.arange(1, 21)
    whole = np.linspace(1.0, 2.0, 20)
    broken = np.where(steps == 10, np.nan, whole)
    moves = [longest_path(charts.curve(steps, values)).count("M") for values in (whole, broken)]
    assert moves == [1, 2]


def longest_path(svg):
    return max(re.findall(r' d="([^"]*)"', svg), key=len)


def test_curve_names_its_level_and_takes_the_page_s_colors():
    svg = charts.curve(np.array([1, 2]), np.array([3.0, 4.0]), level=(6.24, "chance < level"))
    assert "chance &lt; level" in svg
    assert "var(--pretrained)" in svg
    assert not re.search(r"#0000\d\d", svg)


@pytest.mark.parametrize("values", [[1.0], [np.nan, np.nan], [5.0, 5.0]])
def test_curve_of_hardly_anything_is_drawn(values):
    assert charts.curve(np.arange(len(values)), np.array(values)).startswith("<svg")
