// One step of the loop in one pass over memory.
#pragma once

#include "noise.h"

// The data of a lane: 2 rows x 4 columns x 3 colors, that is two cells of blur 2. `out` accumulates x_next, because
// keeping x0 and e instead would need 24 more registers.
struct Unit {
  float out[3][2][4];     // x_next (color, row, column), partial sums
  float correction[3][2]; // sum of the guide's terms with l >= 1 (color, cell of blur 2)
};

// Add level l of the guide; red, green and blue are the sums of r over the lane's cell of 2^l x 2^l pixels.
ZIP_DEVICE void add_level(const ZipGuide& p, int l, float red, float green, float blue, unsigned cell, Unit& u) {
  const float share = 1.0f / float(1u << (2 * l));
  const float gray = p.gray[l] * ((red + green + blue) * (share / 3.0f));
  u.correction[0][cell] += fmaf(p.blur[l], red * share, gray);
  u.correction[1][cell] += fmaf(p.blur[l], green * share, gray);
  u.correction[2][cell] += fmaf(p.blur[l], blue * share, gray);
}

// x0     = a x_t - b e
// x0~    = x0 + w P (x_P - x0)
// x_next = c x0~ + d e + s z
// with one row of coefficients for each frame and one guide for each image. x_next may be x. Pixels outside the images
// stay unchanged. Memory traffic: x 4, e 4 or 2, x_p 1 and x_next 4 bytes per element, each once.
//
// A warp computes 16 x 16 pixels: lane 4 i + j has the rows 2i, 2i+1 and the columns 4j ... 4j+3. A cell of blur 2 lies
// in one lane; one of blur 4, 8 or 16 spans 2, 8 or 32 lanes, which add their sums by shuffles.
template <class E>
ZIP_DEVICE void step(const float* x, const E* e, const unsigned char* x_p, float* x_next,
                     const ZipImage* image_table, const ZipGuide* guide_table, const ZipStep* step_table,
                     const ZipLayout& a, const ZipBatch* batch) {
  const bool wide = wide_rows(a);
  const size_t plane = plane_of(a);
  const unsigned across = ceil_div(a.tile_width, 16), each = across * ceil_div(a.tile_height, 16);
  const unsigned warps = batch->images * each;
  for (unsigned i = first_thread() / 32; i < warps; i += threads() / 32) {
    const unsigned image = i / each, top = i % each / across * 16, left = i % each % across * 16;
    const ZipImage& entry = image_table[image];
    const ZipGuide& p = guide_table[entry.guide];
    const ZipStep& k = step_table[image / (a.rows * a.columns)];
    PerLane<Unit> units;
    PerLane<float> red, green, blue; // sums of r = x_P - x0 over the lane's part of a cell

    ZIP_LANES(lane) {
      Unit& u = units[lane];
      const unsigned y = top + lane / 4 * 2, column = left + lane % 4 * 4, count = within(column, a.tile_width);
      const size_t at = offset_of(a, image, y, column);
      float sums[3][2] = {};
      ZIP_UNROLL for (unsigned j = 0; j < 2; ++j) {
        const unsigned n = y + j < a.tile_height ? count : 0;
        float gray[4] = {};
        ZIP_UNROLL for (int c = 0; c < 3; ++c) {
          const size_t here = at + c * plane + j * a.width;
          float x_t[4], eps[4], guide[4];
          load4(x + here, n, wide, x_t);
          load4(e + here, n, wide, eps);
          load4(x_p + here, n, wide, guide);
          ZIP_UNROLL for (int m = 0; m < 4; ++m) {
            const float x0 = k.a * x_t[m] - k.b * eps[m], r = guide[m] - x0;
            u.out[c][j][m] = fmaf(k.c, x0, k.d * eps[m]);
            gray[m] += r;
            sums[c][m / 2] += r;
          }
        }
        const float share = k.c * k.w * p.gray[0] * (1.0f / 3.0f);
        ZIP_UNROLL for (int c = 0; c < 3; ++c)
          ZIP_UNROLL for (int m = 0; m < 4; ++m) u.out[c][j][m] = fmaf(share, gray[m], u.out[c][j][m]);
      }
      ZIP_UNROLL for (unsigned cell = 0; cell < 2; ++cell) {
        ZIP_UNROLL for (int c = 0; c < 3; ++c) u.correction[c][cell] = 0.0f;
        add_level(p, 1, sums[0][cell], sums[1][cell], sums[2][cell], cell, u);
      }
      red[lane] = sums[0][0] + sums[0][1];
      green[lane] = sums[1][0] + sums[1][1];
      blue[lane] = sums[2][0] + sums[2][1];
    }

    // for blur 4, 8 and 16: the lanes that join those of the cell one level below
    const int masks[3][2] = {{4, 0}, {1, 8}, {2, 16}};
    ZIP_UNROLL for (unsigned l = 2; l <= 4; ++l) {
      if (l > p.levels) break;
      ZIP_UNROLL for (int m = 0; m < 2; ++m) {
        if (!masks[l - 2][m]) continue;
        add_across(red, masks[l - 2][m]);
        add_across(green, masks[l - 2][m]);
        add_across(blue, masks[l - 2][m]);
      }
      ZIP_LANES(lane) {
        for (unsigned cell = 0; cell < 2; ++cell)
          add_level(p, l, red[lane], green[lane], blue[lane], cell, units[lane]);
      }
    }

    ZIP_LANES(lane) {
      Unit& u = units[lane];
      const unsigned y = top + lane / 4 * 2, column = left + lane % 4 * 4, count = within(column, a.tile_width);
      const size_t at = offset_of(a, image, y, column);
      ZIP_UNROLL for (unsigned j = 0; j < 2; ++j) {
        if (y + j >= a.tile_height || !count) continue;
        ZIP_UNROLL for (int c = 0; c < 3; ++c) {
          ZIP_UNROLL for (int m = 0; m < 4; ++m)
            u.out[c][j][m] = fmaf(k.c * k.w, u.correction[c][m / 2], u.out[c][j][m]);
          if (!k.clip) continue;
          // out is c x0~ + d e here; reading e again gives x0~
          const float back = 1.0f / k.c;
          float eps[4];
          load4(e + at + c * plane + j * a.width, count, wide, eps);
          ZIP_UNROLL for (int m = 0; m < 4; ++m) {
            const float x0 = (u.out[c][j][m] - k.d * eps[m]) * back;
            u.out[c][j][m] = fmaf(k.c, clamp(x0, -1.0f, 1.0f), k.d * eps[m]);
          }
        }
        if (k.s != 0.0f) {
          float z[3][4];
          normals(*batch, entry, k.t, y + j, column, z);
          ZIP_UNROLL for (int c = 0; c < 3; ++c)
            ZIP_UNROLL for (int m = 0; m < 4; ++m) u.out[c][j][m] = fmaf(k.s, z[c][m], u.out[c][j][m]);
        }
        ZIP_UNROLL for (int c = 0; c < 3; ++c) store4(x_next + at + c * plane + j * a.width, count, wide, u.out[c][j]);
      }
    }
  }
}

#define ZIP_STEP(name, E)                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                                    \
      name(const float* x, const E* e, const unsigned char* x_p, float* x_next, const ZipImage* image_table,         \
           const ZipGuide* guide_table, const ZipStep* step_table, ZipLayout a, const ZipBatch* batch) {               \
    step(x, e, x_p, x_next, image_table, guide_table, step_table, a, batch);                                           \
  }
ZIP_STEP(zip_step_f32, float)
