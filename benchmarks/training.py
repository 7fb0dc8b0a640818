"""How fast we train beside what a practitioner would write: `python -m benchmarks.training`.

On a CPU an epoch of our loop is compared with a plain one (a `DataLoader` of Pillow images with
torchvision's transforms, float32, NCHW, `torch.optim.SGD`), on as many threads; and our loader
alone with that one's, on one thread. On a GPU our loop, which loads and moves every image, is
compared with the same network on a single batch that already lies on the GPU as its input; both
are compiled, unless `--eager` is given. On either, our loop that reads its images from shards on
disk is compared with the same loop on images in memory.

All images are random: that changes no speed. What compiles, tunes or warms up happens in a round
that is thrown away. `--cifar10 PATH` also times CIFAR-10 up to 94 % of plain test images; PATH is
whatever `veilset protect` reads, with training and test images.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.harness import RESULTS, Case, Result, machine, measured, save, table
from veilset.data.shards import write_set
from veilset.errors import SourceError
from veilset.models.augment import Augmentation, draw_moves, measure_normalisation
from veilset.models.device import Engine, choose_engine, cuda_works, kernels
from veilset.models.optimiser import NesterovSgd
from veilset.models.registry import make_model
from veilset.schemes.plain import Plain
from veilset.training.feed import Data, even_slices
from veilset.training.loader import Samples, read_samples
from veilset.training.loop import Subject, train
from veilset.training.params import TrainingParams
from veilset.training.saved import load_model
from veilset.types import Images

Forward = Callable[[Tensor], Tensor]

CLASSES: Final = tuple("abcdefghij")
CROP: Final = 4
MOVED: Final = Augmentation(flip=True, crop=CROP)

RECIPE: Final = TrainingParams(
    epochs=18, batch_size=512, lr=0.4, weight_decay=5e-4, label_smoothing=0.1, flip=True,
    crop=CROP, deterministic=False, compile="on",
)  # fmt: skip
"""CIFAR-10 to 94 % by ResNet-18: the usual crop, flip and peak rate (0.1 for 128 images)."""


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        model: Name of an architecture.
        px: Side of its images, pixels; they have three channels.
        count: Images in an epoch.
        batch_size: Images in a step.
        epochs: Epochs in a run.
        eager: Nothing is compiled on a GPU either.
    """

    model: str
    px: int
    count: int
    batch_size: int
    epochs: int = 1
    eager: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.px, self.px, 3

    def params(self, device: str) -> TrainingParams:
        """A training with crop and flip, whose rate is too low to diverge on noise."""
        gpu = device == "cuda"
        return TrainingParams.parse(
            {
                "epochs": self.epochs, "batch_size": self.batch_size, "lr": 1e-3, "flip": True,
                "crop": CROP, "device": device, "deterministic": not gpu,
                "compile": "on" if gpu and not self.eager else "off",
            },
            "benchmark",
        )  # fmt: skip


@dataclass
class Peaks:
    """The most memory that was ever taken, MiB, at the end of a case's first run.

    `host` is that of the whole process from its start on, and includes what ran before.
    """

    found: dict[str, dict[str, float]] = field(default_factory=dict)

    def noted(self, name: str, run: Callable[[], float], *, gpu: bool) -> Callable[[], float]:
        """The same run, which notes its peaks when it is first called."""

        def noting() -> float:
            if name in self.found:
                return run()
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = run()
            self.found[name] = {"host": host_peak()}
            if gpu:
                self.found[name]["gpu"] = torch.cuda.max_memory_allocated() / 2**20
            return seconds

        return noting


def host_peak() -> float:
    """The most main memory that this process ever had, MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def some_images(count: int, px: int) -> Samples:
    """Random colour images in ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, px, px, 3), dtype=np.uint8)
    return Samples(images, np.arange(count, dtype=np.int64) % len(CLASSES))


