"""Videos on the command line: which file the result goes to, and the way of its frames through a pipeline."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .output_files import names_a_file, plan_outputs, require_output
from .terminal import progress_bar, say

if TYPE_CHECKING:
    from ..pipeline_stylemamba import StyleMambaPipeline
    from ..video import VideoFile


@dataclass(frozen=True)
class VideoPlan:
    source: "VideoFile"
    target: Path


def plan_video(source: Path, label: str, out: str | None, overwrite: bool) -> VideoPlan:
    """Both ends checked, before any long work is done."""
    from ..video import WRITABLE, VideoFile

    if names_a_file(out):
        target = Path(out)
        if target.suffix.lower() not in WRITABLE:
            raise typer.BadParameter(
                f"-o {target} ends in {target.suffix!r}, wanted one of {', '.join(WRITABLE)} for a video."
            )
    else:
        target = plan_outputs([source], [label], out, overwrite=True)[source][0].with_suffix(".mp4")
    if target.resolve() == source.resolve():
        raise FileExistsError(f"{target} is the video to stylize: give another name with -o.")
    require_output(target, overwrite=overwrite)
    return VideoPlan(VideoFile(source), target)


def stylize_video(pipe: "StyleMambaPipeline", plan: VideoPlan, settings: dict, deflicker: float) -> None:
    """settings: arguments of the pipeline for every frame."""
    import torch

    from ..deflicker import stylize_frames
    from ..video import restyle_video

    def paint(frame: torch.Tensor) -> torch.Tensor:
        return pipe(frame, output_type="pt", **settings).images.cpu()

    def restyle(frames):
        tensors = (torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 255 for frame in frames)
        for frame in stylize_frames(paint, tensors, deflicker):
            yield (frame[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()

    with progress_bar() as bar:
        task = bar.add_task("stylizing", total=plan.source.frames or None)
        restyle_video(plan.source, plan.target, restyle, lambda done: bar.update(task, completed=done))
    say(plan.target)


def read_key_frames(path: Path, count: int) -> list:
    from PIL import Image

    from ..video import VideoFile

    return [Image.fromarray(frame) for frame in VideoFile(path).key_frames(count)]
