"""ONNX -> TensorRT plan, with TensorRT 10 and 11 ("trt") and TensorRT for RTX ("rtx").

One code path: what the flavors and versions differ in is asked of the module (``hasattr``), never of a version's
number. Networks are strongly typed: precision is in the graph. A plan is code, so beside it lies a JSON file with its
hash and all that decides whether it can run somewhere; see `zipsdk.engines.tensorrt.engine` for the running.

Source: NVIDIA's TensorRT and TensorRT-RTX Python API references and their migration guides.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zipsdk._util.atomic import write_atomically
from zipsdk._util.runtimes import load
from zipsdk._util.validation import is_whole
from zipsdk.engines.tensorrt.flavor import RTX_LOWEST, collecting_logger, compute_capabilities, installed, runtime
from zipsdk.errors import EngineError, InputError, MissingExtra, ModelError
from zipsdk.models.sidecar import check_sidecar, sha256_file, write_sidecar
from zipsdk.models.spec import METADATA_KEY, ModelSpec


def spec_of(path: Path) -> ModelSpec:
    """The spec in an ONNX file; its weights are not read.

    Raises:
        ModelError: it is not a readable ONNX file or has no spec.
        MissingExtra: onnx is not installed.
    """
    onnx = load("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as e:  # protobuf's and onnx's own classes
        raise ModelError(f"{path}: not a readable ONNX model ({str(e)[:200]}); copy or export it again") from e
    metadata = {p.key: p.value for p in model.metadata_props}
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"{path}: got an ONNX model without a zipsdk spec; export the checkpoint with python -m export"
        )
    return ModelSpec.from_json(metadata[METADATA_KEY], str(path))


def check_options(
    flavor: str | None, batches: Sequence[int], targets: Sequence[str] | None
) -> tuple[Any, str, list[int], list[int]]:
    """The options of `build` that need no model: the flavor's module and name, the batches, and the targets' numbers.

    Raises:
        InputError, EngineError, MissingExtra: as `build`.
    """
    if flavor is None:
        found = installed()
        if not found:
            raise MissingExtra("tensorrt", "gpu", "nor is tensorrt_rtx, which zipsdk[rtx] brings")
        if len(found) > 1:
            raise InputError(f"flavor: both {' and '.join(found)} are installed; say which one")
        flavor = found[0]
    trt = runtime(flavor)
    return trt, flavor, _batches(batches), _targets(trt, flavor, targets)


def build(
    model: str | Path,
    output: str | Path,
    *,
    flavor: str | None = None,
    batches: Sequence[int] = (1, 8, 64),
    sizes: Sequence[int] | None = None,
    targets: Sequence[str] | None = None,
    progress: Callable[[str, int, int], bool] | None = None,
) -> dict[str, Any]:
    """Compile an ONNX model into a plan and its sidecar ``<output>.json``.

    Args:
        model: an ``.onnx`` file that zipsdk exported.
        output: the plan; written atomically, an interrupted build leaves nothing.
        flavor: "trt" or "rtx"; None takes the only one that is installed.
        batches: one optimisation profile each. The first serves batches up to the first number, the second those above
            it up to the second number, and so on; each is tuned for its largest.
        sizes: sides of the canvas: (only one,) or (smallest, the one to tune for, largest). None takes all that the
            model takes, tuned for its own canvas. Fewer sizes need less memory.
        targets: "sm86" and the like, TensorRT-RTX only; None builds for all that it knows from sm80. TensorRT always
            builds for the GPU that is present.
        progress: called with a phase's name, the steps done and their number; False stops the build, and so does what
            it raises.

    Returns:
        What the sidecar says.

    Raises:
        InputError: an option that cannot be met.
        ModelError: the ONNX file is damaged, or has no spec.
        EngineError: TensorRT refuses the model, was stopped, or has no GPU to build for.
        MissingExtra: there is no TensorRT.
        OSError: the plan cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the build stops at its next step.
    """
    model, output = Path(model), Path(output)
    trt, flavor, batches, numbers = check_options(flavor, batches, targets)
    if not model.is_file():
        raise ModelError(f"{model}: there is no such file; check the path")
    check_sidecar(model)
    spec = spec_of(model)
    if spec.precision == "int8":  # TensorRT-RTX 1.7 refuses the biases that ONNX Runtime's quantiser leaves in 32 bits
        raise ModelError(
            f"{model}: got a model quantised for ONNX Runtime on CPUs, wanted fp32, fp16 or bf16; "
            "build the plan of the model that it was made from"
        )
    spec, sides = _sizes(spec, sizes)
    # before minutes of work, and not after them
    output.parent.mkdir(parents=True, exist_ok=True)

    log = collecting_logger(trt)
    # named even where all are wanted: what TensorRT-RTX takes by itself makes another plan than this list does
    plan = _compile(trt, log, model, spec, sides, batches, numbers if flavor == "rtx" else None, progress)
    write_atomically(output, memoryview(plan))
    record = {
        "plan": {
            "flavor": flavor,
            "runtime": trt.__version__,
            "targets": [f"sm{n}" for n in numbers],
            "batches": list(batches),
            "sizes": list(sides),
            "onnx": {"name": model.name, "sha256": sha256_file(model)},
            "system": f"{platform.system()} {platform.machine()}",
        },
        "spec": json.loads(spec.to_json()),
    }
    write_sidecar(output, record)
    return record


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C has been pressed inside.

    KeyboardInterrupt raised in a callback of TensorRT, of which the logger is one, is printed there and lost, and the
    build goes on to its end.
    """
    pressed = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # somebody else's: theirs
        yield pressed.is_set
        return
    signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _compile(
    trt: Any, log: Any, model: Path, spec: ModelSpec, sides: tuple[int, int, int], batches: Sequence[int],
    targets: Sequence[int] | None, progress: Callable[[str, int, int], bool] | None,
) -> Any:  # fmt: skip
    with _interruptible() as pressed:
        plan = _serialized(trt, log, model, spec, sides, batches, targets, progress, pressed)
        if pressed():
            raise KeyboardInterrupt
    return plan


