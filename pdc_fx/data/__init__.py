"""Image classification data: one way to open it, and batches of it in order.

:func:`open_data` turns a short text such as ``parquet:DIR`` into an :class:`ImageData`: a training and a test
:class:`ImageSet` with the same classes. :func:`training_batches` and :func:`evaluation_batches` read it::

    for epoch in range(epochs):
        for images, labels in training_batches(data, 128, seed=0, epoch=epoch, workers=4, device="cuda"):
            ...  # float32 [128, C, H, W], augmented and normalised; int64 [128]
    for images, labels in evaluation_batches(data.test, data):
        ...

What a batch holds is a function of the seed, the epoch and its number, whatever the number of workers.

At size: a set of at most :data:`pdc_fx.data.assemble.IN_MEMORY_BYTES` is decoded once, when it is opened; a larger one is decoded
batch by batch, from image files of which only the names are in memory, or from the row groups of Parquet files, of which a
process keeps :data:`pdc_fx.data.rowgroups.CACHE_BYTES`. Nothing is fetched from a network unless ``download=True``, and nothing
is written.

For a loop of one's own, an :class:`ImageSet` is a map-style dataset whose ``__getitems__`` returns a whole batch at once, so
``DataLoader(data.train, batch_size=128, shuffle=True, collate_fn=collate)`` gives uint8 [B, C, H, W] and int64 [B], for
:class:`Augment` and :func:`normalize`.
"""

from __future__ import annotations

from pdc_fx.data.augment import AUGMENTATIONS, Augment, Preset, Shape, crop_and_flip, normalize
from pdc_fx.data.batches import batches_per_epoch, evaluation_batches, sample_images, training_batches
from pdc_fx.data.decode import resize_and_crop
from pdc_fx.data.images import ImageData, ImageSet, collate
from pdc_fx.data.opening import open_data

__all__ = [
    "AUGMENTATIONS",
    "Augment",
    "ImageData",
    "ImageSet",
    "Preset",
    "Shape",
    "batches_per_epoch",
    "collate",
    "crop_and_flip",
    "evaluation_batches",
    "normalize",
    "open_data",
    "resize_and_crop",
    "sample_images",
    "training_batches",
]
