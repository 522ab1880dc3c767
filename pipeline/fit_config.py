"""The settings of a prompt-fit, with the schedules of the paper. Every schedule is written in epochs, counted from 0."""

import dataclasses
import math
from dataclasses import dataclass

_PAPER = {
    "steps_per_epoch": 1, "lr": 5e-4, "content_weights": (9000.0, 150.0), "masked_variant": "directional", "patch_crops": 0,
    "patch_weight": 9000.0, "tv_weight": 0.0, "image_size": 512,
}  # fmt: skip
_PRESETS = {
    # the paper: one step an epoch, masks instead of patches
    "paper": _PAPER,
    # CLIPstyler's patch loss makes texture local; holes seen in both pictures keep the content best
    "quality": _PAPER | {"steps_per_epoch": 10, "masked_variant": "same_mask", "patch_crops": 16, "tv_weight": 2e-3},
    # a look in a quarter of the time
    "fast": _PAPER | {"image_size": 256},
    # for a model that paints the prompt already, as the bundled one: the paper's content weights would lead back to the photo
    "sharpen": _PAPER
    | {"lr": 4e-4, "content_weights": (15.0, 15.0), "patch_crops": 4, "patch_weight": 500.0, "image_size": 384},
}  # fmt: skip
_TRAIN = ("fusion+decoder", "fusion", "decoder_lora")
_WHOLE = {  # and the least they may be
    "epochs": 1, "steps_per_epoch": 1, "halve_at": 0, "content_switch": 0, "second_order_every": 1, "mask_patch": 1,
    "patch_crops": 0, "patch_size": 1, "lora_rank": 1, "image_size": 16,
}  # fmt: skip
_REAL = (
    "lr", "style_weight", "theta", "alpha", "beta", "mask_ratio", "delta", "patch_weight", "patch_threshold",
    "range_weight", "tv_weight", "temporal_weight", "gradient_clip",
)  # fmt: skip

# What a fit on a film takes, where nothing else is asked for: frames that follow each other, and the weight to hold them calm.
KEY_FRAMES, FILM_TEMPORAL_WEIGHT = 3, 1000.0


@dataclass(frozen=True)
class PromptFitConfig:
    """How to fit a style to a prompt. Fields that are None take the value of `preset`.

    train: "fusion+decoder" (the paper), "fusion" (a small file, and the decoder cannot be damaged) or "decoder_lora"
        (the fusion and low-rank changes of the decoder: nearly as small).
    lr, halve_at: Adam's rate, halved from that epoch on.
    content_weights, content_switch: weight of the content terms before and from that epoch on.
    style_weight: weight of L_dir + L_md + L_so. theta: L_so counts only where L_dir is below it.
    alpha, beta: of alpha_shift. second_order_every: epochs between snapshots.
    mask_ratio, mask_patch: share of patches removed, and their side on the image encoder's grid.
    masked_variant, second_order_variant, content_variant: readings of the losses, see `losses.py`.
    delta: guard of the directional terms against the singular gradient where the result is still the content.
    patch_crops, patch_size, patch_weight, patch_threshold: CLIPstyler's patch loss; off at 0 crops.
    temporal_weight: of the terms that hold a film calm; the pictures are then frames that follow each other.
    image_size: the longer side is reduced to it for the fit. templates: sentences around the prompt, averaged.
    """

    epochs: int = 20
    steps_per_epoch: int | None = None
    lr: float | None = None
    halve_at: int = 10
    content_weights: tuple[float, float] | None = None
    content_switch: int = 5
    style_weight: float = 500.0
    theta: float = 0.8
    alpha: float = 1.0
    beta: float = 2.0
    second_order_every: int = 5
    mask_ratio: float = 0.5
    mask_patch: int = 16
    train: str = "fusion+decoder"
    source_prompt: str = "a plain photo"
    preset: str = "paper"
    masked_variant: str | None = None
    second_order_variant: str = "aligned"
    content_variant: str = "clipstyler"
    delta: float = 0.05
    patch_crops: int | None = None
    patch_size: int = 128
    patch_weight: float | None = None
    patch_threshold: float = 0.7
    range_weight: float = 50.0
    tv_weight: float | None = None
    temporal_weight: float = 0.0
    gradient_clip: float = 1.0
    lora_rank: int = 4
    image_size: int | None = None
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        if self.preset not in _PRESETS:
            raise ValueError(f"preset is {self.preset!r}, wanted one of {', '.join(_PRESETS)}.")
        for name, value in _PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        # JSON gives lists back
        object.__setattr__(self, "content_weights", tuple(self.content_weights))
        object.__setattr__(self, "templates", tuple(self.templates))
        _one_of("train", self.train, _TRAIN)
        _one_of("masked_variant", self.masked_variant, ("directional", "same_mask", "ratio"))
        _one_of("second_order_variant", self.second_order_variant, ("aligned", "ratio", "elementwise"))
        _one_of("content_variant", self.content_variant, ("clipstyler", "normalised"))
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}, wanted a whole number from {least} on.")
        for name in _REAL:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}, wanted a number from 0 on.")
        if self.mask_ratio > 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio}, wanted a share from 0 to 1.")
        if len(self.content_weights) != 2 or not all(
            0 <= weight < math.inf for weight in self.content_weights
        ):
            raise ValueError(
                f"content_weights are {self.content_weights}, wanted two numbers from 0 on: before and after the switch."
            )
        if not self.templates or any("{}" not in template for template in self.templates):
            raise ValueError(
                f"templates are {self.templates}, wanted sentences with a {{}} where the prompt goes."
            )

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def content_weight(self, epoch: int) -> float:
        before, after = self.content_weights
        return before if epoch < self.content_switch else after

    def learning_rate(self, epoch: int) -> float:
        return self.lr * (0.5 if epoch >= self.halve_at else 1.0)

    def second_order_epochs(self) -> list[int]:
        """Epochs in which the second-order loss is evaluated."""
        return list(range(self.second_order_every, self.epochs, self.second_order_every))

    def snapshot_of(self, epoch: int) -> int:
        """The epoch whose snapshot the second-order loss of `epoch` is measured against."""
        return epoch - self.second_order_every

    def to_dict(self) -> dict:
        """As JSON gives it back: lists in place of tuples."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, wanted one of {', '.join(allowed)}.")
