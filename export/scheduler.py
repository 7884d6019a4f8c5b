"""Read the noise process of a model from diffusers' ``scheduler_config.json``, and replace values by flags.

Only properties of the training are read: schedule, number of steps and prediction type. Options of sampling
(``timestep_spacing``, ``use_karras_sigmas``, ``clip_sample``, ``thresholding``) are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zipsdk._util.validation import is_int, is_real
from zipsdk.errors import ModelError
from zipsdk.models.noise_schedule import SCHEDULES, NoiseSchedule

from .flags import NOISE, Flags, OnProgress
from .json_config import JsonConfig
from .unet_config import PREDICTIONS


@dataclass(frozen=True, kw_only=True)
class NoiseProcess(NoiseSchedule):
    """Extend the noise schedule by the prediction of the network, one of `PREDICTIONS`."""

    prediction: str = "epsilon"

    def __str__(self) -> str:
        ends = f" {self.beta_start:g} to {self.beta_end:g}" if "linear" in self.beta_schedule else ""
        return f"{self.beta_schedule} schedule{ends}, {self.timesteps} steps, {self.prediction} prediction"


_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_HO = (NoiseSchedule.beta_start, NoiseSchedule.beta_end)
_LATENT = (0.00085, 0.012)
#: Samplers of discrete variance-preserving models, with their defaults of beta_start and beta_end.
_KNOWN = {
    "DDPMScheduler": _HO, "DDPMParallelScheduler": _HO, "DDIMScheduler": _HO, "DDIMParallelScheduler": _HO,
    "DDIMInverseScheduler": _HO, "PNDMScheduler": _HO, "DEISMultistepScheduler": _HO, "RePaintScheduler": _HO,
    "DPMSolverMultistepScheduler": _HO, "DPMSolverMultistepInverseScheduler": _HO, "DPMSolverSinglestepScheduler": _HO,
    "UniPCMultistepScheduler": _HO, "SASolverScheduler": _HO, "EulerDiscreteScheduler": _HO,
    "EulerAncestralDiscreteScheduler": _HO, "LMSDiscreteScheduler": _HO, "HeunDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT, "KDPM2AncestralDiscreteScheduler": _LATENT, "DPMSolverSDEScheduler": _LATENT,
}  # fmt: skip
_FLOW = "a flow-matching model"
_OTHER_FAMILIES = {
    "Flow": _FLOW, "ScoreSdeVe": "a variance-exploding model", "ScoreSdeVp": "a continuous-time model",
    "EDM": "an EDM model", "CosineDPMSolver": "an EDM model", "CMStochastic": "a consistency model",
    "KarrasVe": "a variance-exploding model", "LCM": "a distilled model", "TCD": "a distilled model",
}  # fmt: skip


def read_scheduler(path: Path) -> NoiseProcess:
    """Read ``scheduler_config.json``.

    Raises:
        ModelError: the file has no JSON object, or the noise process is not supported; the message names its kind.
    """
    try:
        return _process(JsonConfig(path, "noise process"))
    except TypeError as e:  # a list or an object in place of a word
        raise ModelError(f"{path}: not a scheduler's configuration ({e!r}); copy it again") from e


def _process(s: JsonConfig) -> NoiseProcess:
    kind = s.get("_class_name", "DDPMScheduler")
    _check_kind(s, kind)
    # Before version 0.10, a flag stood for prediction_type.
    prediction = s.get("prediction_type", "epsilon" if s.get("predict_epsilon", True) else "sample")
    s.require(prediction in _PREDICTIONS, "prediction_type", prediction, f"one of {', '.join(_PREDICTIONS)}")
    timesteps, given = s.get("num_train_timesteps", 1000), s.get("trained_betas")
    s.require(is_int(timesteps) and timesteps >= 2, "num_train_timesteps", timesteps, "an integer of at least 2")
    process = NoiseProcess(timesteps=int(timesteps), prediction=_PREDICTIONS[prediction])
    if given is not None:
        numbers = isinstance(given, list) and all(is_real(beta) and 0 < beta < 1 for beta in given)
        s.require(numbers, "trained_betas", str(given)[:40], "a list of numbers in (0, 1)")
        s.require(
            len(given) == timesteps, "trained_betas", f"{len(given)} numbers", f"num_train_timesteps = {timesteps}"
        )
        return replace(process, beta_schedule="betas", betas=tuple(map(float, given)))
    schedule, ends = s.get("beta_schedule", "linear"), _KNOWN[kind]
    s.require(schedule in _SCHEDULES, "beta_schedule", schedule, f"one of {', '.join(_SCHEDULES)}")
    start, end = s.get("beta_start", ends[0]), s.get("beta_end", ends[1])
    s.require(is_real(start) and is_real(end) and 0 < start < end < 1, "beta_start and beta_end", (start, end),
              "0 < beta_start < beta_end < 1")  # fmt: skip
    if schedule == "squaredcos_cap_v2":  # it ignores the ends
        start, end = _HO
    return replace(process, beta_schedule=_SCHEDULES[schedule], beta_start=float(start), beta_end=float(end))


def _check_kind(s: JsonConfig, kind: Any) -> None:
    """Refuse the schedulers of models that are not discrete, variance-preserving and undistilled."""
    for prefix, family in _OTHER_FAMILIES.items():
        if str(kind).startswith(prefix):
            raise ModelError(
                f"{s.path}: {kind} belongs to {family}, expected a DDPM-like model's scheduler (with an alpha-bar per "
                "step and no distillation); this noise process is not supported"
            )
    s.require(kind in _KNOWN, "_class_name", kind, "a scheduler of DDPM-like models, such as DDPMScheduler")
    prediction = s.get("prediction_type")
    s.require(not s.get("use_flow_sigmas") and prediction != "flow_prediction", "prediction_type", prediction,
              f"a DDPM-like model's, and this is {_FLOW}")  # fmt: skip
    discrete = s.get("timestep_type", "discrete")
    s.require(discrete == "discrete", "timestep_type", discrete, "'discrete'")
    zero_snr = s.get("rescale_betas_zero_snr")
    s.require(not zero_snr, "rescale_betas_zero_snr", zero_snr,
              "false: with zero terminal SNR alpha-bar ends at 0, and the loop divides by it")  # fmt: skip


def find_scheduler(weights: Path) -> Path | None:
    """Return the scheduler's file, beside the weights or in the pipeline's folder ``scheduler``, or None."""
    folder = weights.parent.absolute()
    candidates = (folder, folder.parent / "scheduler") if folder.name != ".." else (folder,)
    return next((f for c in candidates if (f := c / "scheduler_config.json").is_file()), None)


def resolve(
    found: NoiseProcess | None, flags: Flags, where: str, on_progress: OnProgress, *, rescaled: bool = False
) -> NoiseProcess:
    """Return the noise process of a file, with values replaced by the flags that were given.

    Args:
        found: the file's noise process, or None without a file.
        flags: they replace the file's values.
        where: the file, or what is missing, for messages.
        on_progress: takes a line on what was read, assumed or replaced.
        rescaled: the default betas are Ho et al.'s times 1000 / T, as in guided-diffusion's linear schedule.

    Raises:
        ModelError: the flags give no valid schedule.
    """
    process = found or NoiseProcess()
    changes: dict[str, Any] = {
        field: value
        for name, field in zip(NOISE, ("beta_schedule", *NOISE[1:]), strict=True)
        if (value := getattr(flags, name)) is not None
    }  # fmt: skip
    _check(changes, process)
    if process.betas and changes.keys() - {"prediction"}:
        if "beta_schedule" not in changes:
            raise ModelError(f"{where}: got trained_betas and flags of another schedule, expected one of them; give "
                             "--noise-schedule to replace trained_betas, or no flag")  # fmt: skip
        changes["betas"] = ()
    result = replace(process, **changes)
    if rescaled and result.beta_schedule == "linear":
        scale = 1000 / result.timesteps
        ends: dict[str, Any] = {"beta_start": _HO[0] * scale, "beta_end": _HO[1] * scale}
        result = replace(result, **{k: v for k, v in ends.items() if k not in changes})
    if not 0 < result.beta_start < result.beta_end < 1:
        raise ModelError(f"--beta-start and --beta-end: got {result.beta_start:g} and {result.beta_end:g}, "
                         "expected 0 < beta_start < beta_end < 1")  # fmt: skip
    if found is None:
        missing = {"noise_schedule", "prediction", "timesteps"} - {n for n in NOISE if getattr(flags, n) is not None}
        if missing:
            on_progress(f"{where}; assuming {result}. Change it with --noise-schedule, --prediction, --timesteps, "
                        "--beta-start, --beta-end")  # fmt: skip
    else:
        replaced = [f"{field} {getattr(process, field)} by {value}" for field, value in changes.items()
                    if field != "betas" and getattr(process, field) != value]  # fmt: skip
        on_progress(f"{where}: {process}" + (f"; flags replace {', '.join(replaced)}" if replaced else ""))
    return result


def _check(changes: dict[str, Any], process: NoiseProcess) -> None:
    given = {"noise schedule": (changes.get("beta_schedule", process.beta_schedule), SCHEDULES),
             "prediction": (changes.get("prediction", process.prediction), PREDICTIONS)}  # fmt: skip
    for name, (got, known) in given.items():
        if got not in known or (got == "betas" and "beta_schedule" in changes):
            raise ModelError(f"{name}: got {got!r}, expected one of {known}")
    timesteps = changes.get("timesteps", process.timesteps)
    if not (is_int(timesteps) and 2 <= timesteps <= 100_000):
        raise ModelError(f"--timesteps: got {timesteps!r}, expected 2 to 100000")
