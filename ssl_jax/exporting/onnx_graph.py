"""A JAX function as an ONNX graph, operation by operation.

Covers what networks compute of images: convolutions, matrix products, norms, attention, pooling. A function with loops
or with gathers of its input is refused by the name of the operation.
"""

# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export as jax_export
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

OPSET = 18  # of ONNX 1.13, 2022: the first whose reductions all take their axes as an input
IR_VERSION = 9  # of the same release
MAX_BYTES = 2**31 - 1  # protobuf holds no more
INPUT, OUTPUT = "images", "features"


class NoTranslation(ValueError):
    """ONNX cannot hold the function. The message says why."""


Var = Any  # a variable of a jaxpr, or a literal
Dims = Sequence[Any]  # of numbers, and of the batch's size, which is only a name


def to_onnx(function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> bytes:
    """A model with the input "images", float32 [batch, *shape] of any batch size, and the output "features".

    Args:
      function: images [batch, *shape] -> features [batch, dim]. What it has besides becomes constants of the graph.
    Raises: NoTranslation for an operation that has no translation, and for constants of more than 2 GiB.
    """
    (batch,) = jax_export.symbolic_shape("batch")
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *shape), jnp.float32))
    graph = Graph(batch)
    graph.names[closed.jaxpr.invars[0]] = INPUT
    graph.run(closed.jaxpr, closed.consts)
    graph.nodes.append(helper.make_node("Identity", [graph.name(closed.jaxpr.outvars[0])], [OUTPUT]))
    found = [size if isinstance(size, int) else str(size) for size in closed.out_avals[0].shape]
    made = helper.make_graph(
        graph.nodes,
        "backbone",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, found)],
        graph.constants,
    )
    size = sum(len(constant.raw_data) for constant in graph.constants)
    if size > MAX_BYTES:
        raise NoTranslation(f"its weights take {size / 2**30:.1f} GiB, and a file of ONNX holds 2 GiB at most")
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="ssl_jax"
    )
    return model.SerializeToString()


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """Features by onnxruntime. images: float32 [batch, height, width, channels] in 0..1."""
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {INPUT: images})
    return features