def _serialized(
    trt: Any, log: Any, model: Path, spec: ModelSpec, sides: tuple[int, int, int], batches: Sequence[int],
    targets: Sequence[int] | None, progress: Callable[[str, int, int], bool] | None, pressed: Callable[[], bool],
) -> Any:  # fmt: skip
    stopped = False
    raised: BaseException | None = None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            nonlocal stopped, raised
            if stopped or pressed():
                return False
            try:
                stopped = progress is not None and not progress(
                    phase_name, step + 1, self.steps.get(phase_name, step + 1)
                )
            except BaseException as e:  # C++ called us: nothing may be thrown through it
                stopped, raised = True, e
            return not stopped

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    try:
        builder = trt.Builder(log)
    except Exception as e:  # without a GPU, classic TensorRT's constructor fails
        raise EngineError(f"{_name(trt)} cannot build here ({log.text()}); {_needs_gpu(trt)}") from e
    flags = trt.NetworkDefinitionCreationFlag.__members__
    network = builder.create_network(1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0)
    parser = trt.OnnxParser(network, log)
    # by path, and an absolute one: given bytes it looks for external data in the working directory
    if not parser.parse_from_file(str(model.resolve())):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors) or log.text()
        raise ModelError(f"{model}: {_name(trt)} cannot read it ({said[:400]}); export it again")
    config = builder.create_builder_config()
    if "REQUIRE_USER_ALLOCATION" in trt.BuilderFlag.__members__:
        # an engine that allocates by itself cannot be captured into a CUDA graph
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if targets is not None:
        config.num_compute_capabilities = len(targets)
        for i, n in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{n}"), i)
    lowest = 1
    for most in batches:
        profile = builder.create_optimization_profile()
        shapes = [(b, spec.channels, s, s) for b, s in zip((lowest, most, most), sides, strict=True)]
        profile.set_shape(spec.input_x, *shapes)
        profile.set_shape(spec.input_t, *((shape[0],) for shape in shapes))
        config.add_optimization_profile(profile)
        lowest = most + 1
    config.progress_monitor = Monitor()
    plan = builder.build_serialized_network(network, config)
    if raised is not None:
        raise raised
    if pressed():
        return None
    if stopped:
        raise EngineError(f"{model}: the build was stopped; nothing was written")
    if plan is None:
        raise EngineError(f"{model}: {_name(trt)} cannot build it ({log.text()})")
    return plan


