// Shared by all kernels: the structs that the host uploads, the position of images on frames, 4-wide memory access.
//
// Letters as in zipsdk/sampling/schedule.py. Arrays, all in device memory:
//   images  uint8  (k, image_height, image_width, 3)   the images, input and output
//   x_p       uint8  (frames, 3, height, width)            the images on frames; x_P in [-1, 1] is never stored
//   x         float  (frames, 3, height, width)            the state x_t
//   e         float, half or bfloat16, shaped like x         the output of the UNet
//
// Image p lies on frame p / (rows columns), in its tile p % (rows columns), row-major. The kernels use no barriers and
// no shared memory, and every loop is grid-stride: any 1-d launch whose block is a multiple of 32 is correct.
// The number of pixels and of work items must stay below 2^31.
#pragma once

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define ZIP_DEVICE static __device__ __forceinline__
#define ZIP_UNROLL _Pragma("unroll")
// A kernel that reads other pixels is written for a warp: each lane runs the statement under ZIP_LANES(lane), and
// PerLane holds the values that live from one such statement to the next. The host shim uses a loop and an array.
#define ZIP_LANES(lane) if (const unsigned lane = threadIdx.x % 32; true)
template <class T>
struct PerLane {
  T mine;
  __device__ __forceinline__ T& operator[](unsigned) { return mine; }
};
// Add to each lane's value that of lane ^ mask.
static __device__ __forceinline__ void add_across(PerLane<float>& v, int mask) {
  v.mine += __shfl_xor_sync(0xffffffffu, v.mine, mask);
}
ZIP_DEVICE float bits_float(unsigned bits) { return __uint_as_float(bits); }
ZIP_DEVICE unsigned float_bits(float f) { return __float_as_uint(f); }
ZIP_DEVICE float half_float(unsigned short bits) { return __half2float(__ushort_as_half(bits)); }
#else
#include "host.h"
#endif

// Position of images of one size (zipsdk.sampling.tiling.Layout). Passed by value: constant in a captured graph.
struct ZipLayout {
  unsigned height, width;                 // of a frame
  unsigned rows, columns;                 // tiles on a frame
  unsigned tile_height, tile_width;       // an image padded to a multiple of the transforms' cells
  unsigned image_height, image_width; // an image without padding
};

// Header of a batch. Read from device memory, so that one captured graph serves all batches.
struct ZipBatch {
  unsigned images; // k; the last frame may have free tiles
  unsigned frames; // ceil(k / (rows columns))
  unsigned seed_low, seed_high;
};

// One frame at one step: x0 = a x_t - b e;  x0 += w P(x_P - x0);  x_next = c x0 + d e + s z.
// The initial state of a warm start has this form, too: a = b = d = 0, w = 1, c = sqrt(ab), s = sqrt(1-ab),
// t = ZIP_INITIAL, the joint guide, and any finite x and e.
struct ZipStep {
  float a, b, c, d, w, s;
  unsigned t;    // time step, a counter of the noise
  unsigned clip; // clamp x0 to [-1, 1]
};

// One image: its noise key and its row of the guide table.
struct ZipImage {
  unsigned id_low, id_high, guide, unused;
};

// P = sum over l of blur[l] B_l + gray[l] G B_l, with B_l the mean over cells of 2^l x 2^l and G that over the colors.
// Every mean and every joint projector of blurs by 2, 4, 8, 16 and gray has this form, because G commutes with B_l and
// B_l B_m = B_max(l,m). blur[0] is 0, because B_0 = I would keep everything.
struct ZipGuide {
  float blur[5], gray[5];
  unsigned levels; // the highest l in use
  unsigned unused;
};

constexpr unsigned ZIP_INITIAL = 0xFFFFFFFFu; // zipsdk.sampling.noise.STEP_INITIAL

static_assert(sizeof(ZipLayout) == 32 && sizeof(ZipBatch) == 16 && sizeof(ZipStep) == 32 &&
                  sizeof(ZipImage) == 16 && sizeof(ZipGuide) == 48,
              "zipsdk/gpu/structs.py packs the same structs");

