"""What is free on a device, and what is said where it was not enough.

Torch, NumPy and the system each tell a failed allocation in another way: `ran_out` knows them, and takes no other error
for one. `told_if_out` makes a `DoesNotFitError` of them, which says what ran and the ways out, and lets go of what the
failed run held. Costs nothing until then.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from hooked_vlm.errors import DoesNotFitError
from hooked_vlm.given import line
from hooked_vlm.models import placement

GIB = 2**30
# What torch raises as a bare RuntimeError: on the CPU, on Apple's MPS, and where a library of CUDA's asks for itself.
FAILED = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|_ALLOC_FAILED|Invalid buffer size", re.IGNORECASE
)


def ran_out(error: BaseException) -> bool:
    """Whether an error is a failed allocation.

    Example:
        >>> ran_out(MemoryError()), ran_out(RuntimeError("the sizes of tensors must match"))
        (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and FAILED.search(str(error)) is not None


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def shown(n: int | float) -> str:
    """Bytes in words.

    Example:
        >>> shown(3 * 2**29), shown(2**20)
        ('1.5 GiB', '1.0 MiB')
    """
    return f"{n / GIB:,.1f} GiB" if n >= GIB / 10 else f"{n / 2**20:,.1f} MiB"


def general_ways(dtype: torch.dtype) -> list[str]:
    """Ways out that any run has of a model in this dtype."""
    wide = dtype not in placement.HALF
    return [
        *(["half precision (dtype='bfloat16' or 'float16') takes half the memory"] if wide else []),
        "device_map='auto' or quantization_config= (HookedVLM.from_pretrained) spreads or shrinks the weights",
    ]


@contextmanager
def told_if_out(
    what: Callable[[], str], device: Callable[[], torch.device], ways: Callable[[], Sequence[str]]
) -> Iterator[None]:
    """While it is open, a failed allocation is raised as a `DoesNotFitError`; one that was told already stays.

    What the failed run held is let go of, so that whoever catches the error can try again with less.

    Args:
        what: says what ran, e.g. "generate with 8 rows".
        device: where.
        ways: ways out.
    """
    try:
        yield
    except DoesNotFitError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        free = shown(free_bytes(device()))
        traceback.clear_frames(error.__traceback__)
        raise DoesNotFitError(
            f"{what()} ran out of memory on {device()}, where {free} were free ({line(error)})", *ways()
        ) from error
