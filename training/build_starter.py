"""Puts the bundled model `starter` together: autoencoder, fusion, styles; and writes its hashes and numbers.

python training/build_starter.py VAE STYLE.safetensors... --data DATA -o weights/starter
"""

import argparse
import hashlib
import json
import random
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from fit_painting import starter_fusion
from pictures import Pictures, picture_files

from stylemamba import StyleMambaPipeline
from stylemamba.pipeline.metrics import psnr, ssim


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vae", type=Path)
    parser.add_argument("styles", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="for the evaluation pictures in DATA/eval")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()

    vae = AutoencoderTiny.from_pretrained(args.vae)
    vae.register_to_config(_name_or_path="starter/vae")  # not the folder of the machine it was trained on
    photos = [f for f in picture_files(args.data / "eval") if f.name.startswith("content")]
    crops = Pictures(photos, side=300).crops(24, 256, random.Random(0))
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(crops * 2 - 1).latents).sample.clamp(-1, 1) / 2 + 0.5
    print(
        f"reconstruction of 24 crops of the evaluation photos: {psnr(rebuilt, crops):.2f} dB, SSIM {ssim(rebuilt, crops):.4f}"
    )

    pipe = StyleMambaPipeline(vae, None, None, starter_fusion(vae))
    pipe.to(torch.float16).save_pretrained(args.out)
    (args.out / "styles").mkdir(exist_ok=True)
    for style in args.styles:
        shutil.copy(style, args.out / "styles" / style.name)
    hashes = {
        str(f.relative_to(args.out)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(args.out.rglob("*.safetensors"))
    }
    print(json.dumps(hashes, indent=2))


if __name__ == "__main__":
    main()
