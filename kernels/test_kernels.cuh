// Kernels that only tests and benchmarks launch: the shipped fatbin leaves them out. -DZIPSDK_TEST_KERNELS adds them.
#pragma once

#include "linear.cuh"
#include "step.cuh"

// zip_philox: Philox alone, words (4, n) -> (4, n).
extern "C" __global__ void __launch_bounds__(256) zip_philox(const unsigned* in, unsigned* out, unsigned n,
                                                             unsigned k0, unsigned k1) {
  for (unsigned i = first_thread() * 4; i < n; i += threads() * 4) {
    unsigned c[4][4] = {};
    for (unsigned j = 0; j < 4; ++j)
      for (unsigned m = 0; m < 4 && i + m < n; ++m) c[j][m] = in[j * size_t(n) + i + m];
    philox(c[0], c[1], c[2], c[3], k0, k1);
    for (unsigned j = 0; j < 4; ++j)
      for (unsigned m = 0; m < 4 && i + m < n; ++m) out[j * size_t(n) + i + m] = c[j][m];
  }
}

// The step for a UNet that returns half precision.
ZIP_STEP(zip_step_f16, Half)
ZIP_STEP(zip_step_bf16, Bfloat)
