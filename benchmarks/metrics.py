"""How fast our SSIM is beside torchmetrics' on the same images: `python -m benchmarks.metrics`.

One thread each. Ours works in float64 and skips what torchmetrics pads and cuts off again.
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks.harness import Case, machine, measured, save, table
from veilset.metrics.similarity import ssim


def cases(sizes: dict[int, int]) -> Iterator[Case]:
    """SSIM of random colour images beside a noisy copy; `sizes` has the images by their side."""
    rng = np.random.default_rng(0)
    for px, count in sizes.items():
        first = rng.integers(0, 256, (count, px, px, 3), dtype=np.uint8)
        second = (first // 2 + rng.integers(0, 128, first.shape)).astype(np.uint8)
        # Conversion is part of neither.
        tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (first, second)]

        def theirs(tensors: list[torch.Tensor] = tensors) -> Any:
            return structural_similarity_index_measure(*tensors, data_range=255.0, reduction=None)

        yield Case(
            "SSIM", f"{px} px", lambda first=first, second=second: ssim(first, second), theirs,
            "torchmetrics", count, faster=True, goal=1,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images and rounds: seconds")
    quick: bool = parser.parse_args().quick
    sizes = {32: 64, 96: 16} if quick else {32: 512, 96: 64, 224: 16}
    torch.set_num_threads(1)
    results = [measured(case, 3 if quick else 9) for case in cases(sizes)]
    print(table(results))
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"written to {save('metrics-quick' if quick else 'metrics', results)}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
