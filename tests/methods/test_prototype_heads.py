import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.methods.toolkit import kmeans, prototype_heads, transport

RNG = np.random.default_rng(0)
MEMORY = RNG.normal(size=(2, 40, 5)).astype(np.float32)


def cluster(head, old):
    rng = jax.random.fold_in(jax.random.key(3), head)
    return kmeans.kmeans(rng, jnp.asarray(MEMORY)[head % 2], len(old), iterations=3)


def relabel(head, rows):
    return transport.balanced_labels(jnp.asarray(MEMORY)[head % 2], rows, iterations=20)


@pytest.mark.parametrize("one", [cluster, relabel])
def test_heads_in_one_loop_are_what_each_is_by_itself(one):
    heads = [RNG.normal(size=(4, 5)).astype(np.float32) for _ in range(3)]
    found = jax.jit(lambda heads: prototype_heads.of_heads(one, heads))(heads)
    expected = jax.jit(lambda heads: [one(number, rows) for number, rows in enumerate(heads)])(heads)
    # A loop may round sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_a_loop_has_the_program_of_one_head_and_heads_that_differ_are_computed_one_by_one():
    def size(*counts):
        heads = [jnp.zeros((count, 5)) for count in counts]
        return jax.jit(lambda heads: prototype_heads.of_heads(relabel, heads)).lower(heads).as_text().count("\n")

    assert size(4, 4, 4) < 1.5 * size(4) < size(4, 3, 2)
    found = prototype_heads.of_heads(lambda head, rows: (rows + head,), [jnp.ones((2, 1)), jnp.ones((3, 1))])
    assert [rows.tolist() for (rows,) in found] == [[[1.0]] * 2, [[2.0]] * 3]
