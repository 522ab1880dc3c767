"""What a fit adds to the bundled model, which paints a prompt already: a table, and a sheet to look at.

    python benchmarks/fits.py DATA --alexnet FILE -o runs/fits

DATA and FILE as for quality.py. Each prompt is fitted on one held-out photo with the preset of the model, shown at 512 px and judged on
that photo and on another one that the fit has not seen: the squared distance to the label's artworks and its rank from 0 among all
labels, by the style judge whose network no training and no fit has seen; SSIM of luminance against the photo. Writes fits.md,
fits.json and sheet.jpg: for each prompt the two photos, the model's pictures, and the fitted ones. The photos are of the four that
have chosen nothing, neither weights nor what a fit trains.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from ablation import PROMPTS
from PIL import Image
from quality import HELD_OUT, photo_square
from quality import PROMPTS as QUALITY_PROMPTS
from style_judge import AlexFeatures, Artworks, StyleJudge, channel_statistics, square
from torch import Tensor

from stylemamba import StyleMambaPipeline
from stylemamba.pipeline import metrics
from stylemamba.pipeline.command_line.contact_sheet import draw_grid
from stylemamba.pipeline.controls import luminance
from stylemamba.pipeline.images import to_pil

TILE = 320


class Judged:
    """Scores of a picture that was asked to look like a label, and of the photo it was made of."""

    def __init__(self, judge: StyleJudge, alexnet: AlexFeatures) -> None:
        self.judge, self.alexnet = judge, alexnet

    def __call__(self, picture: Tensor, photo: Tensor, label: str) -> dict[str, float]:
        seen = channel_statistics(self.alexnet(square(picture)))
        return {
            "distance": float(self.judge.distances(seen)[0, self.judge.names.index(label)]),
            "rank": int(self.judge.ranks(seen, [label])),
            "ssim": float(metrics.ssim(luminance(picture).clamp(0, 1), luminance(photo))),
        }


def rows_of(
    pipe: StyleMambaPipeline, photos: list[Tensor], prompt: str, label: str, judged: Judged
) -> tuple[list[dict], list[tuple[str, Image.Image]]]:
    """-> a row for each photo, the first of which is fitted on, and three pictures of each with their captions."""
    pipe.unload_styles()
    before = [pipe(photo, prompt, output_type="pt").images.clamp(0, 1) for photo in photos]
    begin = time.perf_counter()
    style = pipe.fit_style(photos[0], prompt)
    seconds = time.perf_counter() - begin
    pipe.load_style(style)
    after = [pipe(photo, output_type="pt").images.clamp(0, 1) for photo in photos]
    rows, pictures = [], []
    for i, photo in enumerate(photos):
        rows.append(
            {
                "prompt": prompt,
                "label": label,
                "fitted on": i == 0,
                "seconds": seconds,
                "before": judged(before[i], photo, label),
                "after": judged(after[i], photo, label),
            }
        )
        captions = ("fitted on" if i == 0 else "another photo", prompt, f"{prompt}, fitted")
        pictures += zip(captions, map(to_pil, (photo, before[i], after[i])), strict=True)
    return rows, pictures


def as_markdown(rows: list[dict], setting: str) -> str:
    lines = [
        setting,
        "",
        "| prompt | photo | distance, before | after | rank, before | after | SSIM, before | after | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        a, b = row["before"], row["after"]
        lines.append(
            f"| {row['prompt']} | {'fitted on' if row['fitted on'] else 'another'} | {a['distance']:.4g} | {b['distance']:.4g} | "
            f"{a['rank']} | {b['rank']} | {a['ssim']:.2f} | {b['ssim']:.2f} | {row['seconds']:.0f} |"
        )
    for title, fitted in (("Photos that were fitted on", True), ("Photos that no fit has seen", False)):
        some = [row for row in rows if row["fitted on"] == fitted]
        ratios = [row["after"]["distance"] / row["before"]["distance"] for row in some]
        five = [[row[when]["rank"] < 5 for row in some] for when in ("before", "after")]
        lines += [
            "",
            f"{title}: nearer to the artworks for {sum(r < 1 for r in ratios)} of "
            f"{len(some)}, median ratio of distances {statistics.median(ratios):.2f}; label among the nearest five for "
            f"{sum(five[0])} before, {sum(five[1])} after.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tiny", help="a bundled name, a folder or a Hub id")
    parser.add_argument("--alexnet", type=Path, required=True, help="weights of the judge")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--photos", type=int, nargs=2, default=(1, 2), help="places in the held-out list")
    parser.add_argument(
        "--every", type=int, help="fit every n-th prompt of quality.py, not the three of ablation.py"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/judge"), help="statistics of the artworks")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = StyleMambaPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    alexnet = AlexFeatures.from_file(args.alexnet)
    judged = Judged(StyleJudge(Artworks.read(args.data, alexnet, args.cache)), alexnet)
    held_out = json.loads(HELD_OUT.read_text(encoding="utf-8"))["photos"]
    photos = [photo_square(args.data / held_out[place], args.size) for place in args.photos]
    prompts = PROMPTS
    if args.every:
        entries = json.loads(QUALITY_PROMPTS.read_text(encoding="utf-8"))[:: args.every]
        prompts = {entry["prompt"]: entry["label"] for entry in entries}

    rows, pictures = [], []
    for prompt, label in prompts.items():
        of_prompt, painted = rows_of(pipe, photos, prompt, label, judged)
        rows += of_prompt
        pictures += painted
        print(prompt, flush=True)
    setting = (
        f"{args.model}, {args.size} px, preset {pipe.fit_preset}, photos {held_out[args.photos[0]]} and {held_out[args.photos[1]]}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    text = as_markdown(rows, setting)
    (args.out / "fits.md").write_text(text, encoding="utf-8")
    (args.out / "fits.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw_grid(pictures, 3 * len(photos), TILE).save(args.out / "sheet.jpg", quality=90)
    print(text)


if __name__ == "__main__":
    main()
