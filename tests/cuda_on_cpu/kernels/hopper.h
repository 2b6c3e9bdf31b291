// SPDX-License-Identifier: Apache-2.0
// Small kernels of mbarrier, TMA and wgmma. Each has one function for the executor and for a GPU,
// where it is compiled alone into a library (hopper.py): tensors by address, whole numbers by
// position. Returns a cudaError_t, 0 for success.
#pragma once

extern "C" {

/// One box. tensors: x, 16 bits an element; out, the bytes of the box in shared memory.
/// numbers: four sizes, three strides of dimensions 1 to 3, box_rows, four coordinates.
int hopper_box(void* const* tensors, const int* numbers);

/// out [64, 128] = a b of lines along K. tensors: image, 32 KB of shared memory; out, f32.
/// numbers: bfloat16 or not; of a, then b: where it begins, the leading offset (without effect), the
/// offset between groups of eight lines, all in bytes.
int hopper_multiply_shared(void* const* tensors, const int* numbers);

/// out [64, columns] = a b + 1, b of lines along its columns. tensors: a [64, 16]; image; out.
/// numbers: bfloat16 or not; columns, 64 or 128; of b as above.
int hopper_multiply_registers(void* const* tensors, const int* numbers);

/// out [64, 128] = sum over t of a[t] [64, 64] b[t]^T [64, 128], bfloat16, of `tiles` tiles: a warp
/// copies b by TMA into a ring of two, a warpgroup copies a, and multiplies.
/// tensors: a [tiles, 64, 64], b [tiles, 128, 64], out. numbers: tiles, fault.
/// Faults, on the executor alone: 0 none. 1: the ring is read before it is full, 2: filled before it is empty, 3: the
/// bytes are not announced, 4: too few are, 5: lines of the other swizzle, 6: no wgmma.fence, 7: no
/// commit_group, 8: no wait_group, 9: no fence.proxy.async after a is written, 10: none after the
/// barriers are made, 11: no barrier of the warpgroup after a is written, 12: a is written while
/// products read it.
int hopper_pipeline(void* const* tensors, const int* numbers);
}
