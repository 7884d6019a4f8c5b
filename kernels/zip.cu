// All kernels, as one file for nvcc (CMakeLists.txt: one fatbin) and for g++ (host.cpp).
//
// One batch: zip_ingest; for a warm start zip_step with the row that ZipStep names; 20 times the UNet and zip_step, in
// place; zip_egress. Where pictures leave some of a canvas free, zip_fill goes before each run of the UNet.
#include "egress.cuh"
#include "ingest.cuh"
#include "step.cuh"
#ifdef ZIPSDK_TEST_KERNELS
#include "test_kernels.cuh"
#endif
