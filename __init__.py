"""StyleMamba: text-driven style transfer, as a Python package and as a ComfyUI node pack.

Installed with pip, this folder *is* the package ``stylemamba``. Cloned into ``custom_nodes``, ComfyUI imports it
under its file path instead; that copy only hands over to ``stylemamba``, so that every class has one name and a
checkpoint saved in one place loads in the other.
"""

import importlib
import importlib.util
import sys

_EXPORTS = {
    "FitProgress": ".pipeline.prompt_fit",
    "MambaST": ".pipeline.mamba_st",
    "MambaSTPipeline": ".pipeline.image_guided_pipeline",
    "PromptFitConfig": ".pipeline.prompt_fit",
    "Region": ".pipeline.regions",
    "SaMam": ".pipeline.samam",
    "SaMamPipeline": ".pipeline.image_guided_pipeline",
    "SiglipEncoder": ".pipeline.siglip_encoder",
    "Style": ".pipeline.style",
    "StyleFusion": ".pipeline.fusion",
    "StyleMambaPipeline": ".pipeline.pipeline_stylemamba",
    "StyleMambaPipelineOutput": ".pipeline.pipeline_stylemamba",
    "VGGFeatures": ".pipeline.perceptual",
    "alpha_shift": ".pipeline.losses",
    "content_loss": ".pipeline.losses",
    "directional_loss": ".pipeline.losses",
    "masked_directional_loss": ".pipeline.losses",
    "mean_std_loss": ".pipeline.losses",
    "patch_mask": ".pipeline.losses",
    "preset": ".pipeline.presets",
    "scan_backends": ".pipeline.selective_scan",
    "scan_orders": ".pipeline.scan_orders",
    "score": ".pipeline.metrics",
    "second_order_loss": ".pipeline.losses",
    "selective_scan": ".pipeline.selective_scan",
    "selective_scan_ref": ".pipeline.selective_scan",
    "style_loss": ".pipeline.losses",
    "stylize_regions": ".pipeline.regions",
    "total_variation": ".pipeline.losses",
}


def _import_under_package_name():
    """Import this very file as the package ``stylemamba``, whatever name ComfyUI gave it."""
    if "stylemamba" not in sys.modules:
        spec = importlib.util.spec_from_file_location("stylemamba", __file__)
        package = importlib.util.module_from_spec(spec)
        sys.modules["stylemamba"] = package
        spec.loader.exec_module(package)


if __name__ == "stylemamba":
    __version__ = "0.1.0"
    __all__ = ["__version__", *_EXPORTS]

    def __getattr__(name: str):
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_EXPORTS[name], __name__), name)

    def __dir__():
        return sorted(__all__)

else:
    _import_under_package_name()
    from stylemamba.nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
