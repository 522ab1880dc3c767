"""Puts the trained parts together as a pipeline like the bundled `tiny`, in half precision: what sharpening starts from.

    python training/build_tiny.py RUNS -o RUNS/taught

RUNS holds what the other scripts wrote: vae/, text/tower/, image_encoder/, perceptual/ and stylizer/.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from transformers import AutoTokenizer, SiglipTextModel

from stylemamba import StyleMambaPipeline
from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.fusion import StyleFusion
from stylemamba.pipeline.perceptual import VGGFeatures
from stylemamba.pipeline.statistics_encoder import StatisticsEncoder
from stylemamba.pipeline.style_memory import StyleMemory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()

    tower = args.runs / "text" / "tower"
    pipe = StyleMambaPipeline(
        vae=AutoencoderTiny.from_pretrained(args.runs / "vae"),
        text_encoder=SiglipTextModel.from_pretrained(tower / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(tower / "tokenizer"),
        fusion=StyleFusion.from_pretrained(args.runs / "stylizer" / "fusion"),
        image_encoder=StatisticsEncoder.from_pretrained(args.runs / "image_encoder"),
        style_decoder=ConditionalDecoder.from_pretrained(args.runs / "stylizer" / "style_decoder"),
        perceptual=VGGFeatures.from_pretrained(args.runs / "perceptual"),
        style_memory=StyleMemory.from_pretrained(args.runs / "stylizer" / "style_memory"),
        **json.loads((args.runs / "image_encoder" / "logits.json").read_text(encoding="utf-8")),
    )
    pipe.to(torch.float16).save_pretrained(args.out)
    for file in args.out.glob("*/config.json"):  # not the folders of the machine it was trained on
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        # diffusers writes it for an AutoencoderTiny and warns when it reads it.
        config.pop("block_out_channels", None)
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    files = sorted(args.out.rglob("*.safetensors"))
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(f"{file.relative_to(args.out).as_posix():60} {file.stat().st_size:9} {digest}")
    print(f"{sum(file.stat().st_size for file in args.out.rglob('*') if file.is_file()) / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
