from pathlib import PurePath

import pytest

from ssl_jax.planning import hlo

# As XLA prints modules, shortened: a loop of three rounds, a branch, asynchronous and merged collectives, a stack.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "CLONE/ssl_jax/models/norm.py"
2 "CLONE/.venv/lib/flax/linen.py"
3 "CLONE/ssl_jax/step.py"

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
""".replace("CLONE", str(hlo.PACKAGE.parent))


def test_stacks_name_the_lines_of_the_package_alone_innermost_first():
    module = hlo.parse(TEXT)
    (merged,) = [i for i in module.computations[module.entry] if i.op_name]
    assert module.stacks[merged.frame] == ("models/norm.py:158 average", "step.py:70 train_step")
    flax = hlo.PACKAGE.parent / ".venv" / "lib" / "flax"
    assert hlo.parse(TEXT, package=flax).stacks[3] == ("linen.py:9 call",)


def test_of_a_clone_of_the_packages_name_no_stack_names_the_environment_within():
    clone = PurePath("/home/some body/ssl_jax")
    text = TEXT.replace(str(hlo.PACKAGE.parent), str(clone))
    assert hlo.parse(text, package=clone / "ssl_jax").stacks[3] == hlo.parse(TEXT).stacks[3] != ()
    assert hlo.parse(text, package=PurePath("/home/some body/other/ssl_jax")).stacks[3] == ()


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
