import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import optim

PARAMS = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.array([2.0, 0.0])}
GRADS = {"kernel": jnp.array([[0.0, 0.5], [0.0, 0.0]]), "bias": jnp.array([0.25, 0.0])}


@pytest.mark.parametrize("step, expected", [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (200, 0.1)])
def test_warmup_cosine(step, expected):
    schedule = optim.warmup_cosine(1.0, warmup_steps=10, steps=110, final_lr=0.1)
    np.testing.assert_allclose(schedule(step), expected, atol=1e-6)


def test_warmup_may_begin_above_zero_and_bends_nothing_after_it():
    schedule, usual = (optim.warmup_cosine(1.0, warmup_steps=10, steps=110, first_lr=first) for first in (0.2, 0.0))
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0.2, 0.6, 1.0], atol=1e-6)
    np.testing.assert_allclose(schedule(60), usual(60))


def test_a_warmup_from_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"first_lr must be at least 0, got -0.1"):
        optim.create("adamw", lr=0.1, warmup_steps=10, steps=100, first_lr=-0.1)


def test_schedule_without_warmup_begins_at_its_peak_and_a_short_run_ends_in_its_warmup():
    np.testing.assert_allclose(optim.warmup_cosine(1.0, warmup_steps=0, steps=10)(0), 1.0)
    short = optim.warmup_cosine(1.0, warmup_steps=50, steps=20)
    np.testing.assert_allclose(short(20), 0.4)


