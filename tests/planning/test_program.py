import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssl_jax.planning import hlo, main_memory, program
from tests.planning.test_hlo import TEXT


def test_every_collective_is_found_with_what_it_moves_and_how_often():
    found = [
        (c.kind, c.bytes, c.group, c.times, c.conditional, c.sent_bytes) for c in program.collectives(hlo.parse(TEXT))
    ]
    assert found == [
        ("all-reduce", 32, 2, 3, False, 32.0),  # in the loop: 2 * 1/2 of 8 float32
        ("all-reduce", 36, 4, 1, False, 54.0),  # merged, over all of the module's devices: 2 * 3/4 of 4 + 5 float32
        ("all-gather", 48, 4, 1, False, 36.0),  # the result of the pair that start has
        ("collective-permute", 6, 4, 1, False, 6.0),
        ("reduce-scatter", 64, 4, 1, False, 48.0),  # asynchronous: begun once, though named twice
        ("all-gather", 48, 4, 1, True, 36.0),  # in a branch
    ]


def test_a_merged_collective_has_the_stack_of_one_of_them():
    (merged,) = [c for c in program.collectives(hlo.parse(TEXT)) if c.op_name]
    assert merged.stack == ("models/norm.py:158 average", "step.py:70 train_step")


def test_what_a_tpu_writes_as_an_all_reduce_and_a_slice_in_one_is_a_reduce_scatter_named_as_its_sum_is():
    text = (
        TEXT.partition("%add (")[0]
        + """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y), metadata={op_name="transpose(jvp())/add" stack_frame_id=3}
}

%all-reduce-scatter.2 (a: f32[16,8]) -> f32[4,8] {
  %a = f32[16,8]{1,0} parameter(0)
  %r = f32[16,8]{1,0} all-reduce(%a), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = u32[] partition-id()
  ROOT %own = f32[4,8]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={4,8}
}

ENTRY %main (a: f32[16,8]) -> f32[4,8] {
  %a = f32[16,8]{1,0} parameter(0)
  ROOT %own = f32[4,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.2
}
"""
    )
    (found,) = program.collectives(hlo.parse(text))
    assert (found.kind, found.bytes, found.sent_bytes) == ("reduce-scatter", 512, 384.0)
    assert (found.op_name, found.stack[0]) == ("transpose(jvp())/add", "models/norm.py:158 average")


def test_activations_are_what_the_forward_pass_leaves_for_the_backward_one():
    forward, backward = 'metadata={op_name="jit(f)/jvp(N)/x"}', 'metadata={op_name="jit(f)/transpose(jvp(N))/x"}'
    text = f"""HloModule f, is_scheduled=true
ENTRY %main (a: f32[100]) -> f32[100] {{
  %a = f32[100]{{0}} parameter(0), {forward}
  %kept = f32[10]{{0}} fusion(%a), kind=kLoop, calls=%x, {forward}
  %two = (f32[20]{{0}}, f32[40]{{0}}) fusion(%kept), kind=kLoop, calls=%x, {forward}
  %second = f32[40]{{0}} get-tuple-element(%two), index=1
  %renamed = f32[40]{{0}} bitcast(%second)
  %on_chip = f32[80]{{0:S(1)}} fusion(%a), kind=kLoop, calls=%x, {forward}
  %out = (f32[7]{{0}}, f32[7]{{0:S(1)}}, u32[]{{:S(2)}}) copy-start(%away), cross_program_prefetch_index=0
  %away = f32[7]{{0:S(1)}} fusion(%a), kind=kLoop, calls=%x, {forward}
  %out_done = f32[7]{{0}} copy-done(%out)
  %in = ((f32[7]{{0}}), f32[3]{{0:S(1)}}, s32[]{{:S(2)}}) slice-start(%out_done), slice={{[0:3]}}
  %in_done = f32[3]{{0:S(1)}} slice-done(%in)
  %whole = f32[7]{{0:S(1)}} custom-call(%in_done, %in_done), custom_call_target="ConcatBitcast"
  %unused = f32[160]{{0}} fusion(%a), kind=kLoop, calls=%x, {forward}
  %back = f32[320]{{0}} fusion(%kept, %renamed, %on_chip, %a, %whole), kind=kLoop, calls=%x, {backward}
  ROOT %more = f32[100]{{0}} fusion(%back, %kept), kind=kLoop, calls=%x, {backward}
}}
"""
    # kept, used twice, the second of two, and what is put away from the chip for a while; not the argument, what stays
    # on the chip, is unused, or is made going back.
    assert main_memory.activation_bytes(hlo.parse(text)) == 4 * (10 + 40 + 7)
    assert main_memory.activation_bytes(hlo.parse(TEXT)) == 0


