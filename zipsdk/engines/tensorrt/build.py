"""Build plans from ONNX models, with TensorRT 10 and 11 ("trt") or TensorRT for RTX ("rtx").

Differences of flavors and versions are looked up in the module (``hasattr``), never inferred from version numbers.
Networks are strongly typed: the precision is in the graph. A plan is code, so its sidecar holds its hash and all that
decides where it can run; `zipsdk.engines.tensorrt.engine` runs it.

Source: NVIDIA's TensorRT and TensorRT-RTX Python API references and their migration guides.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zipsdk._util.atomic import write_atomically
from zipsdk._util.runtimes import load
from zipsdk.engines.tensorrt.flavor import collecting_logger
from zipsdk.engines.tensorrt.progress import Progress, create_monitor, interruptible
from zipsdk.engines.tensorrt.request import BuildRequest, restrict_sizes
from zipsdk.errors import EngineError, ModelError
from zipsdk.models.sidecar import check_sidecar, sha256_file, write_sidecar
from zipsdk.models.spec import METADATA_KEY, ModelSpec


def build(
    model: str | Path,
    output: str | Path,
    *,
    flavor: str | None = None,
    batches: Sequence[int] = (1, 8, 64),
    sizes: Sequence[int] | None = None,
    targets: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a plan and its sidecar ``<output>.json`` from an ONNX model.

    Args:
        model: an ``.onnx`` file that zipsdk exported.
        output: the plan; written atomically, an interrupted build leaves no file.
        flavor: "trt" or "rtx"; None takes the only one that is installed.
        batches: one optimization profile each. The first serves batches up to the first number, the second those above
            it up to the second number, and so on; each is tuned for its largest batch.
        sizes: sides of the model's input: (only,) or (smallest, tuned for, largest). None takes all that the model
            takes, tuned for its own size. Fewer sizes need less memory.
        targets: GPUs by name ("sm86"), TensorRT-RTX only; None builds for all it knows from sm80. TensorRT always
            builds for the GPU that is present.
        progress: called with a phase's name, the steps done and their number. The build stops when it returns False or
            raises.

    Returns:
        The sidecar's content.

    Raises:
        InputError: an option cannot be met.
        ModelError: the ONNX file is damaged, or has no spec.
        EngineError: TensorRT refuses the model, was stopped, or has no GPU to build for.
        MissingDependencyError: TensorRT is not installed.
        OSError: the plan cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the build stops at its next step.
    """
    model, output = Path(model), Path(output)
    request = BuildRequest.from_options(flavor, batches, targets)
    if not model.is_file():
        raise ModelError(f"{model}: no such file; check the path")
    check_sidecar(model)
    spec = read_spec(model)
    if spec.precision == "int8":  # TensorRT-RTX 1.7 refuses the 32-bit biases of ONNX Runtime's quantizer
        raise ModelError(
            f"{model}: got a model quantized for ONNX Runtime on CPUs, expected fp32, fp16 or bf16; "
            "build the plan from the original model"
        )
    spec = restrict_sizes(spec, sizes)
    # fail before minutes of work
    output.parent.mkdir(parents=True, exist_ok=True)

    plan = compile_plan(request, model, spec, progress)
    write_atomically(output, memoryview(plan))
    record = {
        "plan": {
            "flavor": request.flavor.key,
            "runtime": request.trt.__version__,
            "targets": request.targets,
            "batches": list(request.batches),
            "sizes": [spec.min_side, spec.image_size, spec.max_side],
            "onnx": {"name": model.name, "sha256": sha256_file(model)},
            "system": f"{platform.system()} {platform.machine()}",
        },
        "spec": json.loads(spec.to_json()),
    }
    write_sidecar(output, record)
    return record


