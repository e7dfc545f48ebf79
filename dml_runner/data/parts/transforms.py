"""What is done to images: fitted to a size, and for training cut and mirrored at random."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dml_runner.data.parts.order import raw_numbers
from dml_runner.schema.data import Images

STREAM = 0x696D6167
"""Keeps these random numbers apart from those of the samples' order."""
NUMBERS = 6


def fitted(images: Tensor, size: int | None) -> Tensor:
    """(n, channels, height, width), their shorter side scaled to ``size`` and the middle cut out; None: as they are."""
    if size is None or images.shape[2:] == (size, size):
        return images
    height, width = images.shape[2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    images = interpolate(images, shape, mode="bilinear", antialias=True, align_corners=False)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def augment(images: Tensor, words: Images, picks: np.ndarray, seed: int) -> Tensor:
    """Images cut and mirrored at random, each by numbers of its own, keyed by (seed, sample, epoch): the same in any batch.

    Args:
        images: (n, channels, height, width).
        words: which of it is done.
        picks: int64 (n, 2), sample and epoch.
        seed: any integer from 0.
    """
    if not (words.pad or words.flip or words.crop < 1):
        return images
    height, width = images.shape[2:]
    padded = pad(images, (words.pad,) * 4) if words.pad else images
    out = []
    for image, (sample, epoch) in zip(padded, picks.tolist(), strict=True):
        area, top, left, row_share, column_share, mirror = random_numbers(seed, sample, epoch)
        if words.pad:
            row, column = int(top * (2 * words.pad + 1)), int(left * (2 * words.pad + 1))
            image = image[:, row : row + height, column : column + width]
        if words.crop < 1:
            share = math.sqrt(words.crop + (1 - words.crop) * area)
            rows, columns = max(1, round(share * height)), max(1, round(share * width))
            row, column = int(row_share * (height - rows + 1)), int(column_share * (width - columns + 1))
            part = image[None, :, row : row + rows, column : column + columns]
            image = interpolate(part, (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
        out.append(image.flip(2) if words.flip and mirror < 0.5 else image)
    return torch.stack(out)


def random_numbers(seed: int, sample: int, epoch: int) -> list[float]:
    """Six numbers from 0 to 1 of one sample in one epoch."""
    return [float(number) / 2.0**64 for number in raw_numbers(NUMBERS, seed, epoch, STREAM, sample)]
