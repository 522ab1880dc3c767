"""What travels over a STYLEMAMBA_STYLE link: one or several styles, each with its weight. Never changed once made."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipeline.style import Style


@dataclass(frozen=True, eq=False)
class StyleMix:
    parts: tuple[tuple["Style", float], ...]

    @classmethod
    def of(cls, style: "Style") -> "StyleMix":
        return cls(((style, 1.0),))

    def scaled(self, weight: float) -> "StyleMix":
        return StyleMix(tuple((style, weight * own) for style, own in self.parts))

    def __add__(self, other: "StyleMix") -> "StyleMix":
        return StyleMix(self.parts + other.parts)
