import dataclasses

import numpy as np
import pytest

from ssl_jax.evaluation.cache import Key, cached, checksum

KEY = Key("0ab1", {"name": "resnet8"}, "fashion_mnist", "test", 3, {"size": [28, 28], "mean": [0.5]})
ARRAYS = {"features": np.arange(12, dtype=np.float16).reshape(3, 4), "labels": np.array([2, 0, -1], np.int32)}


def never():
    raise AssertionError("computed again")


def assert_same(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_features_are_made_once(tmp_path):
    assert_same(cached(tmp_path / "cache", KEY, lambda: ARRAYS))
    assert_same(cached(tmp_path / "cache", KEY, never))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_an_array_in_another_order_of_memory_comes_back_as_it_was(tmp_path):
    turned = {"features": np.asfortranarray(ARRAYS["features"]), "labels": ARRAYS["labels"]}
    cached(tmp_path, KEY, lambda: turned)
    assert_same(cached(tmp_path, KEY, never))


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "0ab2"},
        {"architecture": {"name": "resnet18"}},
        {"data": "cifar10"},
        {"split": "train"},
        {"images": 4},
        {"preprocessing": {"size": [28, 28], "mean": [0.4]}},
    ],
)
def test_whatever_features_depend_on_makes_others(tmp_path, change):
    cached(tmp_path, KEY, lambda: ARRAYS)
    other = {"features": np.zeros(1)}
    found = cached(tmp_path, dataclasses.replace(KEY, **change), lambda: other)
    assert found.keys() == other.keys()
    assert_same(cached(tmp_path, KEY, never))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),  # one bit of a label
        lambda content: b"\xff" * 8 + content[8:],  # a header longer than the file
    ],
)
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path, damage):
    cached(tmp_path, KEY, lambda: ARRAYS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match="is damaged .*computed again"):
        assert_same(cached(tmp_path, KEY, lambda: ARRAYS))
    assert_same(cached(tmp_path, KEY, never))


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="dtype"):
        cached(tmp_path, KEY, lambda: {"features": np.array(["words"])})
    assert not list(tmp_path.iterdir())


def test_a_checksum_sees_every_change_and_nothing_else():
    tree = {"params": {"a": np.ones((2, 3), np.float32), "b": np.zeros(())}}
    expected = checksum(tree)
    assert checksum({"params": {"b": np.zeros(()), "a": np.ones((3, 2), np.float32).T}}) == expected
    changed = np.ones((2, 3), np.float32)
    changed[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    others = [
        {"a": changed, "b": np.zeros(())},
        {"a": np.ones((3, 2), np.float32), "b": np.zeros(())},
        {"a": np.ones((2, 3), np.float32), "c": np.zeros(())},
        {"a": np.ones((2, 3), np.float32), "b": np.zeros((), np.int64)},
        {"a": np.ones((2, 3), np.float32), "b": -np.zeros(())},
    ]
    assert len({expected, *(checksum({"params": other}) for other in others)}) == 6
