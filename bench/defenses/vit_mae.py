"""ViT-MAE, the masked autoencoder that BDMAE was published with: 224 x 224 pixels as 14 x 14 tokens.

    vit_mae("folder")    with a user's weights in the format of `transformers`
    random_vit_mae()     the ViT-MAE-base architecture with random weights, to measure its cost

Both return a `Restorer` (see mae.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.defenses.mae import Restorer
from bench.victims import training
from zipsdk.errors import MissingDependencyError, ModelError
from zipsdk.models.sidecar import sha256_file

#: Mean and standard deviation of ImageNet's colors, which ViT-MAE was trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _ViTMAE:
    """`transformers`' ViT-MAE as a Restorer.

    The model hides the tokens with the largest noise, and its configuration fixes their number. So images are processed
    in groups with equally many hidden tokens.
    """

    def __init__(self, model: Any, info: dict[str, Any], device: str):
        training.check_device(device)
        config = model.config
        if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int) or config.num_channels != 3:
            raise ModelError(
                f"ViT-MAE: got image_size {config.image_size}, patch_size {config.patch_size}, num_channels "
                f"{config.num_channels}, expected one number for both sides, and 3 channels"
            )
        if config.norm_pix_loss:
            raise ModelError(
                "ViT-MAE: got a model trained with norm_pix_loss, whose restorations lack each token's brightness and "
                "contrast, expected one trained on plain pixels; use one such as facebook/vit-mae-base"
            )
        self.model, self.info, self.device = model.eval().to(device), info, device
        self.side, self.grid = config.image_size, config.image_size // config.patch_size

    def describe(self) -> dict[str, Any]:
        return self.info

    def __call__(self, images: Tensor, hidden: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (_MEAN, _STD))
        x = (images.to(self.device) - mean) / std
        out = torch.empty_like(images)
        counts = hidden.sum(1)
        order = torch.arange(hidden.shape[1]) / (2 * hidden.shape[1])  # no two are equal
        for count in counts.unique().tolist():
            rows = counts == count
            self.model.config.mask_ratio = (count - 0.5) / hidden.shape[1]  # it rounds the number of kept tokens down
            noise = (hidden[rows] + order).to(self.device)
            with torch.inference_mode():
                tokens = self.model(x[rows.to(self.device)], noise=noise).logits
                out[rows] = (self.model.unpatchify(tokens) * std + mean).cpu()
        return out


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise MissingDependencyError("transformers", "peers", str(e)) from e
    return transformers


def vit_mae(folder: str | Path, device: str = "cpu") -> Restorer:
    """Load a ViT-MAE from a folder, such as a copy of facebook/vit-mae-base, which BDMAE was published with.

    The folder holds config.json and model.safetensors. Nothing is downloaded, and no pickle is read.

    Raises:
        MissingDependencyError: `transformers` is not installed.
        ModelError: no such model in the folder, or one that lacks weights.
        EngineError: no such device.
    """
    library, folder = _transformers(), Path(folder)
    weights = folder / "model.safetensors"
    for file in (folder / "config.json", weights):
        if not file.is_file():
            raise ModelError(
                f"{file}: got no such file, expected a ViT-MAE in safetensors format, unpacked in one folder"
            )
    try:
        model, found = library.ViTMAEForPreTraining.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    # the library documents no error for a damaged file
    except Exception as e:
        raise ModelError(f"{folder}: got a model that cannot be loaded ({e}), expected a pre-trained ViT-MAE") from e
    lacking = sorted(found["missing_keys"]) + sorted(str(k) for k in found["mismatched_keys"])
    if lacking:
        raise ModelError(
            f"{weights}: got none of {len(lacking)} weights ({', '.join(lacking[:3])}), expected encoder and decoder"
        )
    info = {"autoencoder": "ViT-MAE", "config": _sizes(model.config), "sha256": sha256_file(weights)}
    return _ViTMAE(model, info, device)


def random_vit_mae(device: str = "cpu", seed: int = 0, **sizes: int) -> Restorer:
    """Make the ViT-MAE-base architecture with random weights: the cost of BDMAE's autoencoder without its quality.

    Args:
        sizes: arguments of `transformers.ViTMAEConfig` that differ from ViT-MAE-base.

    Raises:
        MissingDependencyError: `transformers` is not installed.
        EngineError: no such device.
    """
    library = _transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = library.ViTMAEForPreTraining(library.ViTMAEConfig(**sizes))
    info = {"autoencoder": "ViT-MAE, random weights", "config": _sizes(model.config), "seed": seed}
    return _ViTMAE(model, info, device)


def _sizes(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration that decide the architecture."""
    names = (
        "image_size",
        "patch_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "decoder_hidden_size",
        "decoder_num_hidden_layers",
        "decoder_num_attention_heads",
        "decoder_intermediate_size",
    )
    return {name: getattr(config, name) for name in names}