def test_a_ring_sends_all_parts_but_one():
    shapes = (hlo.ArrayShape("f32", (1000,)),)
    make = lambda kind: program.Collective(kind, shapes, 8, 1, False, "", ())  # noqa: E731
    np.testing.assert_allclose(make("all-reduce").sent_bytes, 7000)
    np.testing.assert_allclose(make("reduce-scatter").sent_bytes + make("all-gather").sent_bytes, 7000)


def test_traffic_is_what_instructions_read_and_write_in_the_main_memory():
    text = """HloModule f, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%p), index=1
  %r = f32[8]{0} negate(%v)
  ROOT %t = (s32[], f32[8]{0}) tuple(%v, %r)
}

ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %near = f32[100]{0:S(1)} fusion(%a), kind=kLoop, calls=%x
  %copied = (f32[30]{0}, f32[30]{0:S(1)}, u32[]{:S(2)}) copy-start(%near)
  %done = f32[30]{0} copy-done(%copied)
  %part = ((f32[100]{0}), f32[20]{0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:20]}
  %loop = (s32[], f32[8]{0}) while(%a), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %sum = f32[100]{0} fusion(%a, %near, %done), kind=kLoop, calls=%x
}
"""
    reads_a, copies_out, slices, loops, sums = 100, 30, 20, 3 * (8 + 8), 100 + 30 + 100
    assert main_memory.traffic_bytes(hlo.parse(text)) == 4 * (reads_a + copies_out + slices + loops + sums)


def test_flops_of_loops_are_of_all_their_rounds():
    def scanned(x, ws):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    def compiled(rounds):
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(8, 64), (rounds, 64, 64)])
        return jax.jit(scanned).lower(*shapes).compile()

    module = hlo.parse(compiled(5).as_text())
    assert program.repeated_flops(module) == 4 * 2 * 8 * 64 * 64
    once = compiled(5).cost_analysis()["flops"]
    assert once < 2 * 2 * 8 * 64 * 64  # so that they are not counted twice


# As the TPU's compiler prints it: a loop that says by its condition alone how often it goes round, products as
# convolutions, batched ones as those of a dilated image.
TPU = """HloModule f, is_scheduled=true

%product (l: bf16[8,40], r: bf16[40,16]) -> f32[8,16] {
  %l = bf16[8,40]{1,0} parameter(0)
  %r = bf16[40,16]{1,0} parameter(1)
  ROOT %c = f32[8,16]{1,0} convolution(%l, %r), dim_labels=bf_io->bf
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %f = f32[8,16]{1,0} fusion(%p, %p), kind=kOutput, calls=%product
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%p, %f)
}

%condition (q: (s32[], f32[8,16])) -> pred[] {
  %q = (s32[], f32[8,16]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(5), metadata={op_name="x"}
  %count = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%count, %limit), direction=LT
}

ENTRY %main (a: f32[8,16]) -> (s32[], f32[8,16]) {
  %a = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,16]{1,0}) while(%a), condition=%condition, body=%body
}
"""


def test_a_loop_says_by_its_condition_how_often_it_goes_round():
    assert program.repeated_flops(hlo.parse(TPU)) == 4 * 2 * 8 * 40 * 16
    unknown = TPU.replace("direction=LT", "direction=NE")
    assert program.repeated_flops(hlo.parse(unknown)) == 0


def test_what_loops_do_not_say_is_told():
    assert program.warnings(hlo.parse(TPU)) == []
    endless = TPU.replace("direction=LT", "direction=NE")
    assert program.warnings(hlo.parse(endless)) == [
        "loops of unknown length, which count as one round: (the compiler's)"
    ]
    named = TEXT.partition("%add (")[0] + endless.partition("\n\n")[2].replace(
        "condition=%condition", 'metadata={op_name="while" stack_frame_id=3}, condition=%condition'
    )
    assert program.warnings(hlo.parse(named)) == [
        "loops of unknown length, which count as one round: models/norm.py:158 average"
    ]
    now_and_then = (
        endless.replace("ENTRY %main", "%rare")
        + """
ENTRY %main (b: f32[8,16]) -> f32[8,16] {
  ROOT %c = f32[8,16]{1,0} conditional(%e, %b, %b), branch_computations={%rare, %product}
}
"""
    )
    assert program.warnings(hlo.parse(now_and_then)) == []


