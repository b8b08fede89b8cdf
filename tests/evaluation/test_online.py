import numpy as np

from ssl_jax.evaluation.online import choose_images


def test_without_groups_queries_and_bank_are_drawn_from_all_images():
    queries, bank = choose_images(1000, 20, 80, 5, None)
    order = np.random.default_rng(5).permutation(1000)
    np.testing.assert_array_equal(queries, order[:20])
    np.testing.assert_array_equal(bank, order[20:100])
    assert [len(part) for part in choose_images(50, 20, 80, 5, None)] == [10, 40]


def test_no_group_is_both_asked_for_and_looked_up():
    groups = np.random.default_rng(0).integers(0, 37, 1000).astype(str)
    chosen = set()
    for seed in range(5):
        queries, bank = choose_images(1000, 120, 400, seed, groups)
        assert len(queries) == 120 and 400 - 60 < len(bank) <= 400
        assert not {*groups[queries]} & {*groups[bank]}
        chosen.add(tuple(queries))
    assert len(chosen) == 5
    assert [len(part) for part in choose_images(10, 20, 80, 0, np.zeros(10))] == [2, 0]