struct Half {
  unsigned short bits;
};
struct Bfloat {
  unsigned short bits;
};

ZIP_DEVICE unsigned first_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }
ZIP_DEVICE unsigned threads() { return gridDim.x * blockDim.x; }
ZIP_DEVICE unsigned ceil_div(unsigned n, unsigned d) { return (n + d - 1) / d; }

// Index i of a line of n, mirrored at its end like numpy.pad(mode="reflect").
ZIP_DEVICE unsigned mirror(unsigned i, unsigned n) {
  if (i < n || n == 1) return i < n ? i : 0;
  const unsigned period = 2 * (n - 1), j = i % period;
  return j < n ? j : period - j;
}

// Offset of color 0 of an image's pixel (y, x) in an array shaped like x; the next color is one plane further.
ZIP_DEVICE size_t offset_of(const ZipLayout& a, unsigned image, unsigned y, unsigned x) {
  const unsigned per = a.rows * a.columns, tile = image % per;
  const unsigned row = tile / a.columns * a.tile_height + y, column = tile % a.columns * a.tile_width + x;
  return (size_t(image / per) * 3 * a.height + row) * a.width + column;
}
ZIP_DEVICE size_t plane_of(const ZipLayout& a) { return size_t(a.height) * a.width; }

// Whether the rows of every tile begin at a multiple of four elements, so that one access can read four.
ZIP_DEVICE bool wide_rows(const ZipLayout& a) { return a.width % 4 == 0 && a.tile_width % 4 == 0; }

ZIP_DEVICE float value(float v) { return v; }
ZIP_DEVICE float value(unsigned char v) { return float(v) * (1.0f / 127.5f) - 1.0f; } // of x_P, in [-1, 1]
ZIP_DEVICE float value(Bfloat v) { return bits_float(unsigned(v.bits) << 16); }
ZIP_DEVICE float value(Half v) { return half_float(v.bits); }
ZIP_DEVICE float clamp(float v, float low, float high) { return fminf(fmaxf(v, low), high); }

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// Load or store up to four values of a row. If `wide`, p is aligned to four values.
template <class T>
ZIP_DEVICE void load4(const T* p, unsigned count, bool wide, float (&v)[4]) {
  if (wide && count == 4) {
    const Four<T> q = *reinterpret_cast<const Four<T>*>(p);
    ZIP_UNROLL for (int i = 0; i < 4; ++i) v[i] = value(q.v[i]);
  } else {
    ZIP_UNROLL for (unsigned i = 0; i < 4; ++i) v[i] = i < count ? value(p[i]) : 0.0f;
  }
}
template <class T>
ZIP_DEVICE void store4(T* p, unsigned count, bool wide, const T (&v)[4]) {
  if (wide && count == 4) {
    Four<T> q;
    ZIP_UNROLL for (int i = 0; i < 4; ++i) q.v[i] = v[i];
    *reinterpret_cast<Four<T>*>(p) = q;
  } else {
    ZIP_UNROLL for (unsigned i = 0; i < 4; ++i) if (i < count) p[i] = v[i];
  }
}

// Number of the four values from column x that lie in a row of n.
ZIP_DEVICE unsigned within(unsigned x, unsigned n) { return x >= n ? 0 : n - x < 4 ? n - x : 4; }

// Four pixels of a row of one image, with all their colors: the work item of most kernels.
struct Quad {
  unsigned image, y, left; // (y, left) is the first pixel
  unsigned count;            // of pixels that exist, 1 to 4
  size_t at;                 // offset of the first pixel in an array shaped like x
};

// Call body(quad) for each quad of this thread; an image has `height` rows of `width` pixels.
template <class Body>
ZIP_DEVICE void for_each_quad(const ZipLayout& a, const ZipBatch* batch, unsigned height, unsigned width, Body body) {
  const unsigned across = ceil_div(width, 4), each = across * height;
  const unsigned work = batch->images * each;
  for (unsigned i = first_thread(); i < work; i += threads()) {
    const unsigned image = i / each, y = i % each / across, left = i % each % across * 4;
    body(Quad{image, y, left, within(left, width), offset_of(a, image, y, left)});
  }
}