# As the GPU's compiler prints it: calls of cuDNN and cuBLAS, each with its work space, and groups of a mesh. A gradient
# has the window and the labels of its forward convolution.
GPU = """HloModule f, is_scheduled=true, num_partitions=8

%fused (l: bf16[8,40], r: bf16[40,16]) -> bf16[8,16] {
  %l = bf16[8,40]{1,0} parameter(0)
  %r = bf16[40,16]{1,0} parameter(1)
  ROOT %d = bf16[8,16]{1,0} dot(%l, %r), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

ENTRY %main (x: bf16[2,5,5,3], k: bf16[7,3,3,3], g: bf16[2,5,5,7], a: f32[8,40], b: f32[40,16]) -> f32[8,16] {
  %x = bf16[2,5,5,3]{3,2,1,0} parameter(0)
  %k = bf16[7,3,3,3]{3,2,1,0} parameter(1)
  %g = bf16[2,5,5,7]{3,2,1,0} parameter(2)
  %a = f32[8,40]{1,0} parameter(3)
  %b = f32[40,16]{1,0} parameter(4)
  %c = (bf16[2,5,5,7]{3,2,1,0}, u8[64]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %dx = (bf16[2,5,5,3]{3,2,1,0}, u8[0]{0}) custom-call(%g, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %dk = (bf16[7,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %m = (f32[8,16]{1,0}, s8[4]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %h = f32[8,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}
  %f = bf16[8,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused
  %sum = f32[8,16]{1,0} all-reduce(%h), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, to_apply=%add
  %four = f32[8,16]{1,0} all-reduce(%h), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  ROOT %two = f32[8,16]{1,0} all-reduce(%h), replica_groups=mesh['a'=8] {'a':(4)2}, to_apply=%add
}
"""  # noqa: E501


def test_products_of_nvidia_s_libraries_count_by_their_type():
    # Over 5 pixels, a kernel of 3 with padding has 2 + 3 + 3 + 3 + 2 products along each axis.
    convolution, product = 2 * 2 * 13 * 13 * 3 * 7, 2 * 8 * 40 * 16
    module = hlo.parse(GPU)
    assert program.product_flops(module) == {"bf16": 3 * convolution + product, "f32": product, "highest": product}
    assert program.has_library_calls(module) and not program.has_library_calls(hlo.parse(TPU))


def test_groups_are_those_of_a_mesh_s_axes():
    assert [one.group for one in program.collectives(hlo.parse(GPU))] == [8, 4, 2]


@pytest.mark.parametrize(
    "left, right, result, how, products",
    [
        # Three products [4, 5] x [5, 6], one after the other.
        (
            "[3,4,5]",
            "[3,5,6]",
            "[3,4,6]",
            "window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf",
            3 * 4 * 5 * 6,
        ),
        # A kernel of 3 at stride 2 over 7 pixels, one of padding on each side: 2 + 3 + 3 + 2 products.
        ("[2,7,5]", "[3,5,6]", "[2,4,6]", "window={size=3 stride=2 pad=1_1}, dim_labels=b0f_0io->b0f", 10 * 2 * 5 * 6),
    ],
)
def test_products_with_padding_are_not_counted(left, right, result, how, products):
    body = f"""  %l = bf16{left} parameter(0)
  %r = bf16{right} parameter(1)
  ROOT %c = f32{result} convolution(%l, %r), {how}"""
    text = TPU.replace(TPU[TPU.index("  %l =") : TPU.index("\n}\n\n%body")], body)
    assert program.repeated_flops(hlo.parse(text)) == 4 * 2 * products


def test_what_a_loop_stacks_is_kept_for_the_backward_pass():
    forward, backward = 'metadata={op_name="jit(f)/jvp(N)/while"}', 'metadata={op_name="jit(f)/transpose(jvp(N))/x"}'
    text = f"""HloModule f, is_scheduled=true
ENTRY %main (a: f32[100]) -> f32[100] {{
  %a = f32[100]{{0}} parameter(0)
  %loop = (s32[], f32[10]{{0}}, f32[5,10]{{1,0}}) while(%a), condition=%c, body=%b, {forward}
  %stacked = f32[5,10]{{1,0}} get-tuple-element(%loop), index=2
  ROOT %back = f32[100]{{0}} fusion(%stacked), kind=kLoop, calls=%x, {backward}
}}
"""
    assert main_memory.activation_bytes(hlo.parse(text)) == 4 * 50