class Graph:
    """What is translated so far.

    names: variable -> name of its tensor. values: variable -> array, for what does not depend on the images. These are
    computed here and become constants of the graph only where an operation on the images needs them.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.names: dict[Var, str] = {}
        self.values: dict[Var, Any] = {}

    def run(self, jaxpr: core.Jaxpr, constants: Sequence[Any]) -> None:
        for var, value in zip(jaxpr.constvars, constants, strict=True):
            self.set_value(var, value)
        for equation in jaxpr.eqns:
            self.translate(equation)

    def translate(self, equation: core.JaxprEqn) -> None:
        kind, params = equation.primitive.name, equation.params
        if (inner := params.get("jaxpr", params.get("call_jaxpr"))) is not None and kind in CALLS:
            self.call(equation, inner, equation.invars)
        elif kind == "platform_index":  # what is computed where no platform is named, is not made for any
            self.set_value(equation.outvars[0], len(params["platforms"]) - 1)
        elif kind == "cond" and self.known(equation.invars[0]):
            which, *arguments = equation.invars
            self.call(equation, params["branches"][int(self.value(which))], arguments)
        elif all(map(self.known, equation.invars)) and not any(self.depends(shape_of(x)) for x in equation.outvars):
            primitive: Any = equation.primitive
            values: Any = primitive.bind(*map(self.value, equation.invars), **params)
            for var, value in zip(equation.outvars, values if primitive.multiple_results else [values], strict=True):
                self.set_value(var, value)
        elif kind in OPERATIONS:
            found = OPERATIONS[kind](self, equation)
            for var, name in zip(equation.outvars, [found] if isinstance(found, str) else found, strict=True):
                self.set_name(var, name)
        else:
            raise NoTranslation(f"the network has an operation without a translation to ONNX: {kind}")

    def call(self, equation: core.JaxprEqn, inner: Any, arguments: Sequence[Any]) -> None:
        """What a function computes that is called, in its place."""
        jaxpr, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        for outer, own in zip(arguments, jaxpr.invars, strict=True):
            self.alias(own, outer)
        self.run(jaxpr, constants)
        for outer, own in zip(equation.outvars, jaxpr.outvars, strict=True):
            self.alias(outer, own)

    def alias(self, var: Var, of: Var) -> None:
        if self.known(of):
            self.set_value(var, self.value(of))
        else:
            self.set_name(var, self.names[of])

    # A function that is called twice has the same variables twice, once known perhaps and once not.
    def set_value(self, var: Var, value: Any) -> None:
        self.values[var] = value
        self.names.pop(var, None)

    def set_name(self, var: Var, name: str) -> None:
        self.names[var] = name
        self.values.pop(var, None)

    def known(self, var: Var) -> bool:
        return isinstance(var, core.Literal) or var in self.values

    def value(self, var: Var) -> Any:
        return np.asarray(var.val, dtype_of(var)) if isinstance(var, core.Literal) else self.values[var]

    def name(self, var: Var) -> str:
        """Of the tensor of a variable."""
        if not self.known(var):
            return self.names[var]
        if isinstance(var, core.Literal):
            return self.constant(self.value(var))
        if var not in self.names:
            self.names[var] = self.constant(self.value(var))
        return self.names[var]

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value)), name))
        return name

    def integers(self, values: Dims) -> str:
        return self.constant(np.asarray(values, np.int64))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation with one result. Returns the name of the result."""
        return self.node_of_many(kind, 1, *inputs, **attributes)[0]

    def node_of_many(self, kind: str, results: int, *inputs: str, **attributes: Any) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(results)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def depends(self, dims: Dims) -> bool:
        """Whether one of these sizes depends on the batch's."""
        return not all(isinstance(size, int) for size in dims)

    def reshape(self, x: str, dims: Dims) -> str:
        unknown = [size for size in dims if not isinstance(size, int)]
        if len(unknown) > 1:
            raise NoTranslation(f"the network has a tensor [{', '.join(map(str, dims))}], which ONNX cannot reshape")
        return self.node("Reshape", x, self.integers([size if isinstance(size, int) else -1 for size in dims]))

    def expand(self, x: str, dims: Dims) -> str:
        """x, of as many dimensions, each of this size or 1, repeated to these sizes."""
        if not self.depends(dims):
            return self.node("Expand", x, self.integers(dims))
        batch = self.node("Shape", INPUT, start=0, end=1)
        sizes = [self.integers([size]) if isinstance(size, int) else self.times(batch, size) for size in dims]
        return self.node("Expand", x, self.node("Concat", *sizes, axis=0))

    def times(self, batch: str, size: Any) -> str:
        factor = size // self.batch
        if not isinstance(factor, int) or factor * self.batch != size:
            raise NoTranslation(f"the network has a tensor of size {size}, which is no multiple of the batch")
        return batch if factor == 1 else self.node("Mul", batch, self.integers([factor]))

    def transpose(self, x: str, order: Sequence[int]) -> str:
        """x with its axes in this order."""
        return x if [*order] == [*range(len(order))] else self.node("Transpose", x, perm=[*order])


# Functions that are called: jitted, with derivatives of their own, or with activations that are computed again.
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")

Operation = Callable[[Graph, core.JaxprEqn], str | list[str]]


def shape_of(var: Any) -> tuple[Any, ...]:
    return var.aval.shape


def dtype_of(var: Any) -> Any:
    return var.aval.dtype


def _same(kind: str) -> Operation:
    """ONNX has the operation, too."""
    return lambda graph, equation: graph.node(kind, *map(graph.name, equation.invars))


