// The step for separable transforms that zip_step does not know: blurs by other sizes, `Linear.separable`, a matrix on
// colors, and every mean or joint projector of these. P is a chain of matrices, each along one axis:
//   zip_residual   r = x_P - x0,  x0 = a x_t - b e
//   zip_apply      out = beta out + alpha M in, once for each axis; the host composes mean and joint from these
//   zip_finish     x0~ = x0 + w correction;  x_next = c x0~ + d e + s z
// Arrays are shaped like x; pixels outside the images are neither read nor written. The kernels make several passes
// over memory and are not tuned. The loop does not launch them: it runs such transforms on the CPU.
#pragma once

#include "noise.h"

template <class E>
ZIP_DEVICE void residual(const float* x, const E* e, const unsigned char* x_p, float* r, const ZipStep* step_table,
                         ZipLayout a, const ZipBatch* batch) {
  const bool wide = wide_rows(a);
  const size_t plane = plane_of(a);
  for_each_quad(a, batch, a.tile_height, a.tile_width, [&](const Quad& q) {
    const ZipStep k = step_table[q.image / (a.rows * a.columns)];
    ZIP_UNROLL for (int c = 0; c < 3; ++c) {
      float x_t[4], eps[4], guide[4], out[4];
      load4(x + q.at + c * plane, q.count, wide, x_t);
      load4(e + q.at + c * plane, q.count, wide, eps);
      load4(x_p + q.at + c * plane, q.count, wide, guide);
      ZIP_UNROLL for (int j = 0; j < 4; ++j) out[j] = guide[j] - (k.a * x_t[j] - k.b * eps[j]);
      store4(r + q.at + c * plane, q.count, wide, out);
    }
  });
}

// matrix (n, n), row-major, multiplies blocks of n along axis 0 (columns), 1 (rows) or 2 (colors; n is 3 or 1).
// A thread computes one value. `in` and `out` must not overlap unless n = 1.
extern "C" __global__ void __launch_bounds__(256)
    zip_apply(const float* in, float* out, const float* matrix, unsigned n, unsigned axis, float alpha, float beta,
              ZipLayout a, const ZipBatch* batch) {
  const size_t plane = plane_of(a), stride = axis == 0 ? 1 : axis == 1 ? a.width : plane;
  const unsigned area = a.tile_height * a.tile_width, each = 3 * area;
  const unsigned work = batch->images * each;
  for (unsigned i = first_thread(); i < work; i += threads()) {
    const unsigned image = i / each, c = i % each / area, y = i % area / a.tile_width, x = i % area % a.tile_width;
    const unsigned row = (axis == 0 ? x : axis == 1 ? y : c) % n;
    const size_t at = offset_of(a, image, y, x) + c * plane;
    const float* block = in + at - row * stride;
    // Kahan summation, because a block may be as large as the image
    float sum = 0.0f, excess = 0.0f;
    for (unsigned j = 0; j < n; ++j) {
      const float term = fmaf(matrix[row * n + j], block[j * stride], -excess), next = sum + term;
      excess = (next - sum) - term;
      sum = next;
    }
    // beta = 0 must not read out, which may be uninitialized
    out[at] = beta == 0.0f ? alpha * sum : fmaf(alpha, sum, beta * out[at]);
  }
}

// x_next may be x.
template <class E>
ZIP_DEVICE void finish(const float* x, const E* e, const float* correction, float* x_next,
                       const ZipImage* image_table, const ZipStep* step_table, ZipLayout a, const ZipBatch* batch) {
  const bool wide = wide_rows(a);
  const size_t plane = plane_of(a);
  for_each_quad(a, batch, a.tile_height, a.tile_width, [&](const Quad& q) {
    const ZipStep k = step_table[q.image / (a.rows * a.columns)];
    float z[3][4] = {};
    if (k.s != 0.0f) normals(*batch, image_table[q.image], k.t, q.y, q.left, z);
    ZIP_UNROLL for (int c = 0; c < 3; ++c) {
      float x_t[4], eps[4], toward[4], out[4];
      load4(x + q.at + c * plane, q.count, wide, x_t);
      load4(e + q.at + c * plane, q.count, wide, eps);
      load4(correction + q.at + c * plane, q.count, wide, toward);
      ZIP_UNROLL for (int j = 0; j < 4; ++j) {
        float x0 = fmaf(k.w, toward[j], k.a * x_t[j] - k.b * eps[j]);
        if (k.clip) x0 = clamp(x0, -1.0f, 1.0f);
        out[j] = fmaf(k.c, x0, fmaf(k.d, eps[j], k.s * z[c][j]));
      }
      store4(x_next + q.at + c * plane, q.count, wide, out);
    }
  });
}

#define ZIP_LINEAR(suffix, E)                                                                                          \
  extern "C" __global__ void __launch_bounds__(256)                                                                    \
      zip_residual_##suffix(const float* x, const E* e, const unsigned char* x_p, float* r, const ZipStep* step_table, \
                            ZipLayout a, const ZipBatch* batch) {                                                      \
    residual(x, e, x_p, r, step_table, a, batch);                                                                      \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                                    \
      zip_finish_##suffix(const float* x, const E* e, const float* correction, float* x_next,                          \
                          const ZipImage* image_table, const ZipStep* step_table, ZipLayout a,                       \
                          const ZipBatch* batch) {                                                                     \
    finish(x, e, correction, x_next, image_table, step_table, a, batch);                                               \
  }
ZIP_LINEAR(f32, float)
ZIP_LINEAR(f16, Half)
ZIP_LINEAR(bf16, Bfloat)
#undef ZIP_LINEAR
