// The host shim: the parts of CUDA that zip.h uses, for g++. For tests only: it runs one thread after the other.
// One call of a kernel written for a warp (ZIP_LANES) computes all 32 lanes.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#define __global__
#define __launch_bounds__(threads)
#define ZIP_DEVICE static inline
#define ZIP_UNROLL _Pragma("GCC unroll 8")
#define ZIP_LANES(lane) for (unsigned lane = 0; lane < 32; ++lane)

struct ZipIndex {
  unsigned x;
};
static ZipIndex threadIdx, blockIdx, blockDim, gridDim;

template <class T>
struct PerLane {
  T all[32];
  T& operator[](unsigned lane) { return all[lane]; }
};
ZIP_DEVICE void add_across(PerLane<float>& v, int mask) {
  const PerLane<float> before = v;
  for (int lane = 0; lane < 32; ++lane) v.all[lane] += before.all[lane ^ mask];
}

ZIP_DEVICE float bits_float(unsigned bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
ZIP_DEVICE unsigned float_bits(float f) {
  unsigned bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}
ZIP_DEVICE float half_float(unsigned short h) {
  const unsigned sign = unsigned(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
  if (exponent == 31) return bits_float(sign | 0x7f800000u | fraction << 13);
  // a subnormal half is fraction 2^-24, exact in float
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
  return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
}
