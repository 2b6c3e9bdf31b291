// SPDX-License-Identifier: Apache-2.0
// CUDA's mathematical functions that kernels call, to be translated from PTX: the plain program
// uses them in place of the C library's: these differ in the last bits (math.cpp).
extern "C" {
__device__ float device_expf(float x) { return expf(x); }
__device__ float device_logf(float x) { return logf(x); }
__device__ float device_log2f(float x) { return log2f(x); }
__device__ float device_erff(float x) { return erff(x); }
__device__ float device_tanhf(float x) { return tanhf(x); }
__device__ double device_log(double x) { return log(x); }
}
