"""Work in threads."""

import threading

import pytest

from ssl_jax.data.threads import one_ahead


def test_each_item_is_made_while_the_one_before_is_used():
    begun = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(begun):
            event.set()
            yield number

    for number in one_ahead(items()):
        assert all(event.wait(10) for event in begun[: number + 2])
        assert not any(event.wait(0.05) for event in begun[number + 2 :])  # no more than one is held


def test_an_error_comes_where_the_item_was_asked_for():
    def items():
        yield 1
        raise ValueError("no second one")

    found = one_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(found)
    assert list(one_ahead([])) == []
