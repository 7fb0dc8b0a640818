"""Where a training computes, and in which precision."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from veilset.errors import TrainingError

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, Arm


@dataclass(frozen=True)
class Engine:
    """A device and a precision.

    Attributes:
        device: The CPU or one CUDA device.
        precision: `fp32`, or `bf16`: bfloat16 products with float32 weights.
    """

    device: torch.device
    precision: Literal["fp32", "bf16"]

    def autocast(self) -> AbstractContextManager[object]:
        """The context that forward passes run in."""
        mixed = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def fits(self, size: int) -> bool:
        """Whether so many bytes of images may stay on the device for good: half of what is free."""
        if self.device.type != "cuda":
            return True
        return size <= torch.cuda.mem_get_info(self.device)[0] // 2


def choose_engine(device: DeviceName = "auto", precision: Precision = "auto") -> Engine:
    """Chooses device and precision by what the machine can do.

    Args:
        device: `auto` takes CUDA where it works, else the CPU.
        precision: `auto` takes bf16 where the hardware has instructions for it: elsewhere it would
            be emulated and slower than fp32.

    Raises:
        TrainingError: CUDA or bf16 was asked for and is not there.
    """
    usable = device != "cpu" and cuda_works()
    if device == "cuda" and not usable:
        raise TrainingError("device is cuda, but no CUDA device works here: use auto or cpu.")
    place = torch.device("cuda" if usable else "cpu")
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if usable else cpu_has_bf16()
    if precision == "bf16" and not fast:
        raise TrainingError(f"precision is bf16, but this {place.type} lacks it: use auto or fp32.")
    return Engine(place, "bf16" if fast and precision != "fp32" else "fp32")


def cuda_works() -> bool:
    """Whether a CUDA device is there and computes (a driver may be present and broken)."""
    if not torch.cuda.is_available():
        return False
    try:
        return bool(torch.ones(2, device="cuda").sum().item() == 2)
    except RuntimeError:
        return False


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has bfloat16 instructions (AVX512_BF16, AMX or Arm's)."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Feat")))
    return any(_BF16_FLAGS.intersection(line) for line in flags)


def device_name(engine: Engine) -> str:
    """The name of the hardware, e.g. of the GPU; of a CPU its model, or the machine's type."""
    if engine.device.type == "cuda":
        return torch.cuda.get_device_name(engine.device)
    with suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@contextmanager
def kernels(
    engine: Engine,
    *,
    deterministic: bool | Literal["where there are"],
    threads: int | Literal["auto"] = "auto",
) -> Iterator[None]:
    """Torch's settings inside the block; they are put back after it.

    Args:
        engine: What computes.
        deterministic: Deterministic kernels only; or "where there are", and others with a warning.
        threads: Threads of the CPU, or `auto` for as many as before.
    """
    cores = torch.get_num_threads()
    # Not torch.use_deterministic_algorithms, which first imports a compiler: seconds for nothing.
    before = torch.get_deterministic_debug_mode()
    tuned = torch.backends.cudnn.benchmark
    if deterministic and engine.device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may vary
    modes: dict[Any, str] = {True: "error", False: "default", "where there are": "warn"}
    torch.set_deterministic_debug_mode(modes[deterministic])
    # Nothing of ours reads memory that was never written, so filling it would only cost time.
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_num_threads(cores if threads == "auto" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(cores)
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = tuned
