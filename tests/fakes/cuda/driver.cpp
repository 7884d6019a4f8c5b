// A CUDA driver for tests on machines without a GPU: what PyCUDA, kernels/launch.py and zipsdk/gpu call, on host
// memory, with the kernels of the g++ shim. Built as libcuda.so.1 by tests/fakes/cuda/__init__.py.
//
// Work runs at once when it is put on a stream, or when its graph is launched (tests/fakes/device.py is the lazy one).
// It is strict instead: no current context, an unknown address, memory or waiting during a capture are errors, as in
// CUDA. New memory is full of NaN, and what lies beyond it is checked when it is freed.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "../../../kernels/host.cpp"

// cuda.h maps these names to their second versions; callers by name ask for either
#undef cuCtxPopCurrent
#undef cuCtxPushCurrent
#undef cuDevicePrimaryCtxRelease
#undef cuEventElapsedTime

namespace {

using Work = std::function<void()>;
constexpr size_t GUARD = 256;
std::map<CUdeviceptr, size_t> memory;  // address -> bytes
std::set<void*> pinned;
size_t used = 0;
thread_local int depth = 0;            // contexts on this thread's stack
CUstream capturing = nullptr;
bool broken = false;                   // the capture did what it must not
std::vector<Work>* recorded = nullptr;

size_t room() {
  const char* text = std::getenv("FAKE_CUDA_MEMORY");
  return text ? std::strtoull(text, nullptr, 10) : size_t(1) << 30;
}

CUresult forbidden() {
  if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
  if (!capturing) return CUDA_SUCCESS;
  broken = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}
#define OUTSIDE_CAPTURE if (CUresult r = forbidden()) return r

bool known(CUdeviceptr p, size_t n) {
  auto next = memory.upper_bound(p);
  if (next == memory.begin()) return false;
  --next;
  return p >= next->first && p + n <= next->first + next->second;
}

CUresult put(CUstream s, Work work) {
  if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
  if (capturing && s == capturing) recorded->push_back(std::move(work));
  else work();
  return CUDA_SUCCESS;
}

// Where a kernel's arguments lie in the packed buffer of CU_LAUNCH_PARAM_BUFFER_POINTER: each at its own alignment.
struct Arguments {
  std::vector<size_t> offsets, sizes;
  size_t total = 0;
};
template <class... A>
Arguments packed(void (*)(A...)) {
  Arguments a;
  const size_t sizes[] = {sizeof(A)...}, aligns[] = {alignof(A)...};
  for (size_t i = 0; i < sizeof...(A); ++i) {
    a.total = (a.total + aligns[i] - 1) / aligns[i] * aligns[i];
    a.offsets.push_back(a.total);
    a.sizes.push_back(sizes[i]);
    a.total += sizes[i];
  }
  return a;
}
const std::map<std::string, Arguments> signatures = {
#define S(name) {#name, packed(name)}
    S(zip_philox), S(zip_ingest), S(zip_fill), S(zip_step_f32), S(zip_step_f16), S(zip_step_bf16), S(zip_egress),
    S(zip_residual_f32), S(zip_residual_f16), S(zip_residual_bf16), S(zip_apply), S(zip_finish_f32), S(zip_finish_f16),
    S(zip_finish_bf16),
#undef S
};

} // namespace

struct CUgraph_st { std::vector<Work> work; };
struct CUgraphExec_st { std::vector<Work> work; };
struct CUstream_st { int unused; };
struct CUevent_st { timespec at; };