def test_adamw_decays_weights_only():
    tx = optim.adamw(lambda step: 0.1, weight_decay=0.5)
    zero = {name: jnp.zeros_like(value) for name, value in PARAMS.items()}
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * np.array(PARAMS["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], 0.0, atol=0)


def test_sgd_decays_everything_as_torch_does():
    tx = optim.sgd(lambda step: 0.1, weight_decay=0.5, momentum=0.9)
    params, state = PARAMS, tx.init(PARAMS)
    buffer = np.zeros(2)
    expected = np.array(PARAMS["bias"])
    for _ in range(3):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        buffer = 0.9 * buffer + np.array(GRADS["bias"]) + 0.5 * expected
        expected = expected - 0.1 * buffer
    np.testing.assert_allclose(params["bias"], expected, rtol=1e-6)


def test_sgd_does_not_decay_what_is_exempt():
    tx = optim.sgd(lambda step: 0.1, weight_decay=0.5, exempt=("bias",))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    kernel = np.array(GRADS["kernel"]) + 0.5 * np.array(PARAMS["kernel"])
    np.testing.assert_allclose(updates["kernel"], -0.1 * kernel, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.1 * np.array(GRADS["bias"]), rtol=1e-6)


def run(tx, steps, grads=GRADS, params=PARAMS):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def create(**options):
    return optim.create("sgd", **{"lr": 0.1, "warmup_steps": 0, "steps": 10, "momentum": 0.0, **options})[0]


def test_a_frozen_leaf_does_not_move_nor_gather_momentum():
    tx = create(frozen_steps={"ker": 2}, weight_decay=0.5, momentum=0.9, final_lr=0.1)
    np.testing.assert_array_equal(run(tx, 2)["kernel"], PARAMS["kernel"])
    assert not np.array_equal(run(tx, 2)["bias"], PARAMS["bias"])
    free = run(create(weight_decay=0.5, momentum=0.9, final_lr=0.1), 1)
    np.testing.assert_allclose(run(tx, 3)["kernel"], free["kernel"], rtol=1e-6)  # its third step is like a first


def test_a_constant_rate_for_some_leaves():
    moved = run(create(constant_lr=("bias",)), 10)
    np.testing.assert_allclose(moved["bias"], np.array(PARAMS["bias"]) - 10 * 0.1 * np.array(GRADS["bias"]), rtol=1e-5)
    mean_rate = np.mean([0.05 * (1 + np.cos(np.pi * t / 10)) for t in range(10)])
    expected = np.array(PARAMS["kernel"]) - 10 * mean_rate * np.array(GRADS["kernel"])
    np.testing.assert_allclose(moved["kernel"], expected, rtol=1e-5)


def test_no_momentum_for_some_leaves():
    tx, _ = optim.create("sgd", lr=0.1, final_lr=0.1, warmup_steps=0, steps=10, without_momentum=("bias",))
    moved = run(tx, 3)
    np.testing.assert_allclose(moved["bias"], np.array(PARAMS["bias"]) - 3 * 0.1 * np.array(GRADS["bias"]), rtol=1e-5)
    accumulated = 1 + (1 + 0.9) + (1 + 0.9 + 0.81)
    expected = np.array(PARAMS["kernel"]) - 0.1 * accumulated * np.array(GRADS["kernel"])
    np.testing.assert_allclose(moved["kernel"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"without_momentum=\('bias',\) needs an optimizer with momentum, got 'adamw'"):
        optim.create("adamw", lr=0.1, warmup_steps=0, steps=10, without_momentum=("bias",))


def test_clipping_of_the_whole_gradient_and_of_each_leaf():
    moved = run(create(clip_norm=0.1, final_lr=0.1), 1)
    norm = np.sqrt(0.5**2 + 0.25**2)
    np.testing.assert_allclose(moved["bias"][0], 2.0 - 0.1 * 0.25 * 0.1 / norm, rtol=1e-6)
    moved = run(create(clip_each=0.3, final_lr=0.1), 1)
    np.testing.assert_allclose(moved["bias"][0], 2.0 - 0.1 * 0.25, rtol=1e-6)  # below the limit
    np.testing.assert_allclose(moved["kernel"][0, 1], -0.1 * 0.3, rtol=1e-6)


def test_weight_decay_goes_by_a_cosine_to_its_last_value():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = create(weight_decay=0.2, final_weight_decay=0.6, final_lr=0.1)
    decays = [0.6 - 0.4 * 0.5 * (1 + np.cos(np.pi * t / 10)) for t in range(4)]
    np.testing.assert_allclose(run(tx, 4, zero)["bias"][0], 2.0 * np.prod([1 - 0.1 * d for d in decays]), rtol=1e-5)


def test_layer_decay_scales_a_vits_blocks():
    names = ("patch_embed", "blocks_0", "blocks_1", "norm")
    params = {"backbone": {name: {"w": jnp.ones(1)} for name in names}, "mask_token": jnp.ones(1)}
    moved = run(create(layer_decay=0.5, depth=2, final_lr=0.1), 1, params, params)
    steps = [float(1.0 - moved["backbone"][name]["w"][0]) for name in names]
    np.testing.assert_allclose(steps, [0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1], rtol=1e-5)
    np.testing.assert_allclose(1.0 - moved["mask_token"], 0.1 / 8, rtol=1e-5)


def test_layer_decay_leaves_the_blocks_of_other_networks():
    params = {"backbone": {"blocks_0": {"w": jnp.ones(1)}}, "decoder": {"blocks_0": {"w": jnp.ones(1)}}}
    moved = run(create(layer_decay=0.5, depth=2, final_lr=0.1), 1, params, params)
    np.testing.assert_allclose(1.0 - moved["backbone"]["blocks_0"]["w"], 0.1 / 4, rtol=1e-5)
    np.testing.assert_allclose(1.0 - moved["decoder"]["blocks_0"]["w"], 0.1, rtol=1e-5)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_frozen_blocks_stay_bit_for_bit_and_do_not_count_in_clipping(name):
    before, after = ("patch_embed", "cls_token", "pos_embed", "norm_pre", "blocks_0"), ("blocks_1", "norm")
    leaf = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    params = {
        "backbone": {part: {"kernel": jnp.array(leaf)} for part in (*before, *after)},
        "decoder": {"blocks_0": {"kernel": jnp.array(leaf)}},
        "mask_token": jnp.ones(3),
    }
    options = dict(lr=0.1, final_lr=0.1, warmup_steps=0, steps=10, weight_decay=0.5, clip_norm=0.1, depth=2)
    frozen, _ = optim.create(name, **options, layer_decay=0.5, freeze_blocks=1)
    # Were they seen, these gradients would leave next to nothing of the others when the whole is clipped.
    huge = {**params, "backbone": {**params["backbone"], "blocks_0": {"kernel": jnp.full((2, 3), 1e6)}}}
    moved = run(frozen, 3, huge, params)
    for part in before:
        np.testing.assert_array_equal(moved["backbone"][part]["kernel"], leaf)
    for other in (*(moved["backbone"][part]["kernel"] for part in after), moved["decoder"]["blocks_0"]["kernel"]):
        assert np.abs(other - leaf).min() > 1e-6
    assert np.abs(moved["mask_token"] - 1.0).min() > 1e-6
    same = run(frozen, 3, params, params)
    jax.tree.map(np.testing.assert_array_equal, moved, same)


def test_more_frozen_blocks_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"freeze_blocks=3 is more than the backbone's 2 blocks; only ViTs"):
        create(freeze_blocks=3, depth=2)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0.0},
        {"clip_networks": 0.0},
        {"clip_each": -1.0},
        {"layer_decay": 0.0},
        {"layer_decay": 0.5},  # without a depth
        {"final_lr": -0.1},
        {"schedule": "step"},
        {"milestones": (0.5,)},  # of a cosine
        {"milestones": (0.8, 0.6), "schedule": "multistep"},
        {"milestones": (120,), "schedule": "multistep"},
        {"final_lr": 0.1, "schedule": "multistep"},
        {"exempt": ("norms",)},
    ],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create(**options)


