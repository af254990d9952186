"""Choices of training, judged by images that neither the teacher nor its students have seen.

    python benchmarks/unseen.py                                  the default, with mixed and mirror images, and pruning
    python benchmarks/unseen.py --arms tp-l1 --rates 0.05 0.02
    python benchmarks/unseen.py --teacher-epochs 28 36 -o benchmarks/results/unseen-by-heart.json

The teacher of ``accuracy.py`` comes trained on all training images. What it says of them it partly knows by heart, and a student that
keeps more of that is better on images that were held out from itself, and on no others. So here half of the training images train a teacher
from scratch (ResNet-20), then its students with half of its multiply-accumulates; the other half judges. Nobody looks at test images.

A teacher that trained for long knows its images by heart, and answers as their labels do; what helps a student of a fresh teacher need not
help one of such a teacher. So there may be several trainings of the teacher, one after the other, each with a rise and fall of the rate.

Of each student: top-1 accuracy, cross entropy of the labels, the divergence of its answers from the teacher's (KL, nats), and how
often both name the same class; and the same of the teacher's mean answer to an image and its mirror image. Rows that are in the file
already are not run again; checkpoints lie under ``runs/``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy import AMP, ARMS, MUON, ROOT, SAME, SHARED, Remembered, Task, as_it_is
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from pdc_fx.data import ImageData, ImageSet, evaluation_batches, open_data
from pdc_fx.distill import TiedTraining, TrainOptions, accuracy
from pdc_fx.files import replace_file
from pdc_fx.models import build_model
from pdc_fx.pipeline import rewrite

RUNS = ROOT / "runs" / "unseen"
REDUCTION = 0.5
Row = dict[str, Any]


def teacher_of(data: ImageData, epochs: Sequence[int]) -> nn.Module:
    """A ResNet-20 that has learnt the labels of the training images, from scratch, in one training or several in a row."""
    torch.manual_seed(0)
    model = build_model(f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20").model
    for trainings in range(1, len(epochs) + 1):
        options = TrainOptions.of({**SAME, **MUON, "alpha": 0.0, "epochs": epochs[trainings - 1], "amp": AMP})
        _, separate = as_it_is(model, torch.zeros(1, *data.image_shape))
        directory = RUNS / f"teacher-{name_of(epochs[:trainings])}"
        directory.mkdir(parents=True, exist_ok=True)
        TiedTraining(model, copy.deepcopy(model), separate, data, None, options, "hard", directory).run(resume=True)
    return model.eval()


def name_of(teacher_epochs: Sequence[int]) -> str:
    """What tells a teacher's files from those of another."""
    return "-".join([*map(str, teacher_epochs), AMP])


@torch.inference_mode()
def logits(model: nn.Module, images: ImageSet, data: ImageData) -> Tensor:
    """Of all images, float32, shape ``(N, classes)``."""
    return torch.cat([model(inputs) for inputs, _ in evaluation_batches(images, data)])


def student(teacher: nn.Module, data: ImageData, arm: str, options: TrainOptions, teacher_name: str) -> nn.Module:
    """The small network of an arm after its training."""
    task = Task(teacher, data, torch.zeros(1, *data.image_shape), REDUCTION)
    model, clusters = ARMS[arm].begin(task)
    asked = copy.deepcopy(teacher)
    if options.features == "none":
        asked = Remembered(asked, RUNS / f"answers-{teacher_name}")
    directory = RUNS / f"{arm}-{options.lr}-{options.epochs}-{options.seed}-{teacher_name}"
    directory.mkdir(parents=True, exist_ok=True)
    training = TiedTraining(model, asked, clusters, data, None, options, ARMS[arm].mode, directory)
    final, _ = training.run(resume=True)
    return rewrite(model.eval(), final, task.example).eval()


class Mirrored(nn.Module):
    """The mean answer to an image and to its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = (self.model(images) + self.model(images.flip(-1))) / 2
        return mean


def judged(ours: Tensor, theirs: Tensor, labels: Tensor) -> Row:
    """The four figures of a student's logits beside the teacher's."""
    p, q = theirs.log_softmax(1), ours.log_softmax(1)
    return {
        "accuracy": float((ours.argmax(1) == labels).double().mean()),
        "cross_entropy": float(cross_entropy(ours, labels)),
        "divergence": float(kl_div(q, p, reduction="batchmean", log_target=True)),
        "agreement": float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
    }


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arms",
        nargs="+",
        default=["calibrate+muon", "calibrate+muon+flip", "calibrate+muon+mixed", "tp-l1+muon"],
        choices=ARMS,
        metavar="ARM",
        help="of accuracy.py",
    )
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[0.05], metavar="LR", help="peak learning rates; default: 0.05"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument("--epochs", type=int, default=14, help="of a student; default: 14")
    parser.add_argument(
        "--teacher-epochs", nargs="+", type=int, default=[28], metavar="N", help="of each training of it; default: 28"
    )
    parser.add_argument("--data", default=f"parquet:{SHARED / 'data' / 'cifar10'}", help="as pdc-fx compress takes it")
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "unseen.json", help="the JSON file"
    )
    options = parser.parse_args()
    everything = open_data(options.data, input_shape=(3, 32, 32))
    data, unseen = everything.hold_out(len(everything.train) // 2)
    of_teacher: Row = {"epochs": options.teacher_epochs, "amp": AMP}
    result: Row = {"teacher": of_teacher, "arms": {}, "rows": []}
    if options.output.exists():
        result = json.loads(options.output.read_text(encoding="utf-8"))
    if not of_teacher.items() <= result["teacher"].items():
        raise SystemExit(f"error: {options.output} has rows of another teacher than {of_teacher}; give another -o")
    teacher = teacher_of(data, options.teacher_epochs)
    theirs, labels = logits(teacher, unseen, data), unseen.labels
    if not result["rows"]:
        known = {"train_accuracy": accuracy(teacher, data.train, data)}
        result["teacher"] = of_teacher | known | judged(theirs, theirs, labels)
        result["mirrored"] = judged(logits(Mirrored(teacher), unseen, data), theirs, labels)
    for seed in options.seeds:
        for arm in options.arms:
            for rate in options.rates:
                of = {"arm": arm, "lr": rate, "seed": seed, "epochs": options.epochs}
                if any(of.items() <= row.items() for row in result["rows"]):
                    continue
                chosen = {**SAME, **ARMS[arm].options, "lr": rate, "seed": seed, "epochs": options.epochs, "amp": AMP}
                small = student(teacher, data, arm, TrainOptions.of(chosen), name_of(options.teacher_epochs))
                result["arms"][arm] = ARMS[arm].what
                result["rows"].append({**of, **judged(logits(small, unseen, data), theirs, labels)})
                options.output.parent.mkdir(parents=True, exist_ok=True)
                replace_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
    print(f"{'arm':<20}{'rate':>7}{'seed':>5}{'accuracy':>10}{'cross entropy':>15}{'divergence':>12}{'agreement':>11}")
    for row in result["rows"]:
        print(
            f"{row['arm']:<20}{row['lr']:>7}{row['seed']:>5}{100 * row['accuracy']:>10.2f}{row['cross_entropy']:>15.4f}"
            f"{row['divergence']:>12.4f}{100 * row['agreement']:>11.2f}"
        )


if __name__ == "__main__":
    main()