# A TPU begins to gather in one fusion, goes on in others that do something else, too, and ends in a third. Here are two
# chains, of copies of one JAX function, which share its channel.
BESIDE = """HloModule f, is_scheduled=true, num_partitions=4

%begin (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  ROOT %g1 = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
}

%go_on (q: bf16[2,8], r: f32[100]) -> (f32[100], bf16[8,8]) {
  %q = bf16[2,8]{1,0} parameter(0)
  %r = f32[100]{0} parameter(1)
  %n = f32[100]{0} negate(%r)
  %g2 = bf16[8,8]{1,0} all-gather(%q), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %both = (f32[100]{0}, bf16[8,8]{1,0}) tuple(%n, %g2)
}

%end (s: bf16[2,8]) -> bf16[8,8] {
  %s = bf16[2,8]{1,0} parameter(0)
  ROOT %g3 = bf16[8,8]{1,0} all-gather(%s), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
}

%begin_second (t: bf16[2,8]) -> bf16[8,8] {
  %t = bf16[2,8]{1,0} parameter(0)
  ROOT %g4 = bf16[8,8]{1,0} all-gather(%t), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="1"}
}

%end_second (v: bf16[2,8]) -> bf16[8,8] {
  %v = bf16[2,8]{1,0} parameter(0)
  ROOT %g5 = bf16[8,8]{1,0} all-gather(%v), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="1"}
}

%whole (w: bf16[2,8]) -> bf16[8,8] {
  %w = bf16[2,8]{1,0} parameter(0)
  ROOT %g6 = bf16[8,8]{1,0} all-gather(%w), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (a: bf16[2,8], b: f32[100]) -> f32[100] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = f32[100]{0} parameter(1)
  %start = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%begin
  %beside = (f32[100]{0}, bf16[8,8]{1,0}) fusion(%a, %b), kind=kLoop, calls=%go_on
  %done = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%end
  %start.1 = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%begin_second
  %done.1 = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%end_second
  %fused = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%whole
  ROOT %other = bf16[8,8]{1,0} all-gather(%a), channel_id=8, replica_groups={{0,1,2,3}}, dimensions={0}
}
"""


def test_what_is_gathered_beside_other_work_counts_once():
    module = hlo.parse(BESIDE)
    assert [c.bytes for c in program.collectives(module)] == [128] * 4
    other = 32 + 128  # by itself: read and written
    assert main_memory.traffic_bytes(module) == 3 * 128 + 2 * 400 + other


def test_of_what_is_sliced_or_written_in_its_place_the_slice_counts():
    text = """HloModule f, is_scheduled=true

%write (s: f32[40,100], u: f32[1,100], w: f32[40,6], i: s32[]) -> f32[40,100] {
  %s = f32[40,100]{1,0} parameter(0)
  %u = f32[1,100]{1,0} parameter(1)
  %w = f32[40,6]{1,0} parameter(2)
  %i = s32[]{:S(2)} parameter(3)
  %row = f32[1,6]{1,0} dynamic-slice(%w, %i, %i), dynamic_slice_sizes={1,6}
  %used = f32[1,100]{1,0} add(%u, %row)
  ROOT %new = f32[40,100]{1,0} dynamic-update-slice(%s, %used, %i, %i)
}

ENTRY %main (a: f32[40,100]) -> f32[40,100] {
  %a = f32[40,100]{1,0} parameter(0)
  %u = f32[1,100]{1,0} parameter(1)
  %w = f32[40,6]{1,0} parameter(2)
  %i = s32[]{:S(2)} parameter(3)
  ROOT %out = f32[40,100]{1,0} fusion(%a, %u, %w, %i), kind=kLoop, calls=%write
}
"""
    assert main_memory.traffic_bytes(hlo.parse(text)) == 4 * (100 + 6 + 100)