extern "C" {

CUresult cuInit(unsigned) { return std::getenv("FAKE_CUDA_NO_GPU") ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* v) { *v = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* n) { *n = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* d, int i) { *d = i; return i ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* s, int n, CUdevice) { std::snprintf(s, n, "fake GPU"); return CUDA_SUCCESS; }
CUresult cuDeviceTotalMem_v2(size_t* n, CUdevice) { *n = room(); return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) {
  const bool major = a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
  *v = major ? 8 : a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? 6 : 4;
  return CUDA_SUCCESS;
}
CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) { *major = 8; *minor = 6; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** s) { *s = "an error of the fake driver"; return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult, const char** s) { *s = "CUDA_ERROR"; return CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { *c = CUcontext(0x1000); return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { depth = c ? 1 : 0; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) { *c = depth ? CUcontext(0x1000) : nullptr; return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext) { ++depth; return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext) { ++depth; return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent_v2(CUcontext* c) {
  if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
  if (c) *c = CUcontext(0x1000);
  --depth;
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext* c) { return cuCtxPopCurrent_v2(c); }
CUresult cuCtxGetDevice(CUdevice* d) { *d = 0; return depth ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuCtxDetach(CUcontext) { return CUDA_ERROR_INVALID_CONTEXT; } // a primary context is not to be detached
CUresult cuCtxSynchronize() { OUTSIDE_CAPTURE; return CUDA_SUCCESS; }

CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t n) {
  OUTSIDE_CAPTURE;
  if (used + n > room()) return CUDA_ERROR_OUT_OF_MEMORY;
  auto* raw = static_cast<unsigned char*>(std::aligned_alloc(GUARD, (n + GUARD - 1) / GUARD * GUARD + 2 * GUARD));
  std::memset(raw, 0xFF, (n + GUARD - 1) / GUARD * GUARD + 2 * GUARD);
  *p = CUdeviceptr(raw + GUARD);
  memory[*p] = n;
  used += n;
  return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr p) {
  OUTSIDE_CAPTURE;
  auto it = memory.find(p);
  if (it == memory.end()) return CUDA_ERROR_INVALID_VALUE;
  auto* raw = reinterpret_cast<unsigned char*>(p);
  for (size_t i = 0; i < GUARD; ++i)
    if (raw[-1 - long(i)] != 0xFF || raw[it->second + i] != 0xFF) {
      std::fprintf(stderr, "fake CUDA: written beyond %zu bytes\n", it->second);
      std::abort();
    }
  used -= it->second;
  memory.erase(it);
  std::free(raw - GUARD);
  return CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t* f, size_t* t) { *t = room(); *f = *t - used; return CUDA_SUCCESS; }
CUresult cuMemHostAlloc(void** p, size_t n, unsigned) {
  OUTSIDE_CAPTURE;
  *p = std::calloc(1, n + 1);
  pinned.insert(*p);
  return CUDA_SUCCESS;
}
CUresult cuMemAllocHost_v2(void** p, size_t n) { return cuMemHostAlloc(p, n, 0); }
CUresult cuMemFreeHost(void* p) {
  if (!pinned.erase(p)) return CUDA_ERROR_INVALID_VALUE;
  std::free(p);
  return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t n, CUstream s) {
  if (!known(to, n)) return CUDA_ERROR_INVALID_VALUE;
  return put(s, [=] { std::memcpy(reinterpret_cast<void*>(to), from, n); });
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t n, CUstream s) {
  if (!known(from, n)) return CUDA_ERROR_INVALID_VALUE;
  return put(s, [=] { std::memcpy(to, reinterpret_cast<void*>(from), n); });
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
  if (!known(from, n) || !known(to, n)) return CUDA_ERROR_INVALID_VALUE;
  return put(s, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), n); });
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t n) {
  OUTSIDE_CAPTURE;
  return cuMemcpyHtoDAsync_v2(to, from, n, nullptr);
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t n) {
  OUTSIDE_CAPTURE;
  return cuMemcpyDtoHAsync_v2(to, from, n, nullptr);
}

