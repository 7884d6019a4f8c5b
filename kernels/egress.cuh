// From frames to images.
#pragma once

#include "zip.h"

// zip_egress: images = round((x + 1) 127.5) clamped to 0..255, halves to even like numpy.rint, without the padding of
// the tiles. If a value is not finite, it is written as 0 or 255 and *nonfinite becomes 1: the caller zeroes *nonfinite
// before the launch, and does not use the images then.
extern "C" __global__ void __launch_bounds__(256)
    zip_egress(const float* x, unsigned char* images, unsigned* nonfinite, ZipLayout a, const ZipBatch* batch) {
  const bool wide = wide_rows(a), whole = a.image_width % 4 == 0;
  const size_t plane = plane_of(a);
  for_each_quad(a, batch, a.image_height, a.image_width, [&](const Quad& q) {
    unsigned char rgb[12];
    bool finite = true;
    ZIP_UNROLL for (int c = 0; c < 3; ++c) {
      float v[4];
      load4(x + q.at + c * plane, q.count, wide, v);
      ZIP_UNROLL for (int j = 0; j < 4; ++j) {
        finite = finite && fabsf(v[j]) < INFINITY;
        rgb[3 * j + c] = (unsigned char)rintf(clamp((v[j] + 1.0f) * 127.5f, 0.0f, 255.0f));
      }
    }
    // a harmless race: every thread writes 1
    if (!finite) *nonfinite = 1;
    unsigned char* to = images + ((size_t(q.image) * a.image_height + q.y) * a.image_width + q.left) * 3;
    ZIP_UNROLL for (unsigned k = 0; k < 3; ++k) {
      const unsigned char part[4] = {rgb[4 * k], rgb[4 * k + 1], rgb[4 * k + 2], rgb[4 * k + 3]};
      store4(to + 4 * k, 3 * q.count >= 4 * k ? within(4 * k, 3 * q.count) : 0, whole, part);
    }
  });
}
