// Counter-based normals: z = f(seed, noise key, step, pixel), like zipsdk/sampling/noise.py: the integers agree bit for
// bit, the normals to about 2e-6.
#pragma once

#include "zip.h"

// Philox4x32-10 (Salmon et al., SC 2011) of four counters at once, so that g++ vectorizes it. No ZIP_UNROLL: nvcc
// unrolls anyway, and g++ would not vectorize unrolled loops.
ZIP_DEVICE void philox(unsigned (&c0)[4], unsigned (&c1)[4], unsigned (&c2)[4], unsigned (&c3)[4], unsigned k0,
                       unsigned k1) {
  for (int round = 0; round < 10; ++round) {
    for (int m = 0; m < 4; ++m) {
      const unsigned long long p0 = 0xD2511F53ull * c0[m], p1 = 0xCD9E8D57ull * c2[m];
      c0[m] = unsigned(p1 >> 32) ^ c1[m] ^ k0;
      c1[m] = unsigned(p1);
      c2[m] = unsigned(p0 >> 32) ^ c3[m] ^ k1;
      c3[m] = unsigned(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// sqrt(-2 ln u) for u = (word + 0.5) 2^-32, always finite. The polynomials here and below replace the fast intrinsics,
// which are wrong for small radii (an absolute error of 2^-21 in ln near u = 1), and the full functions, which cost
// more than the rest of the step. -2 ln m = f + f^2 q(f) with f = 2 - 2 m; q is a minimax fit, relative error of ln 5e-8.
ZIP_DEVICE float radius(unsigned word) {
  const float u = float(word) * 0x1p-32f + 0x1p-33f;
  // u = m 2^e with m in [2/3, 4/3); e stays in the exponent bits
  const unsigned e = (float_bits(u) - 0x3F2AAAABu) & 0xFF800000u;
  const float f = fmaf(-2.0f, bits_float(float_bits(u) - e), 2.0f);
  float q = 5.50613996e-4f;
  q = fmaf(q, f, 1.17574242e-3f);
  q = fmaf(q, f, 2.18566694e-3f);
  q = fmaf(q, f, 5.15048973e-3f);
  q = fmaf(q, f, 1.25068661e-2f);
  q = fmaf(q, f, 3.12552578e-2f);
  q = fmaf(q, f, 8.33330513e-2f);
  q = fmaf(q, f, 0.249999926f);
  return sqrtf(fmaf(float(int(e)), -1.65259164e-7f, fmaf(f * f, q, f))); // -2 ln(2) 2^-23
}

// cos and sin of 2 pi word 2^-32. Exact integer reduction to |angle| <= pi/4, then minimax fits.
ZIP_DEVICE void unit_circle(unsigned word, float& cosine, float& sine) {
  const unsigned quarter = (word + 0x20000000u) >> 30;
  const float angle = float(int(word - (quarter << 30))) * 1.46291808e-9f; // 2 pi 2^-32
  const float z = angle * angle;
  float s = fmaf(-1.95880089e-4f, z, 8.33274900e-3f);
  s = fmaf(s, z, -0.166666647f);
  s = fmaf(s * z, angle, angle);
  float c = fmaf(2.45480405e-5f, z, -1.38883036e-3f);
  c = fmaf(c, z, 4.16666647e-2f);
  c = fmaf(c * z, z, fmaf(-0.5f, z, 1.0f));
  const bool swap = quarter & 1;
  // bit 1 of `quarter` is the sign
  cosine = bits_float(float_bits(swap ? s : c) ^ ((quarter + 1) << 30 & 0x80000000u));
  sine = bits_float(float_bits(swap ? c : s) ^ (quarter << 30 & 0x80000000u));
}

// The normals (color, pixel) of the pixels (row, column ... column + 3) of an image.
ZIP_DEVICE void normals(const ZipBatch& batch, const ZipImage& entry, unsigned step, unsigned row, unsigned column,
                        float (&z)[3][4]) {
  unsigned c0[4], c1[4], c2[4], c3[4];
  for (unsigned m = 0; m < 4; ++m) {
    c0[m] = row << 16 | (column + m);
    c1[m] = step;
    c2[m] = entry.id_low;
    c3[m] = entry.id_high;
  }
  philox(c0, c1, c2, c3, batch.seed_low, batch.seed_high);
  float cosine[4], sine[4], first[4], third[4], second[4], unused[4];
  for (int m = 0; m < 4; ++m) unit_circle(c1[m], cosine[m], sine[m]);
  for (int m = 0; m < 4; ++m) first[m] = radius(c0[m]);
  for (int m = 0; m < 4; ++m) unit_circle(c3[m], third[m], unused[m]);
  for (int m = 0; m < 4; ++m) second[m] = radius(c2[m]);
  for (int m = 0; m < 4; ++m) {
    z[0][m] = first[m] * cosine[m];
    z[1][m] = first[m] * sine[m];
    z[2][m] = second[m] * third[m];
  }
}