CUresult cuStreamCreate(CUstream* s, unsigned) { OUTSIDE_CAPTURE; *s = new CUstream_st(); return CUDA_SUCCESS; }
CUresult cuStreamDestroy_v2(CUstream s) { delete s; return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { OUTSIDE_CAPTURE; return CUDA_SUCCESS; }
CUresult cuStreamQuery(CUstream) { OUTSIDE_CAPTURE; return CUDA_SUCCESS; }
CUresult cuStreamWaitEvent(CUstream s, CUevent, unsigned) { return put(s, [] {}); }
CUresult cuEventCreate(CUevent* e, unsigned) { OUTSIDE_CAPTURE; *e = new CUevent_st(); return CUDA_SUCCESS; }
CUresult cuEventDestroy_v2(CUevent e) { delete e; return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent e, CUstream s) { return put(s, [=] { clock_gettime(CLOCK_MONOTONIC, &e->at); }); }
CUresult cuEventSynchronize(CUevent) { OUTSIDE_CAPTURE; return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float* ms, CUevent a, CUevent b) {
  *ms = float(b->at.tv_sec - a->at.tv_sec) * 1e3f + float(b->at.tv_nsec - a->at.tv_nsec) * 1e-6f;
  return CUDA_SUCCESS;
}
CUresult cuEventElapsedTime_v2(float* ms, CUevent a, CUevent b) { return cuEventElapsedTime(ms, a, b); }
CUresult cuLaunchHostFunc(CUstream s, CUhostFn f, void* data) { return put(s, [=] { f(data); }); }

CUresult cuModuleLoadData(CUmodule* m, const void* image) {
  OUTSIDE_CAPTURE;
  *m = CUmodule(0x2000);
  return *static_cast<const unsigned*>(image) == 0xBA55ED50 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}
CUresult cuModuleLoadDataEx(CUmodule* m, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(m, image);
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char* name) {
  auto it = signatures.find(name);
  if (it == signatures.end()) return CUDA_ERROR_NOT_FOUND;
  *f = CUfunction(&*it);
  return CUDA_SUCCESS;
}
// PyCUDA sets it before each launch as CUDA 3 wanted it; the launch says it again, and that is what counts
CUresult cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void** parameters, void** extra) {
  const auto& [name, a] = *reinterpret_cast<const std::pair<const std::string, Arguments>*>(f);
  if (!gx || gy != 1 || gz != 1 || !bx || bx > 256 || by != 1 || bz != 1 || shared) return CUDA_ERROR_INVALID_VALUE;
  std::vector<unsigned char> values(a.total); // CUDA copies them at the launch, too
  if (parameters) {
    for (size_t i = 0; i < a.sizes.size(); ++i) std::memcpy(&values[a.offsets[i]], parameters[i], a.sizes[i]);
  } else {
    const void* from = nullptr;
    size_t size = 0;
    for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
      if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) from = extra[1];
      if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *static_cast<size_t*>(extra[1]);
    }
    if (!from || size != a.total) return CUDA_ERROR_INVALID_VALUE;
    std::memcpy(values.data(), from, size);
  }
  return put(s, [name = name.c_str(), &a = a, values, gx, bx]() mutable {
    std::vector<void*> pointers;
    for (size_t offset : a.offsets) pointers.push_back(&values[offset]);
    zip_host_launch(name, gx < 3 ? gx : 3, bx, pointers.data()); // any grid is right, and few blocks are faster here
  });
}

CUresult cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode) {
  OUTSIDE_CAPTURE;
  if (!s) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  capturing = s;
  broken = false;
  recorded = new std::vector<Work>();
  return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream s, CUgraph* g) {
  if (s != capturing) return CUDA_ERROR_ILLEGAL_STATE;
  capturing = nullptr;
  *g = broken ? nullptr : new CUgraph_st{std::move(*recorded)};
  delete recorded;
  return broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec* e, CUgraph g, unsigned long long) {
  OUTSIDE_CAPTURE;
  *e = new CUgraphExec_st{g->work};
  return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec e, CUstream s) {
  return put(s, [=] { for (auto& work : e->work) work(); });
}
CUresult cuGraphDestroy(CUgraph g) { delete g; return CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec e) { delete e; return CUDA_SUCCESS; }
CUresult cuProfilerStop() { return CUDA_SUCCESS; }

} // extern "C"
