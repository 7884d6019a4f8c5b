"""Map the tensors of `export.unet.UNet` to those of a checkpoint with other names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .unet import AttentionBlock, Downsample, ResBlock, UNet, Upsample


@dataclass(frozen=True)
class Block:
    """Locate a block in the network.

    Attributes:
        part: "down", "mid" or "up".
        level: the part's level, in the order of `UNet`; 0 in the middle.
        index: which block of its kind it is on that level.
    """

    part: str
    level: int
    index: int


@dataclass(frozen=True)
class Source:
    """Name the tensors of a checkpoint that are joined into one tensor of `UNet`: one, or q, k and v.

    Attributes:
        names: the tensors' names, in the order in which they are joined.
        shape: shape of each of them.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]


class TensorNames:
    """Hold the names of one kind of checkpoint; subclasses define the attributes and `block_name`.

    Attributes:
        outer: modules outside the blocks, ours -> theirs.
        residual: modules of a residual block, ours -> theirs.
        attention: modules of an attention block, ours -> theirs; "qkv" has three.
        attention_kernel: axes of the weights of q, k, v and proj_out after the two channel axes: () for linear layers,
            (1, 1) for 2D convolutions.
    """

    outer: ClassVar[dict[str, str]]
    residual: ClassVar[dict[str, str]]
    attention: dict[str, tuple[str, ...]]
    attention_kernel: ClassVar[tuple[int, ...]]

    def block_name(self, kind: str, block: Block) -> str:
        """Return the checkpoint's name of a block of kind "residual", "attention", "downsample" or "upsample"."""
        raise NotImplementedError

    def sources(self, model: UNet) -> dict[str, Source]:
        """Return the source of each tensor of the model, by our names."""
        modules = self._modules(model)
        sources = {}
        for key, tensor in model.state_dict().items():
            module, _, leaf = key.rpartition(".")
            shape = tuple(tensor.shape)
            if module.endswith((".qkv", ".proj_out")):
                shape = (shape[0] // len(modules[module]), *shape[1:2])
                shape += self.attention_kernel if leaf == "weight" else ()
            sources[key] = Source(tuple(f"{theirs}.{leaf}" for theirs in modules[module]), shape)
        return sources

    def _modules(self, model: UNet) -> dict[str, tuple[str, ...]]:
        names: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in self.outer.items()}
        for ours, layer, block in _layers(model):
            match layer:
                case ResBlock():
                    base = self.block_name("residual", block)
                    names |= {f"{ours}.{a}": (f"{base}.{b}",) for a, b in self.residual.items()}
                case AttentionBlock():
                    base = self.block_name("attention", block)
                    names |= {f"{ours}.{a}": tuple(f"{base}.{b}" for b in bs) for a, bs in self.attention.items()}
                case Downsample():
                    names[f"{ours}.op"] = (self.block_name("downsample", block),)
                case Upsample():
                    names[f"{ours}.conv"] = (self.block_name("upsample", block),)
        return names


def _layers(model: UNet) -> Iterator[tuple[str, nn.Module, Block]]:
    """Yield the name, the module and the place of each layer of the blocks."""
    per_block = len(model.middle_block) - 1  # 2 with attention between the residual blocks, 1 without
    for i, layer in enumerate(model.middle_block):
        yield f"middle_block.{i}", layer, Block("mid", 0, i // per_block)
    per_level = model.config.num_res_blocks + 1
    # input_blocks.0 is the first convolution
    for ours, part, first in (("input_blocks", "down", 1), ("output_blocks", "up", 0)):
        for n, stage in enumerate(model.get_submodule(ours).children()):
            if n >= first:
                block = Block(part, *divmod(n - first, per_level))
                for i, layer in enumerate(stage.children()):
                    yield f"{ours}.{n}.{i}", layer, block
