"""The UNet of the guided-diffusion family, in torch: what the exporter loads weights into.

Written from the architecture's description (Dhariwal & Nichol 2021, arXiv 2105.05233, appendix A and B; Ho et al. 2020,
arXiv 2006.11239, appendix B). Module names follow the keys of OpenAI's published checkpoints, so that a checkpoint
loads with ``strict=True`` and no table of names. One class covers three cousins, told apart by `UNetConfig`:

- OpenAI's 256x256 model: attention at three scales, resampling inside residual blocks, scale-shift (FiLM) time input;
- diffusers' ``UNet2DModel`` of the DDPM kind: additive time input, strided convolutions, one attention head;
- zip-tiny: fully convolutional, v-prediction inside, epsilon outside.

Ho et al.'s own checkpoints (`export.ho`) are of the second kind.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.unet_config import ADM256, ZIP_TINY, UNetConfig

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
    """Group normalisation that always computes in float32 and gives back the dtype it got."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def timestep_embedding(t: Tensor, dim: int, order: str, shift: int) -> Tensor:
    """(N,) steps -> (N, dim) sinusoids, frequencies exp(-ln(1e4) i / (dim/2 - shift))."""
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / (half - shift))
    )
    angles = t.float()[:, None] * frequencies[None]
    parts = (angles.cos(), angles.sin()) if order == "cos_sin" else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=1)


class Downsample(nn.Module):
    """Halve the picture with a strided 3x3 convolution."""

    def __init__(self, channels: int, asymmetric: bool):
        super().__init__()
        self.asymmetric = asymmetric
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double the picture by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class ResBlock(nn.Module):
    """Two normalised convolutions with the time step mixed in between; `resample` is "", "up" or "down"."""

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
            nn.Identity(),  # the checkpoints' dropout, which has no weights but takes an index
            nn.Conv2d(cout, cout, 3, padding=1),
        )
        self.skip_connection: nn.Module = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
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
    """Self-attention over the pixels. Per head the rows of `qkv` are q, k, v in turn (OpenAI's "legacy" order)."""

    def __init__(self, cfg: UNetConfig, channels: int):
        super().__init__()
        self.heads = cfg.heads(channels)
        self.norm = GroupNorm(cfg.norm_groups, channels, cfg.norm_eps)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        flat = x.reshape(n, c, height * width)
        q, k, v = self.qkv(self.norm(flat)).reshape(n * self.heads, 3 * c // self.heads, -1).chunk(3, dim=1)
        scale = (c // self.heads) ** -0.25  # on q and k each, so that float16 does not overflow in the product
        # Softmax in float32: in float16 its sum over 1024 pixels loses the small weights. By float() rather than by
        # softmax's dtype argument, which the ONNX exporter applies to the result.
        weight = torch.softmax(((q * scale).transpose(1, 2) @ (k * scale)).float(), dim=-1)
        a = (v @ weight.to(v.dtype).transpose(1, 2)).reshape(n, c, -1)
        return (flat + self.proj_out(a)).reshape(n, c, height, width)  # type: ignore[no-any-return]


class Stage(nn.Sequential):
    """A sequence whose residual blocks also take the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """eps = UNet(x_t, t): x_t float (N, 3, H, W) in [-1, 1] noised, t (N,) in 0..T-1, eps float32 like x_t.

    H and W are multiples of ``config.downsampling``.
    """

    alphas_cumprod: Tensor
    noise_share: Tensor

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = cfg = config
        base, emb = cfg.model_channels, 4 * cfg.model_channels
        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))

        channels, ds = base * cfg.channel_mult[0], 1
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(cfg.in_channels, channels, 3, padding=1))])
        skips = [channels]
        for level, mult in enumerate(cfg.channel_mult):
            for _ in range(cfg.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(cfg, channels, mult * base)]
                channels = mult * base
                if ds in cfg.attention_downsampling:
                    layers.append(AttentionBlock(cfg, channels))
                self.input_blocks.append(Stage(*layers))
                skips.append(channels)
            if level != len(cfg.channel_mult) - 1:
                down = (
                    ResBlock(cfg, channels, channels, "down")
                    if cfg.resblock_updown
                    else Downsample(channels, cfg.asymmetric_downsampling)
                )
                self.input_blocks.append(Stage(down))
                skips.append(channels)
                ds *= 2

        middle: list[nn.Module] = [ResBlock(cfg, channels, channels), ResBlock(cfg, channels, channels)]
        if cfg.attention_downsampling:
            middle.insert(1, AttentionBlock(cfg, channels))
        self.middle_block = Stage(*middle)

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(cfg.channel_mult))):
            for i in range(cfg.num_res_blocks + 1):
                layers = [ResBlock(cfg, channels + skips.pop(), mult * base)]
                channels = mult * base
                if ds in cfg.attention_downsampling:
                    layers.append(AttentionBlock(cfg, channels))
                if level and i == cfg.num_res_blocks:
                    up = ResBlock(cfg, channels, channels, "up") if cfg.resblock_updown else Upsample(channels)
                    layers.append(up)
                    ds //= 2
                self.output_blocks.append(Stage(*layers))

        self.out = nn.Sequential(
            GroupNorm(cfg.norm_groups, channels, cfg.norm_eps),
            nn.SiLU(),
            nn.Conv2d(channels, cfg.out_channels, 3, padding=1),
        )
        # on the CPU by name: a checkpoint is loaded into a model built on the meta device, and this table is in none
        ab = torch.from_numpy(cfg.alphas_cumprod())
        self.register_buffer("alphas_cumprod", ab.float(), persistent=False)
        if cfg.prediction == "sample":  # divided by, so not left to float32: it starts at 4e-5
            self.register_buffer("noise_share", (1 - ab).sqrt().float(), persistent=False)

    @property
    def torso_dtype(self) -> torch.dtype:
        return self.input_blocks[0][0].weight.dtype  # type: ignore[no-any-return, index]

    def to_torso(self, dtype: torch.dtype) -> UNet:
        """Put the convolutions of the torso into `dtype`; time embedding, norms and the head stay float32."""
        for part in (self.input_blocks, self.middle_block, self.output_blocks):
            for module in part.modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)
        return self

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """What the last convolution gives, in `config.prediction`'s meaning, float32."""
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
        out = self.network(x, t)
        if self.config.prediction == "epsilon":
            return out
        if self.config.prediction == "sample":  # x_t = sqrt(ab) x0 + sqrt(1-ab) eps
            noise = torch.index_select(self.noise_share, 0, t.long())[:, None, None, None]
            ab = torch.index_select(self.alphas_cumprod, 0, t.long())[:, None, None, None]
            return (x - ab.sqrt() * out.float()) / noise
        # v = sqrt(ab) eps - sqrt(1-ab) x0  =>  eps = sqrt(ab) v + sqrt(1-ab) x_t  (Salimans & Ho 2022, appendix D)
        ab = torch.index_select(self.alphas_cumprod, 0, t.long())[:, None, None, None]  # indexing would be a GatherND
        return ab.sqrt() * out.float() + (1 - ab).sqrt() * x
