// The kernels as a shared library for tests: `zip_host_launch` is like cuLaunchKernel for 1-d launches.
#define ZIPSDK_TEST_KERNELS
#include "zip.cu"

#include <utility>

namespace {

template <auto kernel>
struct Call;
template <class... Arguments, void (*kernel)(Arguments...)>
struct Call<kernel> {
  template <size_t... i>
  static void spread(void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<Arguments*>(arguments[i])...);
  }
  static void run(void** arguments) { spread(arguments, std::index_sequence_for<Arguments...>{}); }
};

struct Entry {
  const char* name;
  void (*run)(void**);
  unsigned lanes; // threads that one call replaces
};

#define KERNEL(name, lanes) {#name, Call<name>::run, lanes}
constexpr Entry kernels[] = {
    KERNEL(zip_philox, 1),       KERNEL(zip_ingest, 1),       KERNEL(zip_fill, 1),          KERNEL(zip_step_f32, 32),
    KERNEL(zip_step_f16, 32),    KERNEL(zip_step_bf16, 32),   KERNEL(zip_egress, 1),        KERNEL(zip_residual_f32, 1),
    KERNEL(zip_residual_f16, 1), KERNEL(zip_residual_bf16, 1), KERNEL(zip_apply, 1),        KERNEL(zip_finish_f32, 1),
    KERNEL(zip_finish_f16, 1),   KERNEL(zip_finish_bf16, 1),
};

} // namespace

// Return 0, or 1 if no kernel has that name.
extern "C" int zip_host_launch(const char* name, unsigned grid, unsigned block, void** arguments) {
  for (const Entry& k : kernels) {
    if (std::strcmp(name, k.name) != 0) continue;
    gridDim.x = grid;
    blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < block; threadIdx.x += k.lanes) k.run(arguments);
    return 0;
  }
  return 1;
}
