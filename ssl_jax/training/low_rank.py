"""Low-rank adaptation (LoRA): a method of which only thin matrices move the backbone."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax.config.errors import ConfigError
from ssl_jax.methods.contract import Batch, Method, Output, Params, State, Variables
from ssl_jax.models.heads import torch_init
from ssl_jax.ops.shards import gather_all

TERMS, FROZEN = "low_rank", "frozen"  # names in the parameters and in the model state
ADAPTED = ("attn", "mlp")  # parts of a network whose kernels are adapted


@dataclasses.dataclass(frozen=True)
class LowRank:
    """`method`, whose backbone has the kernels W + alpha / rank * A B in place of W.

    A [inputs, rank] and B [rank, outputs] are trained, and so are the method's other networks. The backbone's own
    parameters stay as they are, in the model state. B begins at 0, so the first features are those of W. Adapted are
    the kernels of attention and of MLPs; the three of queries, keys and values, which are one array here, share an A.
    The method sees whole kernels, and `backbone_variables` gives them: nothing is left to merge.

    The optimizer keeps moments of A and B alone. The gradient of each whole kernel is still computed in passing.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    method: Method
    rank: int
    alpha: float

    def __getattr__(self, name: str) -> Any:
        """All that does not concern the backbone's parameters is the method's own."""
        if name == "method":  # not set yet
            raise AttributeError(name)
        return getattr(self.method, name)

    @property
    def banks(self) -> Mapping[str, int]:
        return self.method.banks

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        return self.begin(rng, *self.method.init(rng, images))

    def begin(self, rng: Key[Array, ""], params: Params, state: State) -> tuple[Params, State]:
        """(params, state) before the first step, of those of the method. Raises: ConfigError if nothing is adapted."""
        backbone = params.get("backbone", {})
        terms = _first(rng, backbone, self.rank)
        if not terms:
            raise ConfigError(
                f"lora_rank={self.rank} adapts kernels of attention and MLPs, and this backbone has none; use 0, or a "
                "ViT, Swin or ConvNeXt"
            )
        rest = {name: part for name, part in params.items() if name != "backbone"}
        return {**rest, TERMS: terms}, {**state, FROZEN: {"backbone": backbone}}

    def merged(self, params: Params, state: State) -> tuple[Params, State]:
        """(params, state) of the method."""
        frozen, terms = gather_all(state[FROZEN]["backbone"]), gather_all(params[TERMS])
        rest = {name: part for name, part in params.items() if name != TERMS}
        backbone = _added(frozen, terms, self.alpha / self.rank)
        return {**rest, "backbone": backbone}, {name: part for name, part in state.items() if name != FROZEN}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        output = self.method.loss(*self.merged(params, state), batch, rng, axis_name=axis_name)
        return output._replace(state={**output.state, FROZEN: state[FROZEN]})

    def constrain(self, params: Params) -> Params:
        return self.method.constrain(params)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**self.method.update(*self.merged(params, state), step), FROZEN: state[FROZEN]}

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        prepared, z = self.method.prepare(*self.merged(params, state), batch, rng, axis_name=axis_name)
        return {**prepared, FROZEN: state[FROZEN]}, z

    def prepared(self, params: Params, state: State) -> State:
        return {**self.method.prepared(*self.merged(params, state)), FROZEN: state[FROZEN]}

    def backbone_variables(self, params: Params, state: State) -> Variables:
        return self.method.backbone_variables(*self.merged(params, state))

    def further_variables(self, params: Params, state: State) -> Mapping[str, Variables]:
        return self.method.further_variables(*self.merged(params, state))

    def features(
        self, params: Params, state: State, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch dim"]:
        return cast(Array, self.method.backbone.apply(self.backbone_variables(params, state), images))

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        return self.method.pictures(*self.merged(params, state), batch, rng)


def _first(rng: Key[Array, ""], params: Any, rank: int, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """A and B of each adapted kernel, in its place."""
    found: dict[str, Any] = {}
    for name, part in params.items():
        below = (*path, name)
        if isinstance(part, Mapping):
            found |= {name: terms} if (terms := _first(rng, part, rank, below)) else {}
        elif name == "kernel" and part.ndim == 2 and not set(ADAPTED).isdisjoint(path):
            inputs, outputs = part.shape
            # The key depends on the name alone, so it is the same whatever else is adapted.
            key = jax.random.fold_in(rng, zlib.crc32("/".join(below).encode()))
            found[name] = {"lora_a": torch_init(key, (inputs, rank)), "lora_b": jnp.zeros((rank, outputs))}
    return found


def _added(params: Any, terms: Any, scale: float) -> Any:
    if "lora_a" in terms:
        return params + scale * jnp.matmul(terms["lora_a"], terms["lora_b"], precision="highest")
    return {name: _added(part, terms[name], scale) if name in terms else part for name, part in params.items()}
