// All kernels as one file for nvcc (CMakeLists.txt: one fatbin) and for g++ (host.cpp).
//
// One batch: zip_ingest; for a warm start zip_step with the row described at ZipStep; 20 times the UNet and zip_step in
// place; zip_egress. If the images do not cover the frames, zip_fill runs before each UNet call.
#include "egress.cuh"
#include "ingest.cuh"
#include "step.cuh"
#ifdef ZIPSDK_TEST_KERNELS
#include "test_kernels.cuh"
#endif
