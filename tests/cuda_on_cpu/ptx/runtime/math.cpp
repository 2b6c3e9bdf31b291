// SPDX-License-Identifier: Apache-2.0
// The C library's functions that kernels call, as CUDA computes them: a program prefers its own
// definitions to a library's. So kernels that g++ compiled and translated ones agree to the bit.
// Includes no header that declares these names.
#include <cstring>

extern "C" {

// Translated from device_math.cu: read the parameter, write the result behind it.
void ptx_device_expf(unsigned char* parameters);
void ptx_device_logf(unsigned char* parameters);
void ptx_device_log2f(unsigned char* parameters);
void ptx_device_erff(unsigned char* parameters);
void ptx_device_tanhf(unsigned char* parameters);
void ptx_device_log(unsigned char* parameters);
}

namespace {

template <class T, void (*kFunction)(unsigned char*)>
T call(T x) {
  alignas(T) unsigned char parameters[2 * sizeof(T)];
  memcpy(parameters, &x, sizeof(T));
  kFunction(parameters);
  T result;
  memcpy(&result, parameters + sizeof(T), sizeof(T));
  return result;
}

}  // namespace

extern "C" {

float expf(float x) { return call<float, ptx_device_expf>(x); }
float logf(float x) { return call<float, ptx_device_logf>(x); }
float log2f(float x) { return call<float, ptx_device_log2f>(x); }
float erff(float x) { return call<float, ptx_device_erff>(x); }
float tanhf(float x) { return call<float, ptx_device_tanhf>(x); }
double log(double x) { return call<double, ptx_device_log>(x); }
}
