"""Time and peak memory of one large picture: does 4096 px on a CPU stay within 4 GB?

    python benchmarks/large_pictures.py                          # the bundled model, 4096 px
    python benchmarks/large_pictures.py --sd-size --side 2048    # an autoencoder as large as Stable Diffusion's, in tiles

The autoencoder of --sd-size has the shape of sd-vae-ft-mse and random weights, which cost the same time and memory. Each
run has to be a process of its own, since the peak is that of the process.
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from PIL import Image

from stylemamba import StyleFusion, StyleMambaPipeline
from stylemamba.weights import bundled_photos


def sd_size(tiny: StyleMambaPipeline) -> StyleMambaPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, scaling_factor=0.18215,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    fusion = StyleFusion.from_preset("paper", latent_channels=4, cond_dim=tiny.fusion.config.cond_dim)
    return StyleMambaPipeline.from_pipe(tiny, vae=vae.eval(), fusion=fusion.eval(), style_decoder=None)


def say(what: str, start: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kB, as Linux counts
    print(f"{what:48} {time.perf_counter() - start:7.1f} s   peak {peak:.2f} GiB", flush=True)


def measured(name: str, run: Callable) -> Callable:
    def step(tensor: torch.Tensor, *arguments):
        start = time.perf_counter()
        result = run(tensor, *arguments)
        say(f"  {name} {tuple(tensor.shape)}", start)
        return result

    return step


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--side", type=int, default=4096, help="of the picture, in pixels")
    options.add_argument("--sd-size", action="store_true", help="an autoencoder of Stable Diffusion's size")
    options.add_argument("--tile", type=int, help="side of the tiles; left out: as the pipeline chooses")
    given = options.parse_args()
    start = time.perf_counter()
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    if given.sd_size:
        pipe = sd_size(pipe)
    pipe.set_progress_bar_config(disable=True)
    if given.tile:
        pipe.enable_tiling(given.tile)
    say(f"loaded, {torch.get_num_threads()} threads", start)
    photo = Image.open(bundled_photos()[0]).convert("RGB").resize((given.side, given.side))

    for name in ("encode_image", "fuse", "decode"):
        setattr(pipe, name, measured(name, getattr(pipe, name)))
    start = time.perf_counter()
    pipe(photo, "watercolor")
    say(f"{given.side} x {given.side} px", start)


if __name__ == "__main__":
    main()
