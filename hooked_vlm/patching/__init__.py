"""Patching: sites, metrics, the exact sweep over them, and what is estimated by gradients."""

from hooked_vlm.patching.attribution import attribution
from hooked_vlm.patching.metrics import Metric
from hooked_vlm.patching.paths import path_patching
from hooked_vlm.patching.screening import Screen
from hooked_vlm.patching.sites import Sites
from hooked_vlm.patching.sweep import sweep

__all__ = ["Metric", "Screen", "Sites", "attribution", "path_patching", "sweep"]
