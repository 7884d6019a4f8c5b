// From images to frames.
#pragma once

#include "noise.h"

// zip_ingest: x_p = the images on their tiles, mirrored at the bottom and the right up to the size of the tile;
//             x = z, the initial noise (x_T).
// Pixels outside the images stay unchanged.
extern "C" __global__ void __launch_bounds__(256)
    zip_ingest(const unsigned char* images, unsigned char* x_p, float* x, const ZipImage* image_table,
               ZipLayout a, const ZipBatch* batch) {
  const bool wide = wide_rows(a), whole = a.image_width % 4 == 0;
  const size_t plane = plane_of(a);
  for_each_quad(a, batch, a.tile_height, a.tile_width, [&](const Quad& q) {
    const unsigned char* row =
        images + (size_t(q.image) * a.image_height + mirror(q.y, a.image_height)) * a.image_width * 3;

    unsigned char rgb[12] = {}; // of four pixels, interleaved
    if (whole && q.left + 4 <= a.image_width) {
      ZIP_UNROLL for (int k = 0; k < 3; ++k) {
        const Four<unsigned char> four = *reinterpret_cast<const Four<unsigned char>*>(row + 3 * q.left + 4 * k);
        ZIP_UNROLL for (int j = 0; j < 4; ++j) rgb[4 * k + j] = four.v[j];
      }
    } else {
      ZIP_UNROLL for (unsigned j = 0; j < 4; ++j) if (j < q.count) {
        const unsigned from = 3 * mirror(q.left + j, a.image_width);
        ZIP_UNROLL for (int c = 0; c < 3; ++c) rgb[3 * j + c] = row[from + c];
      }
    }

    float z[3][4];
    normals(*batch, image_table[q.image], ZIP_INITIAL, q.y, q.left, z);
    ZIP_UNROLL for (int c = 0; c < 3; ++c) {
      const unsigned char bytes[4] = {rgb[c], rgb[3 + c], rgb[6 + c], rgb[9 + c]};
      store4(x_p + q.at + c * plane, q.count, wide, bytes);
      store4(x + q.at + c * plane, q.count, wide, z[c]);
    }
  });
}

// zip_fill: fill the pixels of x outside the images, like zipsdk.sampling.denoiser.Predictor: free tiles of the last
// frame repeat its images, and the rest of the frame mirrors the tiles, so that the UNet sees only image content. If
// such pixels exist, launch it after ingest and after each step.
// A thread fills one pixel. No pixel is both read and written.
extern "C" __global__ void __launch_bounds__(256) zip_fill(float* x, ZipLayout a, const ZipBatch* batch) {
  const size_t plane = plane_of(a);
  const unsigned per = a.rows * a.columns, area = a.height * a.width;
  const unsigned covered_height = a.rows * a.tile_height, covered_width = a.columns * a.tile_width;
  const unsigned work = batch->frames * area;
  for (unsigned i = first_thread(); i < work; i += threads()) {
    const unsigned frame = i / area, y = i % area / a.width, column = i % a.width;
    const unsigned my = mirror(y, covered_height), mx = mirror(column, covered_width), first = frame * per;
    unsigned image = first + my / a.tile_height * a.columns + mx / a.tile_width;
    if (image < batch->images && my == y && mx == column) continue;
    if (image >= batch->images) image = first + (image - first) % (batch->images - first);
    const size_t from = offset_of(a, image, my % a.tile_height, mx % a.tile_width);
    const size_t to = (size_t(frame) * 3 * a.height + y) * a.width + column;
    for (int c = 0; c < 3; ++c) x[to + c * plane] = x[from + c * plane];
  }
}