def first(samples: Samples, count: int) -> Samples:
    """The first of them."""
    return Samples(samples.images[:count], samples.labels[:count])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------- our side


def our_training(
    work: Work, samples: Samples, device: str, folder: Path, held: Samples | None = None
) -> Callable[[], float]:
    """Trains by `train`; returns the seconds of its epochs, without validation and files."""
    subject = Subject(work.model, CLASSES, "plain", Plain.declares)
    held = held or first(samples, 16)

    def run() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = train(samples, held, work.params(device), subject, Path(place) / "model")
        return made.card.seconds

    return run


def our_loading(samples: Samples, batch_size: int) -> Callable[[], None]:
    """An epoch of batches as our loop makes them: shuffled, moved, normalised."""
    engine = choose_engine("cpu")
    data = Data.of(samples, measure_normalisation(samples.images), engine)
    generator = torch.Generator().manual_seed(0)
    count = len(data)
    parts = even_slices(count, -(-count // batch_size))

    def run() -> None:
        order = torch.randperm(count, generator=generator)
        moves = draw_moves(count, MOVED, generator)
        for pixels, _ in data.batches(order, moves, parts):
            data.inputs(pixels)

    return run


# -------------------------------------------------------------------------------- what it is beside


class Pictures:
    """Images as a practitioner holds them: Pillow's, each through torchvision's transforms."""

    def __init__(self, samples: Samples) -> None:
        """Turns arrays into pictures: no part of what is timed."""
        from PIL import Image  # noqa: PLC0415 - our side must run where neither is installed
        from torchvision import transforms  # noqa: PLC0415

        self.pictures = [Image.fromarray(image) for image in np.asarray(samples.images)]
        self.labels: list[int] = samples.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(samples.images.shape[1], padding=CROP),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            ]
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image as the network takes it, and its label."""
        return self.transform(self.pictures[index]), self.labels[index]


def plain_loading(samples: Samples, batch_size: int) -> Callable[[], None]:
    """An epoch of a `DataLoader` in this process."""
    loader = _loader(samples, batch_size)

    def run() -> None:
        with torch.random.fork_rng(devices=[]):
            for _ in loader:
                pass

    return run


def plain_training(work: Work, samples: Samples) -> Callable[[], float]:
    """The usual loop on the CPU: float32, NCHW, eager; returns the seconds of its epochs."""
    loader = _loader(samples, work.batch_size)
    model = make_model(work.model, work.shape, len(CLASSES)).train()

    def run() -> float:
        optimiser = torch.optim.SGD(
            model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        with torch.random.fork_rng(devices=[]):
            start = time.perf_counter()
            for _ in range(work.epochs):
                for inputs, labels in loader:
                    optimiser.zero_grad()
                    loss = functional.cross_entropy(model(inputs), labels)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
            return time.perf_counter() - start

    return run


def _loader(samples: Samples, batch_size: int) -> "DataLoader[Any]":
    pictures: Any = Pictures(samples)
    return DataLoader(pictures, batch_size, shuffle=True, num_workers=0)


class Resident:
    """The same network, precision and optimiser on one batch that lies on the device as input.

    Nothing is loaded, so no loader can make it faster. It is made when first needed, and kept.
    """

    def __init__(self, work: Work, samples: Samples, params: TrainingParams) -> None:
        """Binds what is trained; takes no memory of the device yet."""
        self.work, self.samples, self.params = work, samples, params
        self.engine = choose_engine(params.device, params.precision)
        self.made: tuple[Forward, NesterovSgd, Tensor, Tensor] | None = None

    def __call__(self) -> float:
        """Does the steps of `work`; returns their seconds."""
        if self.made is None:
            self.made = self._make()
        forward, optimiser, inputs, labels = self.made
        steps = self.work.epochs * -(-self.work.count // self.work.batch_size)
        with kernels(self.engine, deterministic=self.params.deterministic):
            synchronise(self.engine)
            start = time.perf_counter()
            for _ in range(steps):
                optimiser.forget_gradients()
                with self.engine.autocast():
                    logits = forward(inputs)
                loss = functional.cross_entropy(
                    logits.float(), labels, label_smoothing=self.params.label_smoothing
                )
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step(self.params.peak_for(self.work.count))
            synchronise(self.engine)
            return time.perf_counter() - start

    def _make(self) -> tuple[Forward, NesterovSgd, Tensor, Tensor]:
        work, device = self.work, self.engine.device
        batch = first(self.samples, work.batch_size)
        data = Data.of(batch, measure_normalisation(batch.images), self.engine)
        ((pixels, labels),) = data.batches(torch.arange(len(data)), None, [slice(0, len(data))])
        model = make_model(work.model, work.shape, len(CLASSES)).train()
        model = model.to(device).to(memory_format=torch.channels_last)
        momentum, decay = self.params.momentum, self.params.weight_decay
        optimiser = NesterovSgd(model, momentum=momentum, weight_decay=decay)
        forward = torch.compile(model, dynamic=False) if self.params.compile == "on" else model
        return forward, optimiser, data.inputs(pixels), labels


def synchronise(engine: Engine) -> None:
    """Waits for the device."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)


def stored_images(samples: Samples, folder: Path) -> Samples:
    """The same images, in a set on disk that is read as it is used."""
    count = len(samples.labels)
    ids = np.arange(2 * count, dtype=">u8").view(np.uint8).reshape(count, 16)
    parts = {"train": (ids, samples.labels, np.asarray(samples.images), {})}
    write_set(folder, kind="protected", dataset="benchmark", classes=CLASSES, parts=parts)
    return read_samples([folder], "train", masks=False, room=0)[1]


# ------------------------------------------------------------------------------------------- cases


def cpu_training(work: Work, folder: Path, peaks: Peaks) -> Case:
    """Our loop beside the usual one."""
    samples = some_images(work.count, work.px)
    precision = choose_engine("cpu").precision
    name = f"train {work.model}, cpu, {precision}, channels last"
    return Case(
        name, f"{work.px} px, threads: {torch.get_num_threads()}",
        peaks.noted(name, our_training(work, samples, "cpu", folder), gpu=False),
        plain_training(work, samples), "fp32 NCHW and a DataLoader", work.count * work.epochs,
        faster=True, goal=3, own_time=True,
    )  # fmt: skip


def cpu_loading(count: int, base_count: int, px: int = 32, batch_size: int = 256) -> Case:
    """Our loader beside a `DataLoader` of Pillow images."""
    return Case(
        "crop, flip, normalise, cpu", f"{px} px, threads: 1",
        our_loading(some_images(count, px), batch_size),
        plain_loading(some_images(base_count, px), batch_size), "DataLoader and Pillow", count,
        base_items=base_count, faster=True, goal=30,
    )  # fmt: skip


def gpu_training(
    work: Work, rate_goal: float | None, folder: Path, peaks: Peaks, device: str = "cuda"
) -> Case:
    """Our loop, which loads, beside steps that load nothing."""
    samples, params = some_images(work.count, work.px), work.params(device)
    engine = choose_engine(params.device, params.precision)
    name = f"train {work.model}, {device}, {engine.precision}"
    return Case(
        name, f"{work.px} px, batches of {work.batch_size}",
        peaks.noted(name, our_training(work, samples, device, folder), gpu=device == "cuda"),
        Resident(work, samples, params), "one batch on the device", work.count * work.epochs,
        faster=True, goal=0.95, own_time=True, rate_goal=rate_goal,
    )  # fmt: skip


def disk_training(work: Work, folder: Path, peaks: Peaks, device: str = "cpu") -> Case:
    """Our loop on images that it reads from disk, beside itself on images in memory."""
    samples = some_images(work.count, work.px)
    stored = stored_images(samples, folder / f"{work.model}-{device}")
    name = f"train {work.model} from disk, {device}, {choose_engine(device).precision}"
    run = our_training(work, stored, device, folder, held=first(samples, 16))
    return Case(
        name, f"{work.px} px, batches of {work.batch_size}",
        peaks.noted(name, run, gpu=device == "cuda"),
        our_training(work, samples, device, folder), "images in memory", work.count * work.epochs,
        faster=True, goal=0.95, own_time=True,
    )  # fmt: skip


def gpu_works(*, quick: bool, eager: bool) -> Iterator[tuple[Work, float]]:
    """What a GPU trains, and the images a second that one H200 is meant to reach."""
    epochs = 1 if quick else 3
    yield Work("resnet18", 32, (4 if quick else 50) * 1024, 1024, epochs, eager), 45_000
    yield Work("resnet50", 224, (2 if quick else 8) * 256, 256, epochs, eager), 3_500


# ---------------------------------------------------------------------------------------- CIFAR-10


@dataclass(frozen=True)
class Reached:
    """What a training reached, and in what time.

    Attributes:
        seconds: Training alone, warm, without validation.
        accuracy: Share of right answers by the kind of test images, 0..1.
        tested: Number of test images by kind.
    """

    seconds: float
    accuracy: Mapping[str, float]
    tested: Mapping[str, int]

    def words(self) -> str:
        """The same in one line."""
        parts = [
            f"{100 * share:.2f} % of {self.tested[kind]:,} test images stored {kind}"
            for kind, share in self.accuracy.items()
        ]
        return f"CIFAR-10: {self.seconds:.1f} s to {', '.join(parts)}; goal 94 %"


def reached(
    training: Samples,
    tests: Mapping[str, Samples],
    params: TrainingParams,
    subject: Subject,
    folder: Path,
) -> Reached:
    """Trains once to warm up, and once for the figures; the weights are those of the last epoch."""
    held = next(iter(tests.values()))
    warm = params.model_copy(update={"epochs": 1})
    train(training, held, warm, subject, folder / "warm")
    made = train(training, held, params, subject, folder / "model")
    model, card = load_model(made.folder)
    engine = choose_engine(params.device, params.precision)
    model = model.to(engine.device)
    accuracy = {
        kind: _right(model, Data.of(test, card.normaliser, engine), engine)
        for kind, test in tests.items()
    }
    counts = {kind: len(test.labels) for kind, test in tests.items()}
    return Reached(card.seconds, accuracy, counts)


@torch.inference_mode()
def _right(model: nn.Module, data: Data, engine: Engine) -> float:
    """The share of right answers, as the loop's validation finds it."""
    parts, right = even_slices(len(data), -(-len(data) // 512)), 0
    for pixels, labels in data.batches(torch.arange(len(data)), None, parts):
        with engine.autocast():
            said = model(data.inputs(pixels)).argmax(dim=1)
        right += int((said == labels).sum())
    return right / len(data)


def read_cifar10(path: str) -> tuple[Samples, dict[str, Samples], tuple[str, ...]]:
    """Training images, test images by how they are stored, and class names.

    JPEG files are tested apart: their loss costs accuracy that no training is to blame for.

    Raises:
        SourceError: The source has no training or test images, or names no classes.
    """
    from veilset.data.decode import Decoded, DecodeParams, decode, decode_array  # noqa: PLC0415
    from veilset.data.sources.registry import open_source  # noqa: PLC0415

    source, params = open_source(path, Path()), DecodeParams(size=32, channels=3)
    found: dict[str, tuple[list[Images], list[int]]] = {}
    for item in source.items():
        array = isinstance(item.content, np.ndarray)
        taken = (decode_array if array else decode)(item.content, params)  # type: ignore[arg-type]
        if not isinstance(taken, Decoded) or item.label is None:
            continue
        kind = str(item.split)
        if kind == "test":
            kind = "as JPEG" if taken.format in ("JPEG", "MPO") else "without loss"
        images, labels = found.setdefault(kind, ([], []))
        images.append(taken.pixels)
        labels.append(item.label)
    sets: dict[str, Samples] = {
        kind: Samples(np.stack(images), np.array(labels, dtype=np.int64))
        for kind, (images, labels) in sorted(found.items(), reverse=True)
    }
    tests = {kind: part for kind, part in sets.items() if kind not in ("train", "validation")}
    classes = source.classes()
    if "train" not in sets or not tests or classes is None:
        raise SourceError(
            f"{path} has no training images, no test images or no class names: give CIFAR-10 in a "
            "layout with all of them."
        )
    return sets["train"], tests, classes


# -------------------------------------------------------------------------------------------- main


def measure_cpu(folder: Path, peaks: Peaks, *, quick: bool) -> Iterator[Result]:
    """All cases of the CPU."""
    work = Work("resnet18", 32, 16, 8) if quick else Work("resnet18", 32, 256, 128)
    yield measured(cpu_training(work, folder, peaks), 2 if quick else 3)
    disk = Work("resnet18", 32, 16, 8) if quick else Work("resnet18", 32, 512, 64)
    yield measured(disk_training(disk, folder, peaks), 2 if quick else 3)
    counts = (2048, 256) if quick else (16_384, 1024)
    with threads(1):
        yield measured(cpu_loading(*counts), 3 if quick else 9)


def measure_gpu(folder: Path, peaks: Peaks, *, quick: bool, eager: bool) -> Iterator[Result]:
    """All cases of the GPU."""
    for work, goal in gpu_works(quick=quick, eager=eager):
        yield measured(gpu_training(work, goal, folder, peaks), 2 if quick else 5)
        yield measured(disk_training(work, folder, peaks, "cuda"), 2 if quick else 5)


def main(arguments: list[str] | None = None, output: Path = RESULTS) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images and rounds: seconds")
    parser.add_argument(
        "--device", action="append", choices=("cpu", "cuda"), metavar="NAME",
        help="cpu or cuda, once or twice; by default wherever it can",
    )  # fmt: skip
    parser.add_argument("--eager", action="store_true", help="compile nothing on the GPU")
    parser.add_argument("--cifar10", metavar="PATH", help="time CIFAR-10 to 94 %% on the GPU")
    options = parser.parse_args(arguments)
    cuda = cuda_works()
    devices: list[str] = options.device or ["cpu", *["cuda"] * cuda]
    if not cuda and ("cuda" in devices or options.cifar10):
        parser.error("this machine has no CUDA")
    if not cuda:
        print("This machine has no CUDA: what is measured on a GPU is left out.")
    peaks, results = Peaks(), list[Result]()
    facts: dict[str, Any] = {"threads": torch.get_num_threads(), "peak_mib": peaks.found}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if "cpu" in devices:
            results += measure_cpu(folder, peaks, quick=options.quick)
        if "cuda" in devices:
            results += measure_gpu(folder, peaks, quick=options.quick, eager=options.eager)
        if options.cifar10:
            training, tests, classes = read_cifar10(options.cifar10)
            subject = Subject("resnet18", classes, "plain", Plain.declares)
            recipe = RECIPE.model_copy(update={"compile": "off" if options.eager else "on"})
            made = reached(training, tests, recipe, subject, folder)
            print(made.words())
            facts["cifar10"] = {
                "seconds": made.seconds, "recipe": recipe.model_dump(mode="json"),
                "tested": dict(made.tested),
                "accuracy": dict(made.accuracy),
            }  # fmt: skip
    facts["host_peak_mib"] = host_peak()
    print(table(results))
    for name, most in peaks.found.items():
        words = ", ".join(f"{place} {value:,.0f} MiB" for place, value in most.items())
        print(f"peak memory of {name}: {words}")
    print(f"peak host memory of all of it: {facts['host_peak_mib']:,.0f} MiB")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    path = save("training-quick" if options.quick else "training", results, output, facts)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
