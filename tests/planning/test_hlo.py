import numpy as np
import pytest

from ssl_jax.planning import hlo

# As XLA prints modules, shortened: a loop of three rounds, a branch, asynchronous and merged collectives, a stack.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "/home/somebody/ssl_jax/models/norm.py"
2 "/usr/lib/flax/linen.py"
3 "/home/somebody/ssl_jax/step.py"

FunctionNames
1 "average"
2 "call"
3 "train_step"

FileLocations
1 {file_name_id=3 function_name_id=3 line=70 end_line=70 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=1 end_column=2}
3 {file_name_id=1 function_name_id=1 line=158 end_line=158 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%p), index=1
  %r = f32[8]{0} all-reduce(%v), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%v, %r)
}

%rare (q: bf16[2,3]) -> bf16[8,3] {
  %q = bf16[2,3]{1,0} parameter(0)
  ROOT %g = bf16[8,3]{1,0} all-gather(%q), replica_groups=[1,4]<=[4], dimensions={0}
}

%never (n: bf16[2,3]) -> bf16[8,3] {
  ROOT %n = bf16[8,3]{1,0} parameter(0)
}

%wrapped (w: f32[16]) -> f32[4] {
  %w = f32[16]{0} parameter(0)
  ROOT %rs = f32[4]{0} reduce-scatter(%w), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[8], b: bf16[2,3]) -> f32[8] {
  %a = f32[8]{0:T(128)} parameter(0)
  %w.1 = (s32[], f32[8]{0}) while(%a), condition=%add, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %merged = (f32[2,2]{1,0}, f32[5]{0}) all-reduce(%a, /*index=1*/%a), metadata={op_name="jit(step)/x" stack_frame_id=3}
  %ags = (bf16[2,3]{1,0}, bf16[8,3]{1,0}) all-gather-start(%b), replica_groups={{0,1,2,3}}, dimensions={0}
  %agd = bf16[8,3]{1,0} all-gather-done(%ags)
  %cps = (u8[6]{0}, u8[6]{0}, u32[], u32[]) collective-permute-start(%c), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %as = ((f32[16]{0}), f32[4]{0}, u32[]) async-start(%d), calls=%wrapped
  %ad = f32[4]{0} async-done(%as), calls=%wrapped
  ROOT %cond = bf16[8,3]{1,0} conditional(%e, %b, %b), branch_computations={%rare, %never}
}
"""


def test_every_collective_is_found_with_what_it_moves_and_how_often():
    found = [(c.kind, c.bytes, c.group, c.times, c.conditional, c.sent_bytes) for c in hlo.collectives(hlo.parse(TEXT))]
    assert found == [
        ("all-reduce", 32, 2, 3, False, 32.0),  # in the loop: 2 * 1/2 of 8 float32
        ("all-reduce", 36, 4, 1, False, 54.0),  # merged, over all of the module's devices: 2 * 3/4 of 4 + 5 float32
        ("all-gather", 48, 4, 1, False, 36.0),  # the result of the pair that start has
        ("collective-permute", 6, 4, 1, False, 6.0),
        ("reduce-scatter", 64, 4, 1, False, 48.0),  # asynchronous: begun once, though named twice
        ("all-gather", 48, 4, 1, True, 36.0),  # in a branch
    ]


def test_stacks_name_the_lines_of_the_package_alone_innermost_first():
    (merged,) = [c for c in hlo.collectives(hlo.parse(TEXT)) if c.op_name]
    assert merged.stack == ("models/norm.py:158 average", "step.py:70 train_step")
    assert hlo.parse(TEXT, package="flax").stacks[3] == ("linen.py:9 call",)


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match=r"no ENTRY computation.*as_text"):
        hlo.parse("HloModule empty")


@pytest.mark.parametrize(
    "dtype, dims, layout, plain, padded",
    [
        ("f32", (3, 5), "1,0:T(8,128)", 60, 8 * 128 * 4),
        ("f32", (3, 5), "0,1:T(8,128)", 60, 8 * 128 * 4),  # columns first: 5 -> 8, 3 -> 128
        ("bf16", (32, 14, 14, 200), "3,0,2,1:T(8,128)(2,1)", 2508800, 32 * 14 * 14 * 256 * 2),
        ("bf16", (30, 14, 14, 256), "3,0,2,1:T(8,128)(2,1)S(1)", 3010560, 32 * 14 * 14 * 256 * 2),
        ("pred", (7,), "0", 7, 7),
        ("f8e4m3fn", (4, 4), "", 16, 16),
        ("s4", (6,), "0", 3, 3),
        ("f32", (), ":T(128)", 4, 4),
    ],
)
def test_bytes_of_arrays_with_and_without_the_padding_of_tiles(dtype, dims, layout, plain, padded):
    shape = hlo.ArrayShape(dtype, dims, layout)
    assert (shape.bytes, shape.padded_bytes) == (plain, padded)


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
    assert hlo.activation_bytes(hlo.parse(text)) == 4 * (10 + 40 + 7)
    assert hlo.activation_bytes(hlo.parse(TEXT)) == 0


def test_a_ring_sends_all_parts_but_one():
    shapes = (hlo.ArrayShape("f32", (1000,)),)
    make = lambda kind: hlo.Collective(kind, shapes, 8, 1, False, "", ())  # noqa: E731
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
    assert hlo.traffic_bytes(hlo.parse(text)) == 4 * (reads_a + copies_out + slices + loops + sums)
