"""Run all checks that need a GPU: ``make gpu-check`` or ``python -m bench.gpu_check``.

Builds the kernels, runs the tests marked gpu, compute-sanitizer over the kernels' tests, and the benchmarks of the
kernels and the loop. Writes JSON records with the GPU's name and a log of each step. A step that fails or takes too
long does not stop the others. Needs the source tree and Python with NumPy and Pillow; a step whose requirements are
missing is left out and names them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.common import record

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Step:
    """One row of the table: a command, its time limit in seconds, and the Python packages and programs it requires."""

    name: str
    command: list[str]
    limit: int
    requires: tuple[str, ...] = ()


def steps(device: str, quick: bool, out: Path) -> list[Step]:
    """List the steps; they write to the folder `out`."""
    python, options = sys.executable, ["--quick"] * quick
    build = str(out / "build")
    bench = [python, "-m", "bench.gpu.loop", "--out", str(out), *options]
    # install into the source tree, so that the package itself need not be installed; tests and benchmarks need kernels
    # that the loop does not launch
    configure = f"cmake -S . -B {build} -DZIPSDK_TEST_KERNELS=ON"
    cmake = f"{configure} && cmake --build {build} && cmake --install {build} --prefix ."
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    # the kernels' tests use the driver alone, so that the sanitizer sees no other kernels
    kernels = ["tests/kernels/test_kernels.py", "tests/kernels/test_kernel_step.py"]
    return [
        Step("build the kernels", ["bash", "-c", cmake], 120, ("cmake", "nvcc")),
        Step("gpu tests: kernels", [*tests, *kernels], 200, ("pytest",)),
        Step("gpu tests: loop", [*tests, "tests/zipsdk/gpu/test_gpu.py"], 200, ("pytest", "pycuda")),
        Step("compute-sanitizer memcheck",
             ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *tests, *kernels],
             300, ("pytest", "compute-sanitizer")),
        Step("compute-sanitizer racecheck",
             ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", *tests, kernels[1]],
             300, ("pytest", "compute-sanitizer")),
        Step("kernels: time and bytes",
             [python, "-m", "bench.gpu.kernels", "--device", device, "--out", str(out), *options], 300, ("torch",)),
        Step("loop: zip-tiny, best engine", [*bench, "--batch", "1,7,64"], 200, ("onnxruntime", "pycuda")),
        Step("loop: zip-tiny, torch", [*bench, "--engine", "torch", "--batch", "1,7,64"], 300, ("torch", "pycuda")),
        *(
            Step(f"loop: ADM-256 {precision}, torch",
                 [*bench, "--engine", "torch", "--random-adm", "--precision", precision, "--soak", "20"], 500,
                 ("torch", "pycuda"))
            for precision in (("bf16",) if quick else ("bf16", "fp16", "fp32"))
        ),
    ]  # fmt: skip


def missing(step: Step) -> list[str]:
    """List the packages and programs that the step requires and this machine lacks."""

    def found(name: str) -> bool:
        return bool(shutil.which(name) or (name.isidentifier() and importlib.util.find_spec(name)))

    return [name for name in step.requires if not found(name)]


def run(step: Step, log: Path, environment: dict[str, str]) -> tuple[str, float]:
    """Run a step; return its result ("passed", "failed (1)", "took longer than ..." or "left out: ...") and seconds."""
    if lacking := missing(step):
        return f"left out: no {', '.join(lacking)}", 0.0
    start = time.perf_counter()
    with log.open("w") as f:
        # a new session, so that its child processes end with it and free the GPU for the next step
        process = subprocess.Popen(step.command, cwd=ROOT, stdout=f, stderr=subprocess.STDOUT, env=environment,
                                   start_new_session=True)  # fmt: skip
        try:
            code = process.wait(step.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"took longer than {step.limit} s", time.perf_counter() - start
    if code == 3 and "bench.gpu.loop" in step.command:
        return "left out: this engine cannot run here", time.perf_counter() - start
    text = "passed" if code == 0 else f"failed ({code})"
    if "-m" in step.command and "pytest" in step.command and " passed" not in log.read_text(errors="replace"):
        text = "failed (no test ran)"  # all tests skipped: not a success
    return text, time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of records and logs")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and models")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the steps whose names contain TEXT")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    results = {}
    for number, step in enumerate(steps(args.device, args.quick, out)):
        if args.only not in step.name:
            continue
        print(f"{step.name} ...", flush=True)
        log = out / "logs" / f"{number:02}-{step.name.replace(' ', '-').replace(':', '').replace(',', '')}.log"
        results[step.name] = run(step, log, environment)
        print(f"  {results[step.name][0]}, {results[step.name][1]:.0f} s", flush=True)
        table = {name: {"result": text, "seconds": round(took, 1)} for name, (text, took) in results.items()}
        # after each step, so that an interrupted check keeps its results
        record.write("gpu-check", {"steps": table}, out)
    width = max(map(len, results), default=0)
    print("\n" + "\n".join(f"{name:<{width}}  {text:<28} {took:6.0f} s" for name, (text, took) in results.items()))
    bad = [name for name, (text, _) in results.items() if text != "passed" and not text.startswith("left out: this")]
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
