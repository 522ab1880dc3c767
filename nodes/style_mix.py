"""What travels over a STYLEMAMBA_STYLE link: one or several styles, each with its weight. Never changed once made.

A style is a fitted one, one that was read from a picture, the words of a prompt, which the model that uses it reads, or a
picture with the image-guided model that paints in its style.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline.style import Style
    from .model import HostModel


@dataclass(frozen=True, eq=False)
class StylePicture:
    """`model` is a SaMam or Mamba-ST, which nothing but pictures tells a style."""

    model: "HostModel"
    picture: "Tensor"  # (1, 3, H, W) in [0, 1]


@dataclass(frozen=True, eq=False)
class StyleMix:
    parts: tuple[tuple["Style | StylePicture | str", float], ...]
    mode: str = "linear"  # or "slerp", see `pipeline/style_mixing.py`

    @classmethod
    def of(cls, style: "Style | StylePicture | str") -> "StyleMix":
        return cls(((style, 1.0),))

    def scaled(self, weight: float) -> "StyleMix":
        return replace(self, parts=tuple((style, weight * own) for style, own in self.parts))

    def __add__(self, other: "StyleMix") -> "StyleMix":
        return replace(self, parts=self.parts + other.parts)

    @property
    def words(self) -> list[str]:
        return [style for style, _ in self.parts if isinstance(style, str)]

    @property
    def pictures(self) -> list[StylePicture]:
        return [style for style, _ in self.parts if isinstance(style, StylePicture)]

    @property
    def fitted(self) -> list["Style"]:
        """Those that are more than a direction: a network of their own was trained."""
        styles = [style for style, _ in self.parts if not isinstance(style, str)]
        return [style for style in styles if style.info.get("steps_done") != 0]
