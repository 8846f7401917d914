"""Tests of what is read from a compiled module: small modules written out here."""

import pytest

from igpt_tf.ahead_of_time.hlo import Module

# A loop that runs 5 times: a product with slice i of a stack, in a fusion, and an update of row i
# of the result. Then a sum that is not part of the loop.
GPU = """
HloModule m, is_scheduled=true

%product (stack: f32[5,32,16], index: s32[], x: bf16[8,32]) -> f32[8,16] {
  %stack = f32[5,32,16]{2,1,0} parameter(0)
  %x = bf16[8,32]{1,0} parameter(2)
  %index = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,32,16]{2,1,0} dynamic-slice(%stack, %index, %zero, %zero), dynamic_slice_sizes={1,32,16}
  %weights = f32[32,16]{1,0} bitcast(%slice)
  %wide = f32[8,32]{1,0} convert(%x)
  ROOT %dot = f32[8,16]{1,0} dot(%wide, %weights), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%write (all: f32[5,8,16], one: f32[8,16], at: s32[]) -> f32[5,8,16] {
  %all = f32[5,8,16]{2,1,0} parameter(0)
  %one = f32[8,16]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %row = f32[1,8,16]{2,1,0} bitcast(%one)
  %none = s32[] constant(0)
  %same = f32[5,8,16]{2,1,0} bitcast(%all)
  ROOT %update = f32[5,8,16]{2,1,0} dynamic-update-slice(%same, %row, %at, %none, %none)
}

%body (state: (s32[], f32[5,32,16], bf16[8,32], f32[5,8,16])) -> (s32[], f32[5,32,16], bf16[8,32], f32[5,8,16]) {
  %state = (s32[], f32[5,32,16]{2,1,0}, bf16[8,32]{1,0}, /*index=3*/f32[5,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %w = f32[5,32,16]{2,1,0} get-tuple-element(%state), index=1
  %h = bf16[8,32]{1,0} get-tuple-element(%state), index=2
  %results = f32[5,8,16]{2,1,0} get-tuple-element(%state), index=3
  %fusion = f32[8,16]{1,0} fusion(%w, %i, %h), kind=kOutput, calls=%product
  %fusion.1 = f32[5,8,16]{2,1,0} fusion(%results, %fusion, %i), kind=kLoop, calls=%write
  ROOT %next = (s32[], f32[5,32,16]{2,1,0}, bf16[8,32]{1,0}, f32[5,8,16]{2,1,0}) tuple(%i, %w, %h, %fusion.1)
}

%condition (state.1: (s32[], f32[5,32,16], bf16[8,32], f32[5,8,16])) -> pred[] {
  %state.1 = (s32[], f32[5,32,16]{2,1,0}, bf16[8,32]{1,0}, f32[5,8,16]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x.1: f32[5,32,16], y.1: bf16[8,32], z.1: f32[5,8,16]) -> f32[5,8,16] {
  %x.1 = f32[5,32,16]{2,1,0} parameter(0)
  %y.1 = bf16[8,32]{1,0} parameter(1)
  %z.1 = f32[5,8,16]{2,1,0} parameter(2)
  %two = s32[] constant(2)
  %first = s32[] bitcast(%two)
  %start = (s32[], f32[5,32,16]{2,1,0}, bf16[8,32]{1,0}, f32[5,8,16]{2,1,0}) tuple(%first, %x.1, %y.1, %z.1)
  %while = (s32[], f32[5,32,16]{2,1,0}, bf16[8,32]{1,0}, f32[5,8,16]{2,1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[5,8,16]{2,1,0} get-tuple-element(%while), index=3
  ROOT %sum = f32[5,8,16]{2,1,0} add(%last, %last)
}
"""  # noqa: E501


def test_kernels_in_a_loop_count_as_often_as_it_runs_and_slices_count_as_slices():
    product, write, add = Module(GPU).kernels()
    assert (product.count, product.depth, product.flops) == (5, 1, 2 * 8 * 16 * 32)
    slice_of_stack, index, x = (size for _, size in product.read)
    assert (slice_of_stack, index, x) == (32 * 16 * 4, 4, 8 * 32 * 2)
    assert [size for _, size in product.written] == [8 * 16 * 4]
    # The stack of results is updated in place: one row is read and written.
    assert [size for _, size in write.read] == [0, 8 * 16 * 4, 4]
    assert [size for _, size in write.written] == [8 * 16 * 4]
    assert (add.count, add.depth, add.num_bytes) == (1, 0, 3 * 5 * 8 * 16 * 4)


def test_without_the_compilers_count_a_loop_runs_from_its_first_index_to_its_limit():
    unknown = GPU.replace('backend_config={"known_trip_count":{"n":"5"}}', "metadata={}")
    assert next(Module(unknown).kernels()).count == 9 - 2


TPU = """
HloModule m

ENTRY %main (a: bf16[8,4,256,64], b: bf16[8,4,512,64]) -> f32[8,4,256,512] {
  %a = bf16[8,4,256,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,4,512,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[8,4,256,64]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[8,4,256,64]{3,2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[8,4,256,64]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  ROOT %convolution = f32[8,4,256,512]{3,2,1,0:T(8,128)S(1)} convolution(%copy-done, %b), window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=01bf_01oi->01bf
}
"""  # noqa: E501


def test_on_a_tpu_arrays_on_the_chip_move_no_bytes_and_products_are_convolutions():
    copy, product = Module(TPU).kernels()
    assert [size for _, size in copy.read] == [8 * 4 * 256 * 64 * 2]
    assert product.flops == 2 * 8 * 4 * 256 * 512 * 64
    assert [size for _, size in product.read] == [0, 8 * 4 * 512 * 64 * 2]
    assert [size for _, size in product.written] == [0]


PADDED = """
HloModule m

ENTRY %main (x: f32[8,1024,512], w: f32[3,8,64,512]) -> f32[8,1024,3,8,64] {
  %x = f32[8,1024,512,1,1]{2,1,0,3,4} parameter(0)
  %w = f32[3,8,64,512,1]{3,2,1,0,4} parameter(1)
  ROOT %convolution = f32[8,1024,3,8,64]{1,4,3,2,0} convolution(%x, %w), window={size=1x3x8 pad=0_0x2_2x7_7 rhs_reversal=0x1x1}, dim_labels=0bf12_12oi0->0b12f
}
"""  # noqa: E501


@pytest.mark.parametrize("text", [PADDED])
def test_padding_of_a_convolution_is_not_arithmetic(text):
    [product] = Module(text).kernels()
    assert product.flops == 2 * 8 * 1024 * 512 * 3 * 512
