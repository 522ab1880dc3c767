"""The list of nodes that ComfyUI registers."""

from . import host
from .blend_styles import StyleMambaBlendStyles
from .latents import StyleMambaDecode, StyleMambaFuse
from .loader import StyleMambaLoader
from .prompt_fit import StyleMambaPromptFit
from .region import StyleMambaRegion
from .save_lut import StyleMambaSaveLUT
from .score import StyleMambaScore
from .style_files import StyleMambaLoadStyle, StyleMambaSaveStyle
from .style_from_image import StyleMambaStyleFromImage
from .stylize import StyleMambaStylize


class StyleMambaExtension(host.ComfyExtension):
    async def on_load(self) -> None:
        host.model_roots()  # so that the host knows the folder from the start

    async def get_node_list(self) -> list[type[host.io.ComfyNode]]:
        return [
            StyleMambaStylize,
            StyleMambaLoader,
            StyleMambaLoadStyle,
            StyleMambaPromptFit,
            StyleMambaSaveStyle,
            StyleMambaBlendStyles,
            StyleMambaStyleFromImage,
            StyleMambaFuse,
            StyleMambaDecode,
            StyleMambaScore,
            StyleMambaRegion,
            StyleMambaSaveLUT,
        ]