def _name(trt: Any) -> str:
    return f"{'TensorRT-RTX' if hasattr(trt, 'ComputeCapability') else 'TensorRT'} {trt.__version__}"


def _needs_gpu(trt: Any) -> str:
    return "see zipsdk doctor" if hasattr(trt, "ComputeCapability") else "it builds on the GPU that is to run the plan"


def _batches(batches: Sequence[int]) -> list[int]:
    if not isinstance(batches, Iterable):
        raise InputError(f"batches: got {batches!r}, expected several whole numbers, such as [1, 8, 64]")
    given = list(batches)
    if not given or any(not is_whole(b) or b < 1 for b in given):
        raise InputError(f"batches: got {given}, wanted whole numbers of at least 1, such as 1, 8, 64")
    if given != sorted(set(given)):
        raise InputError(f"batches: got {given}, wanted each larger than the one before")
    return [int(b) for b in given]


def _sizes(spec: ModelSpec, sizes: Sequence[int] | None) -> tuple[ModelSpec, tuple[int, int, int]]:
    """The spec of what is built, and (smallest, tuned for, largest)."""
    if sizes is None:
        return spec, (spec.min_side, spec.canvas, spec.max_side)
    if len(sizes) not in (1, 3) or not all(map(is_whole, sizes)):
        raise InputError(
            f"sizes: got {list(sizes)}, wanted one side, or the smallest, the usual and the largest, in whole pixels"
        )
    low, usual, high = (int(s) for s in (sizes if len(sizes) == 3 else [sizes[0]] * 3))
    ok = spec.min_side <= low <= usual <= high <= spec.max_side
    if not ok or any(s % spec.multiple for s in (low, usual, high)):
        raise InputError(
            f"sizes: got {list(sizes)}, wanted rising multiples of {spec.multiple} in {spec.min_side}..{spec.max_side} "
            f"for {spec.name}"
        )
    return dataclasses.replace(spec, min_side=low, canvas=usual, max_side=high), (low, usual, high)


def _targets(trt: Any, flavor: str, targets: Sequence[str] | None) -> list[int]:
    """Return the compute capabilities, times ten, that the plan is for."""
    if targets is not None and (not isinstance(targets, Iterable) or not all(isinstance(t, str) for t in targets)):
        raise InputError(f"targets: got {targets!r}, expected names of GPUs, such as ['sm86']")
    if flavor == "trt":
        if targets:
            raise InputError(
                f"targets: got {', '.join(targets)}, but TensorRT builds for the GPU that is present; "
                "leave them out and build on the GPU that is to run the plan, or use TensorRT-RTX"
            )
        from zipsdk.gpu.device import open_device

        major, minor = open_device(0).capability
        return [10 * major + minor]
    known = compute_capabilities(trt)
    if targets is None:
        return known
    numbers = []
    for target in targets:
        match = re.fullmatch(r"sm_?(\d{2,3})", target.lower())
        if match is None or int(match[1]) not in known:
            why = ""
            if match is not None and int(match[1]) < RTX_LOWEST:
                why = f" (below sm{RTX_LOWEST} TensorRT-RTX is known to return zeros in silence)"
            raise InputError(
                f"targets: got {target!r}{why}, wanted some of {', '.join(f'sm{n}' for n in known)}; for other GPUs "
                "use TensorRT or ONNX Runtime"
            )
        numbers.append(int(match[1]))
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"targets: got {list(targets)}, wanted each once, and at least one")
    return numbers