def test_schedules_of_other_numbers():
    np.testing.assert_allclose([optim.cosine(0.9, 1.0, t, 100) for t in (0, 50, 100, 150)], [0.9, 0.95, 1.0, 1.0])
    np.testing.assert_allclose([optim.linear(0.04, 0.07, t, 30) for t in (0, 10, 30, 99)], [0.04, 0.05, 0.07, 0.07])
    np.testing.assert_allclose(optim.linear(0.04, 0.07, 0, 0), 0.07)


def test_ema():
    np.testing.assert_allclose(optim.ema({"a": jnp.ones(2)}, {"a": jnp.zeros(2)}, 0.75)["a"], 0.75)


def test_patch_embedding_has_a_learning_rate_of_its_own():
    params = {"backbone": {"patch_embed": {"proj": {"kernel": jnp.ones((2, 2))}}, "norm": {"scale": jnp.ones(2)}}}
    tx, _ = optim.create("sgd", lr=0.5, warmup_steps=0, steps=10, patch_embed_lr_scale=0.2)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["patch_embed"]["proj"]["kernel"], -0.1)
    np.testing.assert_allclose(updates["backbone"]["norm"]["scale"], -0.5)


def test_some_paths_have_a_share_of_the_learning_rate():
    params = {"clusters": {"kernel": jnp.ones(2)}, "backbone": {"clusters": jnp.ones(2)}}
    tx, _ = optim.create("sgd", lr=0.5, warmup_steps=0, steps=10, scaled_paths=("clusters/",), path_lr_scale=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["clusters"]["kernel"], -0.25)
    np.testing.assert_allclose(updates["backbone"]["clusters"], -0.5)
    for options in ({"scaled_paths": ("clusters/",)}, {"path_lr_scale": 0.5}):
        with pytest.raises(ValueError, match="go together: set both"):
            optim.create("sgd", lr=0.5, warmup_steps=0, steps=10, **options)


def test_stretched_schedule_ends_before_the_bottom():
    _, schedule = optim.create("sgd", lr=1.0, warmup_steps=0, steps=80, schedule_stretch=1.25)
    np.testing.assert_allclose(schedule(50), 0.5, rtol=1e-6)  # half of 100
    np.testing.assert_allclose(schedule(80), 0.5 * (1 + np.cos(np.pi * 0.8)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"schedule_stretch must be at least 1, got 0.8"):
        optim.create("sgd", lr=1.0, warmup_steps=0, steps=80, schedule_stretch=0.8)


@pytest.mark.parametrize("epoch, rate", [(0, 0.2), (5, 0.6), (10, 1.0), (119, 1.0), (120, 0.1), (160, 0.01)])
def test_multistep_has_its_new_rate_from_the_first_step_of_the_epoch_on(epoch, rate):
    """Of 200 epochs of 7 steps; the rate is that of PyTorch's MultiStepLR with milestones 120 and 160."""
    _, schedule = optim.create(
        "sgd", lr=1.0, first_lr=0.2, warmup_steps=70, steps=1400, schedule="multistep", milestones=(0.6, 0.8)
    )
    np.testing.assert_allclose(schedule(7 * epoch), rate, rtol=1e-6)


def test_kinds_go_by_names():
    """A vector that is a token or a gain is none of the biases; a bias beside a scale is a normalization's."""
    names = {
        "conv": {"kernel": 4, "bias": 1},
        "norm": {"scale": 1, "bias": 1},
        "ls1": {"gamma": 1},
        "last": {"kernel": 2, "gain": 1},
        "prototypes": [2, 2],
        "cls_token": 3,
        "mask_token": 1,
        "rel_pos_bias": {"relative_position_bias_table": 2},
        "users": {"own": 1, "matrix": 2},
    }
    found = optim.kinds(jax.tree.map(lambda rank: np.zeros((1,) * rank), names))
    assert found == {
        "conv": {"kernel": "weight", "bias": "bias"},
        "norm": {"scale": "scale", "bias": "offset"},
        "ls1": {"gamma": "scale"},
        "last": {"kernel": "weight", "gain": "gain"},
        "prototypes": ["weight", "weight"],
        "cls_token": "cls_token",
        "mask_token": "mask_token",
        "rel_pos_bias": {"relative_position_bias_table": "weight"},
        "users": {"own": "bias", "matrix": "weight"},
    }


def test_clipping_of_each_network():
    """A leaf at the top, such as a mask token, is the backbone's."""
    grads = {"backbone": {"kernel": jnp.array([3.0])}, "mask_token": jnp.array([4.0]), "head": {"kernel": jnp.ones(1)}}
    clipped, _ = optim.clip_parts(2.5).update(grads, optax.EmptyState())
    np.testing.assert_allclose(clipped["backbone"]["kernel"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(clipped["mask_token"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(clipped["head"]["kernel"], 1.0)
