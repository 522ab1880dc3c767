"""Prompt-fits on the disk, by the hash of all that went into them.

Responsible for the name, for reading what is there and writing what is new. The host's own cache forgets results when
memory is short and when it is closed; a minute of training is worth a file.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .folders import fits_folder

if TYPE_CHECKING:
    from ..pipeline.fit_config import PromptFitConfig
    from ..pipeline.style import Style

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredFit:
    folder: Path
    key: str

    @classmethod
    def of(cls, model, pictures: Tensor, prompt: str, config: "PromptFitConfig", seed: int) -> "StoredFit":
        from ..pipeline.style import fingerprint

        nets = {name: net for name, net in model.pipe.components.items() if isinstance(net, nn.Module)}
        request = {
            "prompt": prompt,
            "config": config.to_dict(),
            "seed": seed,
            "nets": {name: fingerprint(net) for name, net in sorted(nets.items())},
            "shape": list(pictures.shape),
        }
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
        digest.update(pictures.contiguous().numpy().tobytes())
        return cls(fits_folder(), digest.hexdigest()[:32])

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.safetensors"

    def checkpoint(self, config: "PromptFitConfig") -> Path:
        """Where an unfinished fit is kept; one at another size, for want of memory, is another fit."""
        return self.folder / f"{self.key}-{config.image_size}.part.safetensors"

    def read(self) -> "Style | None":
        from ..pipeline.style import Style, StyleFileError

        if not self.path.is_file():
            return None
        try:
            return Style.load(self.path)
        except StyleFileError as error:
            logger.warning("A stored fit is left out and made again: %s", error)
            return None

    def write(self, style: "Style") -> None:
        style.save(self.path)
        for part in self.folder.glob(f"{self.key}-*.part.safetensors"):
            part.unlink()
