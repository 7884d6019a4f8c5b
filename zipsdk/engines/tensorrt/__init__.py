"""Build and run plans of TensorRT and TensorRT-RTX.

build.py, request.py, progress.py   build a plan: its options, its progress
engine.py, memory.py                run a plan: contexts, device memory
plan_file.py                        the sidecar of a plan
flavor.py, context_api.py           differences of the two libraries and of their versions
"""