def test_fusions_within_a_fusion_read_and_write_slices_too():
    """As TPUs run a block of `model.scan`: its activations are slices of those of all blocks."""
    text = """HloModule f, is_scheduled=true

%slice (s: f32[40,100], i: s32[]) -> f32[100] {
  %s = f32[40,100]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  %row = f32[1,100]{1,0} dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,100}
  ROOT %flat = f32[100]{0} bitcast(%row)
}

%renamed (b: f32[60]) -> f32[6,10] {
  %b = f32[60]{0} parameter(0)
  ROOT %flat.1 = f32[6,10]{1,0} bitcast(%b)
}

%put (t: f32[40,100], u: f32[100], j: s32[]) -> f32[40,100] {
  %u = f32[100]{0} parameter(1)
  %t = f32[40,100]{1,0} parameter(0)
  %j = s32[]{:S(2)} parameter(2)
  %wide = f32[1,100]{1,0} bitcast(%u)
  ROOT %new = f32[40,100]{1,0} dynamic-update-slice(%t, %wide, %j, %j)
}

%block (p0: f32[40,100], p1: f32[60], p2: s32[], p3: f32[40,100]) -> f32[40,100] {
  %p0 = f32[40,100]{1,0} parameter(0)
  %p1 = f32[60]{0} parameter(1)
  %p2 = s32[]{:S(2)} parameter(2)
  %p3 = f32[40,100]{1,0} parameter(3)
  %old = f32[100]{0} fusion(%p0, %p2), kind=kLoop, calls=%slice
  %weights = f32[6,10]{1,0} fusion(%p1), kind=kLoop, calls=%renamed
  %sum = f32[100]{0} add(%old, %weights)
  %kept = f32[40,100]{1,0} fusion(%p3, %sum, %p2), kind=kLoop, calls=%put
  ROOT %kept.1 = f32[40,100]{1,0} bitcast(%kept)
}

ENTRY %main (a: f32[40,100], w: f32[60], c: f32[40,100]) -> f32[40,100] {
  %a = f32[40,100]{1,0} parameter(0)
  %w = f32[60]{0} parameter(1)
  %i = s32[]{:S(2)} parameter(2)
  %c = f32[40,100]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %out = f32[40,100]{1,0} fusion(%a, %w, %i, %c), kind=kOutput, calls=%block
}
"""
    assert main_memory.traffic_bytes(hlo.parse(text)) == 4 * (100 + 60 + 100)


def test_of_a_bank_the_rows_that_are_gathered_or_scattered_count():
    body = """
  %bank = f32[1000,8]{1,0} parameter(0)
  %at = s32[5,1]{1,0} parameter(1)
  %rows = f32[5,8]{1,0} parameter(2)
  %old = f32[5,8]{1,0} gather(%bank, %at), offset_dims={1}, slice_sizes={1,8}"""
    scatter = "f32[1000,8]{1,0} scatter(%bank, %at, %rows), update_window_dims={1}, to_apply=%add"
    signature = "(bank: f32[1000,8], at: s32[5,1], rows: f32[5,8])"
    bare = f"""{TEXT.partition("%body")[0]}
ENTRY %main {signature} -> f32[1000,8] {{{body}
  %near = f32[5,8]{{1,0:S(1)}} gather(%bank, %at), offset_dims={{1}}, slice_sizes={{1,8}}
  ROOT %new = {scatter}
}}
"""
    rows, at = 5 * 8, 5
    brought, near, written = rows + at + rows, rows + at, rows + at + rows
    assert main_memory.traffic_bytes(hlo.parse(bare)) == 4 * (brought + near + written)
    fused = f"""{TEXT.partition("%body")[0]}
%update {signature} -> (f32[1000,8], f32[5,8]) {{{body}
  %new = {scatter}
  ROOT %both = (f32[1000,8]{{1,0}}, f32[5,8]{{1,0}}) tuple(%new, %old)
}}

ENTRY %main {signature} -> (f32[1000,8], f32[5,8]) {{
  %bank = f32[1000,8]{{1,0}} parameter(0)
  %at = s32[5,1]{{1,0}} parameter(1)
  %rows = f32[5,8]{{1,0}} parameter(2)
  ROOT %out = (f32[1000,8]{{1,0}}, f32[5,8]{{1,0}}) fusion(%bank, %at, %rows), kind=kCustom, calls=%update
}}
"""
    assert main_memory.traffic_bytes(hlo.parse(fused)) == 4 * (rows + at + rows + rows + rows)


def test_a_slice_that_is_brought_on_the_chip_is_read_all_the_same():
    text = """HloModule f, is_scheduled=true
ENTRY %main (a: f32[40,100]) -> f32[40,100] {
  %a = f32[40,100]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  %row = f32[1,100]{1,0:S(1)} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,100}
  ROOT %new = f32[40,100]{1,0} dynamic-update-slice(%a, %row, %i, %i)
}
"""
    assert main_memory.traffic_bytes(hlo.parse(text)) == 4 * (100 + 100)
