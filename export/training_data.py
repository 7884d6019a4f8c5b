"""Pictures for training: 32x32 tiles and crops of photos at several scales, from zip files or folders."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipsdk.errors import InputError
from zipsdk.images.sources import decode, read_files


class LoadedImages:
    """All pictures of some sources, decoded into memory, handed out as training batches in [-1, 1].

    A picture of 32x32 is a tile. Larger ones are photos, from which crops are cut; `limit` spreads over the source.
    """

    def __init__(self, sources: list[str], limit: int | None = None):
        tiles: list[np.ndarray] = []
        self.photos: list[Image.Image] = []
        for source in sources:
            files = list(read_files(source))
            for data in files[:: max(1, len(files) // limit)][:limit] if limit else files:
                picture = decode(data)
                if picture.shape[:2] == (32, 32):
                    tiles.append(picture)
                elif min(picture.shape[:2]) >= 64:
                    self.photos.append(Image.fromarray(picture))
        self.tiles = np.stack(tiles) if tiles else np.empty((0, 32, 32, 3), np.uint8)
        if not len(self.tiles) and not self.photos:
            raise InputError(f"{', '.join(sources)}: got no image of 32 x 32 or at least 64 x 64 pixels, expected one")

    def describe(self) -> str:
        return f"{len(self.tiles)} tiles and {len(self.photos)} photos"

    def _tiles(self, n: int) -> np.ndarray:
        """Tiles, a third of them photos shrunk to that size, so that small pictures are not all of ten classes."""
        out = [self.tiles[i] for i in np.random.randint(len(self.tiles), size=n)] if len(self.tiles) else []
        k = n // 3 if out and self.photos else 0 if out else n
        return np.stack([self._crop(32) for _ in range(k)] + out[k:])

    def _crop(self, side: int, grow: float = 3.5) -> np.ndarray:
        """A square crop of a random photo, cut between 1 and `grow` times `side`, log-uniform, shrunk to `side`."""
        photo = random.choice(self.photos)
        s = min(side * grow ** random.random(), *photo.size)
        left, top = random.random() * (photo.width - s), random.random() * (photo.height - s)
        if s < 1.1 * side:  # no resampling near scale 1: keep real pixels
            s, left, top = side, int(left), int(top)
            return np.asarray(photo.crop((left, top, left + side, top + side)))
        box = (left, top, left + s, top + s)
        return np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS, box=box))

    def batch(self, samples: int) -> Tensor:
        """A batch of about `samples` 32x32 pictures' worth of pixels, of one of three kinds drawn at random:
        tiles one by one, tiles two by two on 64x64 images, 64x64 crops of photos."""
        kind = random.random()
        grids = max(1, samples // 4)
        if not self.photos or (len(self.tiles) and kind < 0.3):
            batch = self._tiles(samples)
        elif len(self.tiles) and kind < 0.5:
            t = self._tiles(4 * grids).reshape(grids, 2, 2, 32, 32, 3)
            batch = t.transpose(0, 1, 3, 2, 4, 5).reshape(grids, 64, 64, 3)
        else:
            batch = np.stack([self._crop(64) for _ in range(grids)])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
        mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
        return torch.where(mirrored, x.flip(-1), x)

    def held_out(self, n: int) -> list[Tensor]:
        """The same `n` pictures every time, in batches: tiles, or the middle 64x64 of halved photos (64 at least)."""
        if len(self.tiles):
            arrays = list(self.tiles[:n])
        else:
            arrays = []
            for photo in self.photos[:n]:
                scale = max(0.5, 64 / min(photo.size))  # half of a small one would not fill the crop
                width, height = (max(64, int(scale * side)) for side in photo.size)
                small = photo.resize((width, height), Image.Resampling.LANCZOS)
                left, top = (width - 64) // 2, (height - 64) // 2
                arrays.append(np.asarray(small.crop((left, top, left + 64, top + 64))))
        x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return list(x.split(64))
