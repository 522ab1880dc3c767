"""The one place that imports ComfyUI, by its numbered API, so that a change in the host is met in one file."""

from comfy_api.v0_0_2 import ComfyExtension

__all__ = ["ComfyExtension"]