def _one(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.constant(np.ones((), dtype_of(equation.invars[0])))


def _rsqrt(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.node("Reciprocal", graph.node("Sqrt", graph.name(equation.invars[0])))


def _erfc(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.node("Sub", _one(graph, equation), graph.node("Erf", graph.name(equation.invars[0])))


def _log1p(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.node("Log", graph.node("Add", _one(graph, equation), graph.name(equation.invars[0])))


def _square(graph: Graph, equation: core.JaxprEqn) -> str:
    x = graph.name(equation.invars[0])
    return graph.node("Mul", x, x)


def _integer_pow(graph: Graph, equation: core.JaxprEqn) -> str:
    exponent = np.asarray(equation.params["y"], dtype_of(equation.invars[0]))
    return graph.node("Pow", graph.name(equation.invars[0]), graph.constant(exponent))


def _unequal(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.node("Not", graph.node("Equal", *map(graph.name, equation.invars)))


def _clamp(graph: Graph, equation: core.JaxprEqn) -> str:
    low, x, high = map(graph.name, equation.invars)
    return graph.node("Min", graph.node("Max", x, low), high)


def _select(graph: Graph, equation: core.JaxprEqn) -> str:
    which, *cases = equation.invars
    if dtype_of(which) != jnp.bool_ or len(cases) != 2:
        raise NoTranslation("the network has a choice among several cases, which has no translation to ONNX")
    return graph.node("Where", graph.name(which), graph.name(cases[1]), graph.name(cases[0]))


def _convert(graph: Graph, equation: core.JaxprEqn) -> str:
    dtype = equation.params["new_dtype"]
    if dtype == jnp.bfloat16:
        raise NoTranslation(
            "the network computes in bfloat16, which most programs that run ONNX do not; export it in float32: "
            'dataclasses.replace(backbone, model=backbone.model.clone(dtype="float32"))'
        )
    return graph.node("Cast", graph.name(equation.invars[0]), to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _reduce(kind: str) -> Operation:
    def operation(graph: Graph, equation: core.JaxprEqn) -> str:
        axes = graph.integers(equation.params["axes"])
        return graph.node(kind, graph.name(equation.invars[0]), axes, keepdims=0)

    return operation


def _broadcast(graph: Graph, equation: core.JaxprEqn) -> str:
    (x, *_), dims = equation.invars, equation.params["shape"]
    places = equation.params["broadcast_dimensions"]
    sizes: list[Any] = [1] * len(dims)
    for place, size in zip(places, shape_of(x), strict=True):
        sizes[place] = size
    name = graph.name(x)
    if sizes != [*shape_of(x)]:
        name = graph.reshape(name, sizes)
    return name if sizes == [*dims] else graph.expand(name, dims)


def _reshape(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.reshape(graph.name(equation.invars[0]), shape_of(equation.outvars[0]))


def _transpose(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.transpose(graph.name(equation.invars[0]), equation.params["permutation"])


def _concatenate(graph: Graph, equation: core.JaxprEqn) -> str:
    return graph.node("Concat", *map(graph.name, equation.invars), axis=equation.params["dimension"])


def _split(graph: Graph, equation: core.JaxprEqn) -> list[str]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    return graph.node_of_many("Split", len(sizes), graph.name(equation.invars[0]), graph.integers(sizes), axis=axis)


def _slice(graph: Graph, equation: core.JaxprEqn) -> str:
    x, params = equation.invars[0], equation.params
    steps = params["strides"] or (1,) * len(shape_of(x))
    cut = [
        (axis, start, end, step)
        for axis, (size, start, end, step) in enumerate(
            zip(shape_of(x), params["start_indices"], params["limit_indices"], steps, strict=True)
        )
        if (start, end, step) != (0, size, 1)
    ]
    if not cut:
        return graph.name(x)
    axes, starts, ends, strides = zip(*cut, strict=True)
    if graph.depends(starts) or graph.depends(ends):
        raise NoTranslation("the network takes a part of the batch, which has no translation to ONNX")
    return graph.node("Slice", graph.name(x), *map(graph.integers, (starts, ends, axes, strides)))


def _pad(graph: Graph, equation: core.JaxprEqn) -> str:
    x, value = equation.invars
    config = equation.params["padding_config"]
    if any(inner for _, _, inner in config):
        raise NoTranslation("the network pads between elements, which has no translation to ONNX")
    ends = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.node("Pad", graph.name(x), graph.integers(ends), graph.name(value))


def _dot_general(graph: Graph, equation: core.JaxprEqn) -> str:
    left, right = equation.invars
    (contracted, of_batch) = equation.params["dimension_numbers"]
    ranks = [len(shape_of(x)) for x in (left, right)]
    if not of_batch[0] and [tuple(axes) for axes in contracted] == [(ranks[0] - 1,), (0,)] and ranks[1] == 2:
        return graph.node("MatMul", graph.name(left), graph.name(right))
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    axes = [dict[int, str](), dict[int, str]()]
    for pairs in (of_batch, contracted):
        for axis in zip(*pairs, strict=True):
            axes[0][axis[0]] = axes[1][axis[1]] = next(letters)
    free = ["".join(of.setdefault(axis, next(letters)) for axis in range(rank) if axis not in of)
            for of, rank in zip(axes, ranks, strict=True)]  # fmt: skip
    terms = ["".join(of[axis] for axis in range(rank)) for of, rank in zip(axes, ranks, strict=True)]
    kept = "".join(axes[0][axis] for axis in of_batch[0])
    return graph.node(
        "Einsum", graph.name(left), graph.name(right), equation=f"{','.join(terms)}->{kept}{''.join(free)}"
    )


def _conv(graph: Graph, equation: core.JaxprEqn) -> str:
    x, kernel = equation.invars
    params = equation.params
    if params["batch_group_count"] != 1 or any(size != 1 for size in params["lhs_dilation"]):
        raise NoTranslation("the network has a transposed convolution, which has no translation to ONNX")
    numbers = params["dimension_numbers"]
    y = graph.node(
        "Conv",
        graph.transpose(graph.name(x), numbers.lhs_spec),
        graph.transpose(graph.name(kernel), numbers.rhs_spec),
        strides=[*params["window_strides"]],
        dilations=[*params["rhs_dilation"]],
        pads=[*(low for low, _ in params["padding"]), *(high for _, high in params["padding"])],
        group=params["feature_group_count"],
    )
    return graph.transpose(y, [int(i) for i in np.argsort(numbers.out_spec)])


def _window(kind: str) -> Operation:
    """Pooling over the middle axes, of [batch, ..., channels]."""

    def operation(graph: Graph, equation: core.JaxprEqn) -> str:
        params = equation.params
        window, strides, pads = (params[key] for key in ("window_dimensions", "window_strides", "padding"))
        dilations = [*params["base_dilation"], *params["window_dilation"]]
        ends = [(window[axis], strides[axis], *pads[axis]) for axis in (0, -1)]
        if any(size != 1 for size in dilations) or any(end != (1, 1, 0, 0) for end in ends):
            raise NoTranslation(
                "the network pools over other axes than rows and columns, which has no translation to ONNX"
            )
        rank = len(window)
        order = [0, rank - 1, *range(1, rank - 1)]
        attributes: dict[str, Any] = dict(
            kernel_shape=[*window[1:-1]],
            strides=[*strides[1:-1]],
            pads=[*(low for low, _ in pads[1:-1]), *(high for _, high in pads[1:-1])],
        )
        if kind == "AveragePool":
            attributes["count_include_pad"] = 1
        y = graph.node(kind, graph.transpose(graph.name(equation.invars[0]), order), **attributes)
        if kind == "AveragePool":  # JAX sums
            y = graph.node("Mul", y, graph.constant(np.float32(math.prod(window))))
        return graph.transpose(y, [0, *range(2, rank), 1])

    return operation


OPERATIONS: dict[str, Operation] = {
    **{name: _same(name.capitalize()) for name in ("abs", "add", "ceil", "cos", "div", "erf", "exp", "floor", "log")},
    **{name: _same(name.capitalize()) for name in ("max", "min", "mul", "neg", "not", "or", "pow", "sign", "sin")},
    **{name: _same(name.capitalize()) for name in ("and", "sqrt", "sub", "tanh", "xor")},
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "copy": _same("Identity"),
    "dot_general": _dot_general,
    "eq": _same("Equal"),
    "erfc": _erfc,
    "expand_dims": _reshape,
    "ge": _same("GreaterOrEqual"),
    "gt": _same("Greater"),
    "integer_pow": _integer_pow,
    "le": _same("LessOrEqual"),
    "log1p": _log1p,
    "logistic": _same("Sigmoid"),
    "lt": _same("Less"),
    "name": _same("Identity"),
    "ne": _unequal,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _window("MaxPool"),
    "reduce_window_sum": _window("AveragePool"),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": _square,
    "squeeze": _reshape,
    "stop_gradient": _same("Identity"),
    "transpose": _transpose,
}
