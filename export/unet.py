"""Define the UNet of the guided-diffusion family, in torch.

Sources: Dhariwal & Nichol 2021 (arXiv 2105.05233, appendix A and B) and Ho et al. 2020 (arXiv 2006.11239, appendix B).
Module names follow the keys of OpenAI's published checkpoints, which therefore load with ``strict=True`` and no table
of names. One class covers three variants, which `UNetConfig` selects:

- OpenAI's 256x256 model: attention at three scales, resampling inside residual blocks, scale-shift (FiLM) time input;
- diffusers' ``UNet2DModel`` of the DDPM kind: additive time input, strided convolutions, one attention head;
- zip-tiny: fully convolutional, v-prediction inside, epsilon outside.

Ho et al.'s own checkpoints (`export.ho`) are of the second variant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .unet_config import ADM256, ZIP_TINY, UNetConfig

__all__ = [
    "ADM256",
    "ZIP_TINY",
    "AttentionBlock",
    "Downsample",
    "GroupNorm",
    "ResBlock",
    "UNet",
    "UNetConfig",
    "Upsample",
]


class GroupNorm(nn.GroupNorm):
    """Normalize in groups, always in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized x, in x's dtype."""
        return super().forward(x.float()).to(x.dtype)


def timestep_embedding(t: Tensor, dim: int, order: str, shift: int) -> Tensor:
    """Embed time steps in sinusoids of the frequencies exp(-ln(1e4) i / (dim / 2 - shift)).

    Args:
        t: (N,) steps.
        dim: number of sinusoids, even.
        order: "cos_sin" or "sin_cos", which half comes first.
        shift: see above; 1 in Ho et al.'s code, 0 in OpenAI's.

    Returns:
        float32 (N, dim).
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / (half - shift))
    )
    angles = t.float()[:, None] * frequencies[None]
    parts = (angles.cos(), angles.sin()) if order == "cos_sin" else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=1)


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution."""

    def __init__(self, channels: int, asymmetric: bool):
        super().__init__()
        self.asymmetric = asymmetric
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / 2, W / 2)."""
        return self.op(functional.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double height and width by nearest neighbor, then convolve 3x3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2 H, 2 W)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class ResBlock(nn.Module):
    """Apply two normalized convolutions and mix the time step in between; `resample` is "", "up" or "down"."""

    def __init__(self, cfg: UNetConfig, cin: int, cout: int, resample: str = ""):
        super().__init__()
        emb = 4 * cfg.model_channels
        self.resample, self.film = resample, cfg.use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm(cfg.norm_groups, cin, cfg.norm_eps), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * cout if self.film else cout))
        self.out_layers = nn.Sequential(
            GroupNorm(cfg.norm_groups, cout, cfg.norm_eps),
            nn.SiLU(),
            nn.Identity(),  # the checkpoints count their dropout here, which has no weights
            nn.Conv2d(cout, cout, 3, padding=1),
        )
        self.skip_connection: nn.Module = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return functional.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (N, cin, H, W) and the embedding (N, 4 model_channels) to (N, cout, H', W')."""
        h = self.in_layers[2](self._resampled(self.in_layers[1](self.in_layers[0](x))))
        time = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.film:
            scale, shift = time.chunk(2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = rest(norm(h + time))
        return self.skip_connection(self._resampled(x)) + h  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Attend over all pixels. The rows of `qkv` are q, k, v of each head in turn (OpenAI's "legacy" order)."""

    def __init__(self, cfg: UNetConfig, channels: int):
        super().__init__()
        self.heads = cfg.heads(channels)
        self.norm = GroupNorm(cfg.norm_groups, channels, cfg.norm_eps)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        n, c, height, width = x.shape
        flat = x.reshape(n, c, height * width)
        q, k, v = self.qkv(self.norm(flat)).reshape(n * self.heads, 3 * c // self.heads, -1).chunk(3, dim=1)
        scale = (c // self.heads) ** -0.25  # on q and k each, so that float16 does not overflow in the product
        # Softmax in float32: in float16, the sum over 1024 pixels loses small weights. Not by softmax's dtype argument,
        # which the ONNX exporter applies to the result.
        weight = torch.softmax(((q * scale).transpose(1, 2) @ (k * scale)).float(), dim=-1)
        a = (v @ weight.to(v.dtype).transpose(1, 2)).reshape(n, c, -1)
        return (flat + self.proj_out(a)).reshape(n, c, height, width)  # type: ignore[no-any-return]


class Stage(nn.Sequential):
    """Run layers in turn; residual blocks also take the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """Map (N, C, H, W) and the time embedding (N, 4 model_channels) to the output of the last layer."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def _input_blocks(cfg: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Build the blocks from full to coarsest resolution, and return the channels of each one's output."""
    channels = cfg.model_channels * cfg.channel_mult[0]
    blocks = nn.ModuleList([Stage(nn.Conv2d(cfg.in_channels, channels, 3, padding=1))])
    skips = [channels]
    for level, mult in enumerate(cfg.channel_mult):
        for _ in range(cfg.num_res_blocks):
            layers: list[nn.Module] = [ResBlock(cfg, channels, mult * cfg.model_channels)]
            channels = mult * cfg.model_channels
            if 2**level in cfg.attention_downsampling:
                layers.append(AttentionBlock(cfg, channels))
            blocks.append(Stage(*layers))
            skips.append(channels)
        if level < len(cfg.channel_mult) - 1:
            down = (
                ResBlock(cfg, channels, channels, "down")
                if cfg.resblock_updown
                else Downsample(channels, cfg.asymmetric_downsampling)
            )
            blocks.append(Stage(down))
            skips.append(channels)
    return blocks, skips


def _middle_block(cfg: UNetConfig) -> Stage:
    channels = cfg.model_channels * cfg.channel_mult[-1]
    layers: list[nn.Module] = [ResBlock(cfg, channels, channels), ResBlock(cfg, channels, channels)]
    if cfg.attention_downsampling:
        layers.insert(1, AttentionBlock(cfg, channels))
    return Stage(*layers)


def _output_blocks(cfg: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """Build the blocks from coarsest to full resolution; each takes one of `skips`, the last first."""
    channels, skips = cfg.model_channels * cfg.channel_mult[-1], list(skips)
    blocks = nn.ModuleList()
    for level, mult in reversed(list(enumerate(cfg.channel_mult))):
        for i in range(cfg.num_res_blocks + 1):
            layers: list[nn.Module] = [ResBlock(cfg, channels + skips.pop(), mult * cfg.model_channels)]
            channels = mult * cfg.model_channels
            if 2**level in cfg.attention_downsampling:
                layers.append(AttentionBlock(cfg, channels))
            if level and i == cfg.num_res_blocks:
                up = ResBlock(cfg, channels, channels, "up") if cfg.resblock_updown else Upsample(channels)
                layers.append(up)
            blocks.append(Stage(*layers))
    return blocks


class UNet(nn.Module):
    """Predict the noise in an image: eps = UNet(x_t, t), whatever the last convolution predicts.

    Attributes:
        config: the architecture and the noise schedule.
        alphas_cumprod: float32 (T,).
        noise_share: sqrt(1 - alphas_cumprod), float32 (T,); only models that predict "sample" have it.
    """

    alphas_cumprod: Tensor
    noise_share: Tensor

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = cfg = config
        base, emb = cfg.model_channels, 4 * cfg.model_channels
        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.input_blocks, skips = _input_blocks(cfg)
        self.middle_block = _middle_block(cfg)
        self.output_blocks = _output_blocks(cfg, skips)
        channels = base * cfg.channel_mult[0]
        self.out = nn.Sequential(
            GroupNorm(cfg.norm_groups, channels, cfg.norm_eps),
            nn.SiLU(),
            nn.Conv2d(channels, cfg.out_channels, 3, padding=1),
        )
        # The tables are in no checkpoint, so they must be real even where the model is built on the meta device.
        ab = torch.from_numpy(cfg.alphas_cumprod())
        self.register_buffer("alphas_cumprod", ab.float(), persistent=False)
        if cfg.prediction == "sample":  # computed in float64: it starts at 4e-5 and is divided by
            self.register_buffer("noise_share", (1 - ab).sqrt().float(), persistent=False)

    @property
    def torso_dtype(self) -> torch.dtype:
        """Dtype of the torso's convolutions."""
        return self.input_blocks[0][0].weight.dtype  # type: ignore[no-any-return, index]

    def to_torso(self, dtype: torch.dtype) -> UNet:
        """Convert the torso's convolutions to a dtype, in place; time embedding, norms and last layer stay float32."""
        for part in (self.input_blocks, self.middle_block, self.output_blocks):
            for module in part.modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)
        return self

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the output of the last convolution, of the kind that `config.prediction` names.

        Args:
            x: x_t, float (N, 3, H, W); H and W are multiples of ``config.downsampling``.
            t: (N,) in 0..T-1.

        Returns:
            float32 (N, out_channels, H, W).
        """
        cfg = self.config
        t = t if cfg.time_scale == 1 else t * cfg.time_scale
        emb = self.time_embed(timestep_embedding(t, cfg.model_channels, cfg.embedding_order, cfg.embedding_shift))
        h = x.to(self.torso_dtype)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h.float())  # type: ignore[no-any-return]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return epsilon.

        Args:
            x: x_t, float (N, 3, H, W); H and W are multiples of ``config.downsampling``.
            t: (N,) in 0..T-1.

        Returns:
            float32 (N, 3, H, W).
        """
        out = self.network(x, t)
        if self.config.prediction == "epsilon":
            return out
        if self.config.prediction == "sample":  # x_t = sqrt(ab) x0 + sqrt(1-ab) eps
            noise = torch.index_select(self.noise_share, 0, t.long())[:, None, None, None]
            ab = torch.index_select(self.alphas_cumprod, 0, t.long())[:, None, None, None]
            return (x - ab.sqrt() * out.float()) / noise
        # v = sqrt(ab) eps - sqrt(1-ab) x0  =>  eps = sqrt(ab) v + sqrt(1-ab) x_t  (Salimans & Ho 2022, appendix D)
        ab = torch.index_select(self.alphas_cumprod, 0, t.long())[:, None, None, None]  # indexing exports as GatherND
        return ab.sqrt() * out.float() + (1 - ab).sqrt() * x
