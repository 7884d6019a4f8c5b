"""Read training images from zip files or folders: 32x32 tiles, and crops of photos at several scales."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipsdk.errors import InputError
from zipsdk.images.sources import decode, read_files


class TrainingImages:
    """Hold the decoded images of some sources in memory, and draw training batches in [-1, 1] from them.

    An image of 32x32 is a tile. Images of at least 64x64 are photos, from which crops are cut; others are left out.

    Attributes:
        tiles: uint8 (N, 32, 32, 3).
        photos: the photos.
    """

    def __init__(self, sources: list[str], limit: int | None = None):
        """Read the images.

        Args:
            sources: folders and zip archives.
            limit: images to read from each source, spread evenly over it; None reads all.

        Raises:
            InputError: a source is neither a folder nor a zip archive, or none has a tile or a photo.
        """
        tiles: list[np.ndarray] = []
        self.photos: list[Image.Image] = []
        for source in sources:
            files = list(read_files(source))
            for data in files[:: max(1, len(files) // limit)][:limit] if limit else files:
                image = decode(data)
                if image.shape[:2] == (32, 32):
                    tiles.append(image)
                elif min(image.shape[:2]) >= 64:
                    self.photos.append(Image.fromarray(image))
        self.tiles = np.stack(tiles) if tiles else np.empty((0, 32, 32, 3), np.uint8)
        if not len(self.tiles) and not self.photos:
            raise InputError(
                f"{', '.join(sources)}: got no image of 32x32 or at least 64x64 pixels, expected one; add images"
            )

    def describe(self) -> str:
        """Return the numbers of tiles and photos, as text."""
        return f"{len(self.tiles)} tiles and {len(self.photos)} photos"

    def _draw_tiles(self, n: int) -> np.ndarray:
        """Draw tiles, a third of them photos shrunk to 32x32, which widens the variety of small images."""
        out = [self.tiles[i] for i in np.random.randint(len(self.tiles), size=n)] if len(self.tiles) else []
        k = n // 3 if out and self.photos else 0 if out else n
        return np.stack([self._crop(32) for _ in range(k)] + out[k:])

    def _crop(self, side: int, grow: float = 3.5) -> np.ndarray:
        """Cut a square of 1 to `grow` times `side`, log-uniform, from a random photo, and shrink it to `side`."""
        photo = random.choice(self.photos)
        s = min(side * grow ** random.random(), *photo.size)
        left, top = random.random() * (photo.width - s), random.random() * (photo.height - s)
        if s < 1.1 * side:  # keep real pixels near scale 1
            s, left, top = side, int(left), int(top)
            return np.asarray(photo.crop((left, top, left + side, top + side)))
        box = (left, top, left + s, top + s)
        return np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS, box=box))

    def batch(self, samples: int) -> Tensor:
        """Draw a batch with about as many pixels as `samples` 32x32 images, mirrored at random.

        Returns:
            float32 (N, 3, S, S) in [-1, 1], of one of three kinds: tiles (S = 32), 2x2 grids of tiles, crops of photos
            (S = 64 for both).
        """
        kind = random.random()
        large = max(1, samples // 4)
        if not self.photos or (len(self.tiles) and kind < 0.3):
            batch = self._draw_tiles(samples)
        elif len(self.tiles) and kind < 0.5:
            t = self._draw_tiles(4 * large).reshape(large, 2, 2, 32, 32, 3)
            batch = t.transpose(0, 1, 3, 2, 4, 5).reshape(large, 64, 64, 3)
        else:
            batch = np.stack([self._crop(64) for _ in range(large)])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
        mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
        return torch.where(mirrored, x.flip(-1), x)

    def held_out(self, n: int) -> list[Tensor]:
        """Return the first `n` tiles or, if there are none, the middle 64x64 of the first `n` photos at half size.

        Photos are halved only as far as the crop still fits.

        Returns:
            float32 (N, 3, S, S) in [-1, 1], batches of up to 64.
        """
        if len(self.tiles):
            arrays = list(self.tiles[:n])
        else:
            arrays = []
            for photo in self.photos[:n]:
                scale = max(0.5, 64 / min(photo.size))
                width, height = (max(64, int(scale * side)) for side in photo.size)
                small = photo.resize((width, height), Image.Resampling.LANCZOS)
                left, top = (width - 64) // 2, (height - 64) // 2
                arrays.append(np.asarray(small.crop((left, top, left + 64, top + 64))))
        x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return list(torch.split(x, 64))
