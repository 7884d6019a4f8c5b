"""Everything that only a GPU can tell, by one command: ``make gpu-check`` or ``python -m bench.gpu_check``.

Builds the kernels, runs the tests marked gpu, compute-sanitizer over the kernels' tests, the kernels' benchmark and the
loop's, and leaves JSON records with the card's name and a log of each step. A step that fails, or takes too long, does
not stop the others. It needs the source tree, Python with NumPy and Pillow, and for each step what that step names;
what is missing is said.
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
    """One line of the table: a command, the seconds it may take, and the Python packages and programs it needs."""

    name: str
    command: list[str]
    limit: int
    needs: tuple[str, ...] = ()


def steps(args: argparse.Namespace, out: Path) -> list[Step]:
    python, quick = sys.executable, ["--quick"] * args.quick
    build = str(out / "build")
    bench = [python, "-m", "bench.gpu.loop", "--out", str(out), *quick]
    # into the source tree, which need not be installed; the kernels' tests and benchmark launch more than the loop does
    configure = f"cmake -S . -B {build} -DZIPSDK_TEST_KERNELS=ON"
    cmake = f"{configure} && cmake --build {build} && cmake --install {build} --prefix ."
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    # the kernels' tests launch by the driver alone, so that the sanitizer sees nothing but them
    kernels = ["tests/kernels/test_kernels.py", "tests/kernels/test_kernel_step.py"]
    if args.rehearse:
        tiny = ["--rehearse", "--engine", "torch", "--batch", "2"]
        return [
            Step("gpu tests: loop", [*tests, "tests/zipsdk/gpu/test_gpu.py"], 200, ("pytest", "pycuda")),
            Step("loop: zip-tiny, torch", [*bench, *tiny], 200, ("torch",)),
        ]
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
             [python, "-m", "bench.gpu.kernels", "--device", args.device, "--out", str(out), *quick], 300, ("torch",)),
        Step("loop: zip-tiny, best engine", [*bench, "--batch", "1,7,64"], 200, ("onnxruntime", "pycuda")),
        Step("loop: zip-tiny, torch", [*bench, "--engine", "torch", "--batch", "1,7,64"], 300, ("torch", "pycuda")),
        *(
            Step(f"loop: ADM-256 {precision}, torch",
                 [*bench, "--engine", "torch", "--random-adm", "--precision", precision, "--soak", "20"], 500,
                 ("torch", "pycuda"))
            for precision in (("bf16",) if args.quick else ("bf16", "fp16", "fp32"))
        ),
    ]  # fmt: skip


def missing(step: Step) -> list[str]:
    """What the step needs and this machine lacks: packages and programs."""
    return [n for n in step.needs if not shutil.which(n) and (not n.isidentifier() or not importlib.util.find_spec(n))]


def run(step: Step, log: Path, environment: dict[str, str]) -> tuple[str, float]:
    """("passed", "failed (3)", "took too long" or "left out: ..."), seconds."""
    if lacking := missing(step):
        return f"left out: no {', '.join(lacking)}", 0.0
    start = time.perf_counter()
    with log.open("w") as f:
        # a session of its own, so that what the step has started ends with it and leaves the GPU to the next one
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
        text = "failed (no test ran)"  # skipping everything is no success here
    return text, time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument(
        "--out", type=Path, default=record.RESULTS, help="for records and logs (default: bench/results)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and models")
    parser.add_argument("--only", default="", metavar="TEXT", help="the steps whose names have TEXT in them")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, to see that the steps work; give --out")
    args = parser.parse_args(argv)
    if args.rehearse and args.out == record.RESULTS:
        parser.error("--rehearse: give --out, so that nothing is mistaken for a measurement")
    out = args.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if args.rehearse:
        environment["ZIPSDK_FAKE_CUDA"] = "1"
    results = {}
    for number, step in enumerate(steps(args, out)):
        if args.only not in step.name:
            continue
        print(f"{step.name} ...", flush=True)
        log = out / "logs" / f"{number:02}-{step.name.replace(' ', '-').replace(':', '').replace(',', '')}.log"
        results[step.name] = run(step, log, environment)
        print(f"  {results[step.name][0]}, {results[step.name][1]:.0f} s", flush=True)
        table = {name: {"result": text, "seconds": round(took, 1)} for name, (text, took) in results.items()}
        # after each step: whoever stops this early keeps what was done
        record.write("gpu-check" + ("-rehearsal" if args.rehearse else ""), {"steps": table}, out)
    width = max(map(len, results), default=0)
    print("\n" + "\n".join(f"{name:<{width}}  {text:<28} {took:6.0f} s" for name, (text, took) in results.items()))
    bad = [name for name, (text, _) in results.items() if text != "passed" and not text.startswith("left out: this")]
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
