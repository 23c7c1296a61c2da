"""Where a model runs and in which dtype: what was asked for, or what this machine and the checkpoint have.

Left open, a model goes to the accelerator that is here, in the half precision that its checkpoint has; on a CPU it
runs in float32. Knows no model but through its config. Costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from hooked_vlm.errors import InputsError
from hooked_vlm.models.config import VLMConfig

Moved = TypeVar("Moved", bound="Placed")
HALF = (torch.float16, torch.bfloat16)
_UNPLACED = ("cpu", "disk", "meta")  # of a device map: where nothing is computed by an accelerator
_PARTS = ("text_config", "vision_config")  # of a config that names no dtype of its own


def accelerator() -> torch.device | None:
    """The accelerator of this machine: CUDA, else Apple's MPS, else None."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else None


def is_fast(device: torch.device | None) -> bool:
    """True if a device computes in half precision at its best: an accelerator, and no CPU."""
    return device is not None and device.type != "cpu"


def placed(
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    config: Any,
    *,
    device_map: Any = None,
    quantization_config: Any = None,
) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and dtype that a checkpoint is loaded to.

    Args:
        device: one that is here; None or "auto" for the accelerator, else the CPU.
        dtype: a floating-point one; None or "auto" for float32 on a CPU, and on an accelerator the checkpoint's own
            if that is a half precision, else float32.
        config: the checkpoint's Hugging Face config.
        device_map: as Hugging Face takes it. It and a quantisation place the model, where no device is named.
        quantization_config: likewise; the config's own if left out.

    Returns:
        The device, None where Hugging Face places the model; the dtype, None where the config does not say in which
        the weights are stored, and they are to be taken as they are.

    Raises:
        InputsError: if there is no such dtype or device here, or both a device and a device map are given.
    """
    if device is not None and device_map is not None:
        raise InputsError("device and device_map were both given: give one")
    here = accelerator()
    quantization_config = quantization_config or getattr(config, "quantization_config", None)
    if device not in (None, "auto"):
        where: torch.device | None = to_device(device)
        if where is not None and where.type == "meta":
            raise InputsError("device is 'meta', which holds no numbers, so nothing could be run; try 'cpu'")
    elif device_map is not None or (device is None and quantization_config is not None):
        where = None
    else:
        where = here or torch.device("cpu")
    if dtype not in (None, "auto"):
        return where, to_dtype(dtype)
    if not (is_fast(where or here) and (device_map is None or _uses_accelerator(device_map))):
        return where, torch.float32
    own = own_dtype(config)
    return where, own if own in (*HALF, None) else torch.float32


def own_dtype(config: Any) -> torch.dtype | None:
    """The dtype that a config says its weights are stored in, or None."""
    for part in (config, *(getattr(config, name, None) for name in _PARTS)):
        found = getattr(part, "dtype", None)
        if found is not None:
            return getattr(torch, found.removeprefix("torch."), None) if isinstance(found, str) else found
    return None


def told(device: torch.device | str | None, dtype: torch.dtype | str | None) -> str:
    """A device and a dtype in words, e.g. "on cuda in float16"."""
    words = "the checkpoint's own dtype" if dtype is None else str(dtype).removeprefix("torch.")
    return f"{'where Hugging Face places it' if device is None else f'on {device}'} in {words}"


def to_dtype(dtype: Any) -> torch.dtype:
    """A floating-point dtype by name or as it is.

    Raises:
        InputsError: if there is none of that name.
    """
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputsError(f"dtype is {dtype!r}; expected a floating-point one such as 'float32', 'bfloat16', 'float16'")
    return found


def to_device(device: Any) -> torch.device:
    """A device that exists here.

    Raises:
        InputsError: if it does not.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputsError(f"device is {device!r}, which is not here ({said}); try 'cpu'") from error
    return found


def asked(
    where: Iterable[Any], device: Any = None, dtype: Any = None
) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and the dtype, None for as it is, that arguments like those of `torch.Tensor.to` mean.

    Raises:
        InputsError: if there is no such device or dtype here, one is named twice, or something is neither.
    """
    found: dict[str, list[Any]] = {"device": [device], "dtype": [dtype]}
    for given in where:
        if given is None:
            continue
        parts = _place(given)
        for name, value in parts.items():
            found[name].append(value)
    for name, values in found.items():
        found[name] = [value for value in values if value is not None]
        if len(found[name]) > 1:
            raise InputsError(f"two {name}s were given, {found[name][0]} and {found[name][1]}: give one")
    return (
        to_device(found["device"][0]) if found["device"] else None,
        to_dtype(found["dtype"][0]) if found["dtype"] else None,
    )


class Placed(nn.Module):
    """Where a model's weights are, and how they are moved."""

    hf_model: nn.Module
    cfg: VLMConfig

    def to(self: Moved, *where: Any, **options: Any) -> Moved:
        """As `nn.Module.to`, to what is here: a device, a floating-point dtype, both, or a tensor or inputs to be like.

        Raises:
            InputsError: if there is no such device or dtype.
        """
        if where and isinstance(where[-1], bool):  # as torch takes it, after the others
            where, options["non_blocking"] = where[:-1], where[-1]
        device, dtype = asked(where, options.pop("device", None), options.pop("dtype", None))
        return super().to(device=device, dtype=dtype, **options)

    @property
    def device(self) -> torch.device:
        """Where the first weight is that is in memory; the CPU if all are offloaded."""
        devices = (p.device for p in self.hf_model.parameters() if p.device.type != "meta")
        return next(devices, torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The weights' floating-point type (the first such, in a quantised model)."""
        return next(p.dtype for p in self.hf_model.parameters() if p.is_floating_point())

    @property
    def _is_dispatched(self) -> bool:
        return len(set(getattr(self.hf_model, "hf_device_map", {}).values())) > 1

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._after_move()
        return self

    def _after_move(self) -> None:
        self.cfg.sync(self.device, self.dtype)


def _place(given: Any) -> dict[str, Any]:
    """The device and the dtype that one positional argument of a `to` means."""
    if isinstance(given, torch.dtype):
        return {"dtype": given}
    if isinstance(given, str | torch.device) or (isinstance(given, int) and not isinstance(given, bool)):
        return {"device": given}
    parts = {name: getattr(given, name, None) for name in ("device", "dtype")}
    if isinstance(parts["device"], torch.device) and isinstance(parts["dtype"], torch.dtype):
        return parts
    raise InputsError(
        f"to was given a {type(given).__name__}, {str(given)[:40]}; expected a device, a dtype, or a model, tensor or "
        "inputs to be like"
    )


def _uses_accelerator(device_map: Any) -> bool:
    """True if a device map puts a part on an accelerator, where there is one."""
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    return any(str(place).partition(":")[0] not in _UNPLACED for place in places)
