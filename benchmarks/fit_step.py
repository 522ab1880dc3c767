"""Time and peak memory of one fit step and of one stylization, at full size with random weights.

    python benchmarks/fit_step.py --size 512 --repeats 3

Real SD VAE, SigLIP-base and VGG19 architectures; the weights are random, since time and memory do not depend on them. Each
row runs in a process of its own, so that its peak memory is its own. The peer of a row is the VAE reconstruction of
the same picture (encode and decode alone) in the same process: the ratio says what StyleMamba adds.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time


def measure(row: str, size: int, repeats: int) -> dict:
    import torch
    from diffusers import AutoencoderKL
    from transformers import SiglipTextConfig, SiglipTextModel, SiglipVisionConfig, SiglipVisionModel

    from stylemamba import PromptFitConfig, StyleMambaPipeline, VGGFeatures
    from stylemamba.pipeline.images import Content
    from stylemamba.pipeline.prompt_fit import PromptFit

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    fitting = row.startswith("fit")
    pipe = StyleMambaPipeline.from_parts(
        vae=vae.eval(),
        text_encoder=SiglipTextModel(SiglipTextConfig()).eval(),
        image_encoder=SiglipVisionModel(SiglipVisionConfig()).eval() if fitting else None,
        perceptual=VGGFeatures().eval() if fitting else None,
        preset="paper",
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, size, size)
    embeds = torch.nn.functional.normalize(torch.randn(2, 768), dim=-1)

    def reconstruct() -> None:
        with torch.no_grad():
            pipe.decode(pipe.encode_image(image))

    if fitting:
        config = PromptFitConfig(train=row.removeprefix("fit "))
        fit = PromptFit(pipe, [Content(image)], "a prompt", embeds[:1], embeds[1:], config, seed=0)
        work = fit.step
    else:

        def work() -> None:
            pipe(image, prompt_embeds=embeds[:1], output_type="pt")

    reconstruct()
    work()  # warm-up
    times, peer = [], []
    for _ in range(repeats):
        for function, collected in ((reconstruct, peer), (work, times)):
            begin = time.perf_counter()
            function()
            collected.append(time.perf_counter() - begin)
    return {
        "row": row,
        "seconds": statistics.median(times),
        "ratio": statistics.median(t / p for t, p in zip(times, peer, strict=True)),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--row", help="measure this row in this process and print JSON")
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row, args.size, args.repeats)))
        return

    import torch

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {args.size} px\n"
    )
    print("| row | seconds, median | x VAE reconstruction, median of paired runs | peak memory, GiB |")
    print("| --- | ---: | ---: | ---: |")
    for row in ("stylize", "fit fusion", "fit decoder_lora", "fit fusion+decoder"):
        command = [
            sys.executable,
            __file__,
            "--row",
            row,
            "--size",
            str(args.size),
            "--repeats",
            str(args.repeats),
        ]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(run.stdout.splitlines()[-1])
        print(
            f"| {row} | {found['seconds']:.2f} | {found['ratio']:.2f} | {found['peak_gib']:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
