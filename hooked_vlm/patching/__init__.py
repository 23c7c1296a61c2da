"""Patching: sites, metrics, and the exact sweep over them."""

from hooked_vlm.patching.metrics import Metric
from hooked_vlm.patching.sites import Sites
from hooked_vlm.patching.sweep import sweep

__all__ = ["Metric", "Sites", "sweep"]