def read_spec(path: Path) -> ModelSpec:
    """Read the spec in an ONNX file, without its weights.

    Raises:
        ModelError: the file is not a readable ONNX model, or has no spec.
        MissingDependencyError: onnx is not installed.
    """
    onnx = load("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as e:  # protobuf's and onnx's own classes
        raise ModelError(f"{path}: not a readable ONNX model ({str(e)[:200]}); copy or export it again") from e
    metadata = {p.key: p.value for p in model.metadata_props}
    if METADATA_KEY not in metadata:
        raise ModelError(f"{path}: got an ONNX model without a zipsdk spec; export the checkpoint with zipsdk export")
    return ModelSpec.from_json(metadata[METADATA_KEY], str(path))


def compile_plan(request: BuildRequest, model: Path, spec: ModelSpec, progress: Progress | None) -> Any:
    """Compile a model into the bytes of a plan; see `build` for the errors."""
    with interruptible() as interrupted:
        plan = PlanBuilder(request, model, spec).build(progress, interrupted)
        if interrupted():
            raise KeyboardInterrupt
    return plan


class PlanBuilder:
    """Build the plan of one model with TensorRT's builder.

    Args:
        request: checked options.
        model: the ONNX file.
        spec: of the plan: its sizes become the profiles' sizes.

    Raises:
        EngineError: TensorRT cannot build on this machine.
    """

    def __init__(self, request: BuildRequest, model: Path, spec: ModelSpec):
        self._request, self._trt, self._model, self._spec = request, request.trt, model, spec
        self._name = f"{request.flavor.name} {self._trt.__version__}"
        self._log = collecting_logger(self._trt)
        try:
            self._builder = self._trt.Builder(self._log)
        except Exception as e:  # without a GPU, classic TensorRT's constructor fails
            rtx = request.flavor.key == "rtx"
            advice = "see zipsdk doctor" if rtx else "build on the GPU that will run the plan"
            raise EngineError(f"{self._name} cannot build on this machine ({self._log.text()}); {advice}") from e

    def parse(self) -> Any:
        """Read the model into a network.

        Raises:
            ModelError: TensorRT cannot read it.
        """
        trt = self._trt
        flags = trt.NetworkDefinitionCreationFlag.__members__
        network = self._builder.create_network(1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0)
        parser = trt.OnnxParser(network, self._log)
        # an absolute path: given bytes, the parser looks for external data in the working directory
        if not parser.parse_from_file(str(self._model.resolve())):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            message = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors) or self._log.text()
            raise ModelError(f"{self._model}: {self._name} cannot read it ({message[:400]}); export it again")
        return network

    def configure(self) -> Any:
        """Create the builder's configuration: memory, targets, and a profile for each batch."""
        trt, spec = self._trt, self._spec
        config = self._builder.create_builder_config()
        if "REQUIRE_USER_ALLOCATION" in trt.BuilderFlag.__members__:
            # an engine that allocates cannot be captured into a CUDA graph
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if self._request.flavor.key == "rtx":
            # for all targets, too: TensorRT-RTX's own default gives another plan than this list
            config.num_compute_capabilities = len(self._request.targets)
            for i, target in enumerate(self._request.targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i)
        lowest = 1
        for most in self._request.batches:
            profile = self._builder.create_optimization_profile()
            sides = (spec.min_side, spec.image_size, spec.max_side)
            shapes = [(b, spec.channels, s, s) for b, s in zip((lowest, most, most), sides, strict=True)]
            profile.set_shape(spec.input_x, *shapes)
            profile.set_shape(spec.input_t, *((shape[0],) for shape in shapes))
            config.add_optimization_profile(profile)
            lowest = most + 1
        return config

    def build(self, progress: Progress | None, interrupted: Callable[[], bool]) -> Any:
        """Parse, configure and compile; return the plan's bytes, or None if `interrupted`.

        Raises:
            ModelError: TensorRT cannot read the model.
            EngineError: TensorRT cannot build it, or `progress` stopped the build.
        """
        network, config = self.parse(), self.configure()
        monitor = create_monitor(self._trt, progress, interrupted)
        config.progress_monitor = monitor
        plan = self._builder.build_serialized_network(network, config)
        if monitor.error is not None:
            raise monitor.error
        if interrupted():
            return None
        if monitor.stopped:
            raise EngineError(f"{self._model}: the build was stopped; nothing was written")
        if plan is None:
            raise EngineError(f"{self._model}: {self._name} cannot build it ({self._log.text()})")
        return plan
