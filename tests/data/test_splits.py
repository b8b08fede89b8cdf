import hashlib

import numpy as np
import pytest

from ssl_jax.data import shards, splits


def test_a_fifth_of_each_class_is_chosen_by_the_hash_of_its_names():
    names = [f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(10)]
    train, test = splits.divide(names, [name[:3] for name in names])
    first = [
        sorted(of, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:2] for of in (names[:10], names[10:])
    ]
    assert [names[k] for k in test] == sorted(first[0] + first[1])
    assert sorted(train + test) == list(range(20))


def test_images_that_are_added_move_few_of_the_others():
    names = [f"{k}.png" for k in range(1000)]
    _, test = splits.divide(names, [0] * 1000)
    _, more = splits.divide([*names, "new.png"], [0] * 1001)
    assert len(set(test) ^ set(more)) <= 2


def test_groups_are_whole_and_counted_to_their_most_frequent_class():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 40)
    groups = np.repeat(np.arange(40), sizes)
    classes = np.where(rng.random(len(groups)) < 0.8, groups % 2, 1 - groups % 2)
    train, test = splits.divide(list(map(str, range(len(groups)))), classes.tolist(), groups.tolist())
    assert sorted(train + test) == list(range(len(groups)))
    assert not set(groups[train]) & set(groups[test])
    most = {g: np.bincount(classes[groups == g], minlength=2) for g in range(40)}
    for kind in (0, 1):
        sure = [g for g, counts in most.items() if counts[kind] > counts[1 - kind]]
        ties = sum(counts[0] == counts[1] for counts in most.values())
        chosen = len(set(sure) & set(groups[test]))
        assert 0.2 * len(sure) - 1 - 0.2 * ties <= chosen <= 0.2 * (len(sure) + ties) + 1


def test_of_two_one_is_on_each_side_and_a_lone_one_is_for_training():
    for share in (0.01, 0.2, 0.99):
        train, test = splits.divide(["a", "b", "c"], ["x", "x", "y"], share=share)
        assert len(test) == 1 and 2 in train and test[0] < 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["a", "b"], ["x", "y"]), "2 image cannot be divided for evaluation; it takes two of a class"),
        ((["a", "b"], ["x", "x"], ["p", "p"]), "1 group cannot be divided"),
    ],
)
def test_what_cannot_be_divided_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        splits.divide(*arguments)


def test_natural_order():
    assert sorted(["B10", "B8A", "B2", "B8", "b1"], key=splits.natural) == ["B2", "B8", "B8A", "B10", "b1"]
    assert splits.class_names(["10", "9", "", "9"]) == ("9", "10")
    assert splits.class_names(["one", ""]) == ()


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{001,002}.tar", ["a-001.tar", "a-002.tar"]),
        ("{a,b}-{0..1}*.tar", ["a-000.tar", "a-001.tar", "a-002.tar", "b-1.tar"]),
        ("a-*[12].tar", ["a-001.tar", "a-002.tar"]),
    ],
)
def test_files_by_braces_and_wildcards(tmp_path, pattern, names):
    for name in ("a-000.tar", "a-001.tar", "a-002.tar", "b-0.tar", "b-1.tar"):
        (tmp_path / name).touch()
    if "{a,b}" in pattern:
        with pytest.raises(FileNotFoundError, match="a-1"):
            shards.expand(f"{tmp_path}/{pattern}")
        return
    assert [file.name for file in shards.expand(f"{tmp_path}/{pattern}")] == names


def test_the_names_of_files_say_their_split(tmp_path):
    files = [
        tmp_path / name for name in ("train-0.tar", "x_test_0.tar", "latest-1.tar", "val/0.tar", "test/train-1.tar")
    ]
    found = shards.by_split(files)
    assert {split: {file.name for file in of} for split, of in found.items()} == {
        "train": {"train-0.tar", "latest-1.tar", "train-1.tar"},
        "test": {"x_test_0.tar"},
        "val": {"0.tar"},
    }
    assert list(shards.by_split(files[1:2])) == ["train"]
