"""``pdc-fx compress``: from a trained network and its data to a smaller network that is exported and verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pdc_fx.cli.config import Config
from pdc_fx.cli.options import (
    Classes,
    Download,
    Frozen,
    Json,
    Model,
    Overwrite,
    Provider,
    RoundTo,
    Seed,
    Shapes,
    Weights,
    choose,
    command_line,
    open_image_model,
    open_images,
    reported,
    show_progress,
)
from pdc_fx.directory import CHECKPOINT, CONFIG
from pdc_fx.errors import InputError
from pdc_fx.options import MIXED_FROM, Amp, Distill, Features, Mode, Opt, Start, TrainOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdc_fx.data import ImageData
    from pdc_fx.models import LoadedModel

DEFAULT = TrainOptions()
BUDGETS = ("flops_reduction", "params_reduction", "latency_reduction")


@reported
def compress(
    context: typer.Context,
    model: Model,
    data: Annotated[
        str,
        typer.Option("--data", help="digits, parquet:DIR, folder:DIR, cifar10:DIR, cifar100:DIR or fashionmnist:DIR."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Output directory; it must not exist yet.")],
    weights: Weights = None,
    num_classes: Classes = None,
    input: Shapes = None,
    freeze: Frozen = None,
    flops_reduction: Annotated[float | None, typer.Option(help="Share of the MACs to remove, 0 to 1.")] = None,
    params_reduction: Annotated[float | None, typer.Option(help="Share of the parameters to remove, instead.")] = None,
    latency_reduction: Annotated[
        float | None,
        typer.Option(
            help="Share of the time of one run in ONNX Runtime to remove, instead: from layer times, then measured."
        ),
    ] = None,
    provider: Annotated[
        Provider,
        typer.Option(
            metavar="PROVIDER",
            help="What the network will run on, for --round-to auto: cpu, cuda, tensorrt, or auto (the best here). --latency-reduction "
            "works for cpu alone.",
        ),
    ] = "cpu",
    latency_table: Annotated[
        Path | None,
        typer.Option(
            help="File of layer times, made here or on another machine; one in the cache directory by default."
        ),
    ] = None,
    allocation: Annotated[
        Literal["global", "uniform"], typer.Option(help="Spread the budget where it costs least, or evenly.")
    ] = "global",
    round_to: RoundTo = "auto",
    mode: Annotated[
        Mode | None,
        typer.Option(
            metavar="MODE",
            help="How filters are tied: pdc, csgd, progressive, or hard (clusters that are final from the start), the default.",
        ),
    ] = None,
    start: Annotated[
        Start | None,
        typer.Option(
            help="Start from the model, its folded form (no data), or calibrated on unlabelled images (given mode hard, the default)."
        ),
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(min=2, help="Training images that --start calibrate looks at, without labels: 64 to 512 by size."),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="Passes over the training images; 0 after --start fold or calibrate.")
    ] = DEFAULT.epochs,
    batch_size: Annotated[
        int, typer.Option("-b", "--batch-size", min=1, help="Images per step, over all processes together.")
    ] = DEFAULT.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULT.lr,
    opt: Annotated[
        Opt, typer.Option(help="Optimizer; auto is muon where clusters are final from the start.")
    ] = DEFAULT.opt,
    momentum: Annotated[float, typer.Option(help="Of muon and sgd, with Nesterov's correction.")] = DEFAULT.momentum,
    weight_decay: Annotated[
        float, typer.Option("--wd", "--weight-decay", help="On weights; not on biases and norms.")
    ] = DEFAULT.weight_decay,
    sched: Annotated[Literal["cosine", "step"], typer.Option(help="Learning-rate schedule.")] = DEFAULT.sched,
    lr_step_size: Annotated[
        int, typer.Option(min=1, help="Epochs between the falls of --sched step.")
    ] = DEFAULT.lr_step_size,
    lr_gamma: Annotated[float, typer.Option(help="Factor of each fall of --sched step.")] = DEFAULT.lr_gamma,
    warmup_epochs: Annotated[float, typer.Option(help="Epochs of linear warm-up.")] = DEFAULT.warmup_epochs,
    label_smoothing: Annotated[float, typer.Option(help="Of the labels' cross entropy.")] = DEFAULT.label_smoothing,
    distill: Annotated[
        Distill,
        typer.Option(
            metavar="LOSS",
            help="Distillation loss: kl (KL divergence), zscore (the same of standardised logits), dkd or dist.",
        ),
    ] = DEFAULT.distill,
    alpha: Annotated[
        float, typer.Option(help="Weight of the distillation loss against the labels' cross entropy, 0 to 1.")
    ] = DEFAULT.alpha,
    temperature: Annotated[
        float, typer.Option(help="What the distillation loss divides logits by.")
    ] = DEFAULT.temperature,
    teacher_flip: Annotated[
        bool | None,
        typer.Option(
            help="Learn the teacher's mean answer to an image and its mirror image; by default where images are mixed."
        ),
    ] = DEFAULT.teacher_flip,
    features: Annotated[
        Features,
        typer.Option(
            metavar="HOW",
            help="Compare maps, too: match (the same channels), attention (any teacher), auto (match where that goes) or none.",
        ),
    ] = DEFAULT.features,
    features_weight: Annotated[float, typer.Option(help="Factor of the loss of --features.")] = DEFAULT.features_weight,
    amp: Annotated[
        Amp,
        typer.Option(
            metavar="PRECISION",
            help="Autocast to bf16, to fp16 (needs a GPU) or to none (no); auto: bf16 where the device computes in it.",
        ),
    ] = DEFAULT.amp,
    channels_last: Annotated[bool, typer.Option(help="Memory format while training.")] = DEFAULT.channels_last,
    compile: Annotated[
        bool, typer.Option("--compile", help="Run network and teacher through torch.compile.")
    ] = DEFAULT.compile,
    workers: Annotated[
        int, typer.Option("-j", "--workers", min=0, help="Processes that decode images ahead.")
    ] = DEFAULT.workers,
    augment: Annotated[
        str | None, typer.Option(help="Augmentation: imagenet, cifar, flip, digits or none; the data's own by default.")
    ] = DEFAULT.augment,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="M,M,M",
            help="Means that the model was trained with, one a channel, for pixels in [0, 1]; from the weights' metadata, or else the "
            "data's own.",
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="S,S,S", help="Standard deviations that belong to --mean.")] = None,
    mixup_alpha: Annotated[
        float, typer.Option(min=0, help="Mix images in pairs: parameter of the Beta distribution; 0 for never.")
    ] = DEFAULT.mixup_alpha,
    cutmix_alpha: Annotated[
        float | None,
        typer.Option(
            min=0,
            help=f"The same for CutMix; with both, either is as likely. 1 from {MIXED_FROM} epochs on if neither is given, for images "
            "that are mirrored.",
        ),
    ] = DEFAULT.cutmix_alpha,
    mixup_prob: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the batches that are mixed.")
    ] = DEFAULT.mixup_prob,
    model_ema: Annotated[
        bool, typer.Option("--model-ema", help="Hand on an exponential moving average of the weights.")
    ] = DEFAULT.model_ema,
    model_ema_decay: Annotated[float, typer.Option(help="Decay of --model-ema per step.")] = DEFAULT.model_ema_decay,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints, besides one after each epoch; 0 for none.")
    ] = DEFAULT.checkpoint_every,
    print_freq: Annotated[int, typer.Option(min=1, help="Steps between reports.")] = DEFAULT.print_freq,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write figures for TensorBoard into DIR/tensorboard.")
    ] = DEFAULT.tensorboard,
    teacher_model: Annotated[
        str | None, typer.Option(help="Another teacher: a MODEL; the model itself by default.")
    ] = None,
    teacher_weights: Annotated[Path | None, typer.Option(help="Weights of --teacher-model.")] = None,
    seed: Seed = 0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted run from its last checkpoint; on a CPU bit for bit."),
    ] = False,
    config: Config = None,
    overwrite: Overwrite = False,
    download: Download = False,
    json: Json = False,
) -> None:
    """Train the model tied under distillation (or fold or calibrate it), merge its channels exactly, export to ONNX and verify."""
    chosen = dict(locals())
    from pdc_fx.artifacts import deliver, onnx_accuracy, require_exportable, require_verified
    from pdc_fx.cli.config import effective, overruled
    from pdc_fx.cli.render import (
        TrainingProgress,
        delivery_rows,
        out,
        print_comparisons,
        print_json,
        print_notes,
        result_table,
        shown,
        warn_of_loss,
    )
    from pdc_fx.data.augment import check_augmentation
    from pdc_fx.distill import Processes
    from pdc_fx.files import replace_file
    from pdc_fx.pipeline import compress as run_compress
    from pdc_fx.pipeline import require_classes
    from pdc_fx.staging import Staging, require_free
    from pdc_fx.trace import seed_all

    chosen |= dict.fromkeys(overruled(chosen.pop("context"), BUDGETS))
    flops_reduction, params_reduction, latency_reduction = (chosen[name] for name in BUDGETS)
    options = TrainOptions.of({name: chosen[name] for name in DEFAULT.to_dict() if name in chosen})
    _require_one_budget([flops_reduction, params_reduction, latency_reduction])
    first = Processes.of_environment().first
    if augment is not None:
        check_augmentation(augment)
    if first:
        require_free(output, overwrite=overwrite, resume=resume)
    if latency_reduction is not None:
        show_progress()
    chosen_provider = choose(provider) if provider == "auto" else provider  # one that is not here may be planned for
    teacher_model = teacher_model or (model if teacher_weights is not None else None)
    seed_all(seed)  # a factory may draw the weights
    loaded, example, images = _opened(model, weights, num_classes, input, data, download)
    if normalization := _normalization(mean, std) or loaded.normalization:
        images = images.with_normalization(*normalization)
    teacher = _teacher(teacher_model, teacher_weights, num_classes, images) if teacher_model else None
    source = {
        "model": model,
        "num_classes": num_classes,
        "data": data,
        "command": command_line(),
        "mean": list(images.mean),
        "std": list(images.std),
        "classes": list(images.classes),
        "test_labels": images.test.labels_digest,
    }
    staging = Staging(output, overwrite=overwrite, resume=resume, write=first, keep_checkpoint=True)
    notes = []
    if weights is None:
        notes.append("no --weights, so the network is taken with those that its factory gives it")
    if teacher_model is not None and teacher_weights is None:
        notes.append("no --teacher-weights, so the teacher is taken with those that its factory gives it")
    if resume and not (staging.path / CHECKPOINT).exists():
        notes.append(f"no checkpoint of an interrupted run into '{output}', so the run begins")
    with (
        staging,
        TrainingProgress(epochs, notes) if first and epochs else nullcontext() as progress,
    ):
        if first:
            # where a run is resumed, it may turn out that these are not the options to go on with
            if not (staging.path / CHECKPOINT).exists():
                replace_file(staging.path / CONFIG, effective(chosen).encode())
            if epochs:
                require_classes(loaded.model, (example,), images)
                require_exportable(loaded.model, example)
        compressed = run_compress(
            loaded.model,
            example,
            images,
            flops_reduction=flops_reduction,
            params_reduction=params_reduction,
            latency_reduction=latency_reduction,
            allocation=allocation,
            round_to=round_to,
            provider=chosen_provider,
            latency_table=latency_table,
            frozen=freeze or (),
            mode=mode,
            start=start,
            calibration_images=calibration_images,
            teacher=teacher,
            options=options,
            directory=staging.path,
            resume=resume,
            observer=progress,
            source=source,
        )
    if not first:  # every process has the result; one delivers it
        return
    if not epochs:
        print_notes(notes)
    warn_of_loss(compressed.metrics)
    with staging, _naming_what_is_kept(staging.path):
        replace_file(staging.path / CONFIG, effective(chosen).encode())
        certificate = deliver(compressed, staging.path, onnx_accuracy(images))
        if json and not certificate["passed"]:
            print_json({"directory": None, **certificate})
        require_verified(certificate)
    staging.publish()
    if json:
        print_json({"directory": str(output), **certificate})
        return
    out.print(result_table(delivery_rows(certificate), shown(f"{model} -> {output}")))
    print_comparisons(certificate)


def _require_one_budget(shares: Sequence[float | None]) -> None:
    """Raise :class:`InputError` unless one share is given, which is one."""
    from pdc_fx.passes.allocation import require_share

    given = [share for share in shares if share is not None]
    if len(given) != 1:
        raise InputError(
            "several budgets are given" if given else "say how much to remove",
            hint="give one of --flops-reduction, --params-reduction and --latency-reduction",
        )
    require_share(given[0])


def _opened(
    model: str, weights: Path | None, classes: int | None, shapes: list[str] | None, data: str, download: bool
) -> tuple[LoadedModel, Tensor, ImageData]:
    """The model, one image of zeros for it, and the data with images of that shape."""
    from pdc_fx.data import open_data

    opened = cache(lambda: open_data(data, download=download))
    loaded, example = open_image_model(model, weights, classes, shapes, lambda: opened().image_shape)
    shape = tuple(example.shape[1:])
    if len(shape) != 3:
        hint = f"write 1x{'x'.join(map(str, example.shape))}" if example.dim() == 3 else ""
        raise InputError("training needs a model of images", where=f"input {tuple(example.shape)}", hint=hint)
    # what was decoded to learn its shape is all of that shape, which is the model's input
    seen = opened.cache_info().currsize and opened().train.in_memory
    return loaded, example, opened() if seen else open_images(data, shape, download=download)


def _teacher(spec: str, weights: Path | None, classes: int | None, images: ImageData) -> nn.Module:
    """Another network that takes images as they are prepared for the first."""
    from pdc_fx.models import build_model, renormalize

    given = build_model(spec, weights=weights, num_classes=classes)
    if given.normalization and given.normalization != (images.mean, images.std):
        renormalize(given.model, (images.mean, images.std), given.normalization)
    return given.model


@contextmanager
def _naming_what_is_kept(folder: Path) -> Iterator[None]:
    """Where training is over and something else fails, or is interrupted, say that it need not be done again."""
    from pdc_fx.cli.render import err

    try:
        yield
    except BaseException:
        if (folder / CHECKPOINT).exists():
            err.print(
                f"note: what was trained is kept in '{folder}'; --resume goes on from there",
                soft_wrap=True,
                markup=False,
            )
        raise


def _normalization(mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What ``--mean`` and ``--std`` say, or None where they were not given."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("--mean and --std go together", hint="give both, as the model was trained with them")
    try:
        numbers = [tuple(float(part) for part in text.split(",")) for text in (mean, std)]
    except ValueError as error:
        raise InputError(f"--mean and --std are numbers: {error}", hint="write 0.485,0.456,0.406") from error
    if any(number > 1 for numbers_of_one in numbers for number in numbers_of_one):
        raise InputError("--mean and --std are of pixels between 0 and 1", where=f"{mean} {std}", hint="divide by 255")
    return numbers[0], numbers[1]
