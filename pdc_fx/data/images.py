"""What users hold: sets of images, and training and test sets with the same classes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pdc_fx.data.augment import AUGMENTATIONS, Shape, check_augmentation
from pdc_fx.data.order import shuffled
from pdc_fx.data.stores import ImageStore, InMemoryStore
from pdc_fx.errors import InputError


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """A map-style dataset of uint8 images of one shape, with labels.

    Indexing with one number gives ``(uint8 [C, H, W], int64 [])``; ``__getitems__``, which torch's ``DataLoader`` calls
    with the indices of a batch, gives ``(uint8 [B, C, H, W], int64 [B])``. Use :func:`collate` as its ``collate_fn``.

    Args:
        store: where the images are.
        labels: int64 [number of images in the store].
        rows: the images of the store that belong to this set, in order; all of them when not given.

    >>> images = ImageSet.of(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.arange(6))
    >>> len(images), images.image_shape, images.subset([4, 1]).labels.tolist()
    (6, (3, 4, 4), [4, 1])
    """

    def __init__(self, store: ImageStore, labels: Tensor, rows: Tensor | None = None) -> None:
        self._store, self._all_labels = store, labels
        self._rows = torch.arange(len(labels)) if rows is None else rows

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> ImageSet:
        """Return the set of ``images`` (uint8 [N, C, H, W]) and ``labels`` (int64 [N]), which are not copied.

        Raises:
            InputError: another dtype or number of dimensions, or not one label an image.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or labels.dtype != torch.int64:
            raise InputError(
                "images must be uint8 [N, C, H, W] and labels int64 [N]",
                where=f"{images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}",
            )
        if labels.shape != images.shape[:1]:
            raise InputError(
                "there must be one label an image", where=f"{len(images)} images, {list(labels.shape)} labels"
            )
        return cls(InMemoryStore(images), labels)

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""
        return self._store.image_shape

    @property
    def stored_shape(self) -> Shape:
        """The same of the first image as it is stored, before it was brought to size."""
        return self._store.stored_shape

    @property
    def labels(self) -> Tensor:
        """All labels, int64 [N]; reads no image."""
        return self._all_labels[self._rows]

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""
        return isinstance(self._store, InMemoryStore)

    @property
    def labels_digest(self) -> str:
        """The SHA-256 of the labels, in their order: what tells one set from another without reading its images."""
        return hashlib.sha256(self.labels.cpu().to(torch.int64).numpy().tobytes()).hexdigest()

    def decodes(self, augmentation: str = "none") -> bool:
        """Whether images are decoded when they are fetched for this augmentation: work that other processes can do."""
        return self._store.decodes(AUGMENTATIONS[augmentation].resized_crop)

    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the images and labels at ``indices`` (int64 [B]): uint8 [B, C, H, W], int64 [B].

        ``crops`` (int64 [B]) are the seeds of random resized crops, each of the whole image as it is stored.
        """
        rows = self._rows[indices]
        return self._store.fetch(rows, crops), self._all_labels[rows]

    def shuffled(self, generator: torch.Generator, augmentation: str = "none") -> Tensor:
        """Return the indices of all images in random order, as :func:`pdc_fx.data.order.shuffled` says."""
        return shuffled(self._rows, generator, self._store.blocks if self.decodes(augmentation) else None)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Return the set of the images at ``indices``, in that order; images are shared, not copied."""
        return ImageSet(self._store, self._all_labels, self._rows[torch.as_tensor(indices, dtype=torch.int64)])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.fetch(torch.as_tensor(indices, dtype=torch.int64))


def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return ``batch`` as it is: an :class:`ImageSet` fetches whole batches (a ``collate_fn`` for ``DataLoader``)."""
    return batch


@dataclass(frozen=True, eq=False)
class ImageData:
    """Training and test images with the same classes, and how to prepare them.

    Attributes:
        name: the text it was opened with.
        train, test: the two sets. Decide nothing on ``test``; take :meth:`hold_out` for that.
        classes: the names of the classes, by label.
        mean, std: one number a channel, for inputs scaled to [0, 1]; see :func:`normalize`.
        augmentation: the name of the preset in :data:`AUGMENTATIONS` that suits the images; see :class:`Augment`.

    Raises:
        InputError: an unknown preset, or ``mean`` and ``std`` that do not fit the number of channels.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str = "none"

    def __post_init__(self) -> None:
        check_augmentation(self.augmentation)
        channels = self.image_shape[0]
        sound = all(0 < s < math.inf for s in self.std) and all(map(math.isfinite, self.mean))
        if len(self.mean) != channels or len(self.std) != channels or not sound:
            raise InputError(
                f"mean and std need {channels} number(s), one a channel, and std must be positive",
                where=f"{self.name}: mean {self.mean}, std {self.std}",
                hint=f"on the command line: --mean {','.join('M' * channels)} --std {','.join('S' * channels)}",
            )

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width of every image."""
        return self.train.image_shape

    def with_normalization(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Return the same data with the mean and std a model was trained with (inputs in [0, 1], one a channel)."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def with_augmentation(self, name: str) -> ImageData:
        """Return the same data with another default augmentation, a name in :data:`AUGMENTATIONS`."""
        return replace(self, augmentation=name)

    def hold_out(self, n: int, seed: int = 0) -> tuple[ImageData, ImageSet]:
        """Take ``n`` training images away, for decisions that must not see the test set.

        Every class gives in proportion to its size (largest remainders, so the parts add up to ``n``). The same ``n``
        and ``seed`` always give the same images; both parts keep the original order.

        Returns:
            The data with the smaller training set, and the images held out.

        Raises:
            InputError: ``n`` is not between 1 and the number of training images less one.

        >>> from pdc_fx.data import open_data
        >>> data, held_out = open_data("digits").hold_out(100)
        >>> len(data.train), len(held_out), torch.bincount(held_out.labels).tolist()
        (1337, 100, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
        """
        total = len(self.train)
        if not 0 < n < total:
            raise InputError(
                f"cannot hold out {n} of {total} training images", hint=f"choose between 1 and {total - 1}"
            )
        labels = self.train.labels
        generator = torch.Generator().manual_seed(seed)
        held = torch.zeros(total, dtype=torch.bool)
        for label, share in enumerate(_proportional_shares(torch.bincount(labels).tolist(), n)):
            members = (labels == label).nonzero().flatten()
            held[members[torch.randperm(len(members), generator=generator)[:share]]] = True
        rest, taken = self.train.subset((~held).nonzero().flatten()), self.train.subset(held.nonzero().flatten())
        return replace(self, train=rest), taken


def _proportional_shares(counts: list[int], n: int) -> list[int]:
    """Split ``n`` in proportion to ``counts`` by largest remainders; of equal ones those that lie evenly over the list."""
    total = sum(counts)
    shares = [n * count // total for count in counts]
    remainders = [n * count % total for count in counts]
    left = n - sum(shares)
    for remainder in sorted(set(remainders), reverse=True):
        alike = [i for i, own in enumerate(remainders) if own == remainder]
        taken = min(left, len(alike))
        for j in range(taken):
            shares[alike[j * len(alike) // taken]] += 1
        left -= taken
    return shares
