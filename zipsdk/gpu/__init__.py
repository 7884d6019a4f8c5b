"""Run the sampling loop on a CUDA GPU.

loop.py, run.py         batches on the GPU: upload, steps, download; the rules when memory runs out
steps.py                the steps of one batch, kernel by kernel or as a CUDA graph
buffers.py, device.py   memory for each image size; the driver: streams, events, graphs
structs.py              the structs of kernels/zip.h, where the kernels are
protocols.py            what an engine offers to the loop
fatbin.py               the compiled kernels
"""
