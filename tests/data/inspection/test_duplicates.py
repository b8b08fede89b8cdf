import cv2
import numpy as np
import pytest

from ssl_jax import data
from tests.data.inspection.sources import Made, of, scene


def names(groups):
    return sorted(sorted(member.name for member in group.members) for group in groups)


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def test_known_duplicates_are_found_and_no_others():
    images = [(255 * scene(seed)).round().astype(np.uint8) for seed in range(40)]
    images[7] = images[3].copy()
    images[11] = images[3].copy()
    images[20] = jpeg(images[19], 75)
    images[25] = cv2.resize(images[24], (160, 120), interpolation=cv2.INTER_CUBIC)
    images[30] = images[29][..., ::-1].copy()  # another color: another picture
    images[35] = images[34][:, ::-1].copy()  # mirrored
    found = data.inspect(of(images))
    assert names(found.equal) == [["image 11", "image 3", "image 7"]]
    assert names(found.near) == [["image 19", "image 20"], ["image 24", "image 25"]]
    assert [picture.shape for picture in found.equal[0].pictures] == [(60, 80, 3)] * 3


@pytest.mark.parametrize("dtype, scale, offset", [("uint16", 4095, 0), ("int16", 2000, -1000), ("float32", 1.0, 270.0)])
def test_duplicates_of_other_types_and_many_channels(dtype, scale, offset):
    images = [(scale * scene(seed, channels=5) + offset).astype(dtype) for seed in range(30)]
    if dtype == "float32":
        for image in images:  # missing in all of them alike, so that this makes none alike
            image[:12], image[12:20, :, 1] = -9999.0, np.nan
    images[9] = images[2].copy()
    images[17] = images[16].copy()
    images[17][30, 40] = images[16][50, 10]
    found = data.inspect(of(images))
    assert names(found.equal) == [["image 2", "image 9"]]
    assert names(found.near) == [["image 16", "image 17"]]


def test_blank_and_noisy_images_are_not_alike():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 32, 1), dtype=np.uint8) for _ in range(20)]
    blank = [np.full((32, 32, 1), value, np.uint8) for value in range(10)]
    found = data.inspect(of(noise + blank))
    assert found.equal == found.near == ()
    assert found.splits[0].constant == tuple(f"image {index}" for index in range(20, 30))


def test_leakage_and_labels_that_differ():
    pictures = [(255 * scene(seed)).round().astype(np.uint8) for seed in range(12)]
    train = of(pictures[:10], labels=[0] * 5 + [1] * 5, class_names=("cat", "dog"), groups=np.arange(10) // 2)
    test = of(
        [pictures[10], pictures[3], jpeg(pictures[8], 80), pictures[10]],
        labels=[0, 1, 1, 0],
        class_names=("cat", "dog"),
        groups=np.array([9, 1, 8, 9]),
    )
    found = data.inspect(train, held_out={"test": test})
    assert [group.splits for group in found.equal] == [("train", "test"), ("test",)]
    assert [(m.split, m.index, m.label) for m in found.equal[0].members] == [("train", 3, "cat"), ("test", 1, "dog")]
    assert found.equal[0].labels_differ and not found.equal[1].labels_differ
    assert [[(m.split, m.index) for m in group.members] for group in found.near] == [[("train", 8), ("test", 2)]]
    assert found.shared_groups == ("1",)
    leaks = [advice for advice in found.advice if advice.topic == "leakage"]
    assert len(leaks) == 3 and all(leak.warning for leak in leaks)


def test_alike_frames_of_a_fixed_camera_take_no_time_of_all_pairs():
    still = 255 * scene(0, 24, 24, 1)

    def frame(index):
        return np.clip(still + np.random.default_rng(index).normal(0, 0.3, still.shape), 0, 255).astype(np.uint8)

    found = data.inspect(Made(1500, frame))
    assert sum(len(group.members) for group in found.near) > 1400
