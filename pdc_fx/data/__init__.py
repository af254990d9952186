"""Image classification data: one way to open it, batches as whole uint8 tensors, augmentation on whole batches.

:func:`open_data` turns a short text such as ``parquet:DIR`` into an :class:`ImageData`: a training and a test
:class:`ImageSet` with the same classes. An :class:`ImageSet` is a map-style dataset whose ``__getitems__`` returns a
whole batch at once, so a loader needs no per-image Python::

    loader = DataLoader(data.train, batch_size=128, shuffle=True, collate_fn=collate)
    augment = Augment(data.augmentation, seed=0)
    for images, labels in loader:  # uint8 [B, C, H, W], int64 [B]
        inputs = augment(normalize(images.to(device), data.mean, data.std))

Augmenting *after* :func:`normalize` makes the padding of a random crop the mean colour, which is zero there.

A set of at most :data:`pdc_fx.data.assemble.IN_MEMORY_BYTES` is decoded once, when it is opened; a larger one is decoded batch by batch.
Nothing is fetched from a network unless ``download=True``, and nothing is written but a temporary folder (where the
environment's ``TMPDIR`` says), which is removed.
"""

from __future__ import annotations

from pdc_fx.data.augment import AUGMENTATIONS, Augment, Shape, crop_and_flip, normalize
from pdc_fx.data.decode import resize_and_crop
from pdc_fx.data.images import ImageData, ImageSet, collate
from pdc_fx.data.opening import open_data

__all__ = [
    "AUGMENTATIONS",
    "Augment",
    "ImageData",
    "ImageSet",
    "Shape",
    "collate",
    "crop_and_flip",
    "normalize",
    "open_data",
    "resize_and_crop",
]
