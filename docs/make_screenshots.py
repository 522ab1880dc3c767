"""Runs every example workflow in a real ComfyUI and takes the pictures of docs/screenshots and example_workflows.

    COMFYUI_PATH=/path/to/ComfyUI python docs/make_screenshots.py [NAME ...]

Needs what tests/test_comfyui_browser.py needs. The workflows come with ComfyUI's own `example.png`; for the pictures, a
bundled photo is chosen in Load Image, as a user would choose one.
"""
# ruff: noqa: E402, T201

import sys
import tempfile
from pathlib import Path

import av
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from real_comfyui import WORKFLOWS, RealComfyUI, nodes_of, read_workflow, to_api
from real_comfyui_page import open_page

PHOTO, SIDE = "astronaut-portrait", 768
THUMBNAIL = (512, 512)
NEEDS_A_CHECKPOINT = "3-fuse-before-ksampler"


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = RealComfyUI(Path(folder))
        with Image.open(HERE.parent / "weights" / "photos" / f"{PHOTO}.webp") as photo:
            ImageOps.contain(photo.convert("RGB"), (SIDE, SIDE)).save(server.base / "input" / f"{PHOTO}.png")
        server.start()
        try:
            with open_page(server) as page:
                for name in names:
                    take(server, page, name)
            with open_page(
                server
            ) as page:  # anew: the first one remembers the pictures that were there before
                page.browse_templates()
                page.page.get_by_test_id(f"template-workflow-{next(iter(WORKFLOWS))}").wait_for()
                page.page.wait_for_load_state("networkidle")
                page.screenshot(HERE / "screenshots" / "template-browser.jpg")
        finally:
            server.stop()


def take(server: RealComfyUI, page, name: str) -> None:
    page.open_template(name)
    page.choose("LoadImage", "image", f"{PHOTO}.png")
    if name == NEEDS_A_CHECKPOINT:
        result = before_the_sampler(server, name)
    else:
        end, _ = page.run()
        assert end == "execution_success", f"{name} ended with {end}"
        result = picture_of(server, page.nodes())
    page.fit()
    page.screenshot(HERE / "screenshots" / f"{name}.jpg")
    ImageOps.fit(result, THUMBNAIL, Image.Resampling.LANCZOS).save(
        WORKFLOWS[name].with_suffix(".jpg"), quality=85
    )
    print(name)


def picture_of(server: RealComfyUI, nodes: list[dict]) -> Image.Image:
    """The result that a workflow saves; of a film its first frame."""
    (node,) = (node for node in nodes if node["type"] in ("SaveImage", "SaveVideo"))
    (file,) = node["files"]
    path = server.base / "output" / file["subfolder"] / file["filename"]
    if node["type"] == "SaveImage":
        return Image.open(path).convert("RGB")
    with av.open(path) as film:
        return next(film.decode(video=0)).to_image()


def before_the_sampler(server: RealComfyUI, name: str) -> Image.Image:
    """What goes into the KSampler, in the latents of the bundled model: a checkpoint is the user's to bring."""
    prompt = to_api(read_workflow(name), server.get("/object_info"))
    (loader,), (fuse,), (load,) = (
        nodes_of(prompt, f"{kind}") for kind in ("StyleMambaLoader", "StyleMambaFuse", "LoadImage")
    )
    del prompt[loader]["inputs"]["vae"]
    prompt[load]["inputs"]["image"] = f"{PHOTO}.png"
    for kind in ("CheckpointLoaderSimple", "CLIPTextEncode", "KSampler", "VAEDecode", "SaveImage"):
        for node in nodes_of(prompt, kind):
            del prompt[node]
    prompt["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": [fuse, 0], "vae": [fuse, 1]}}
    prompt["show"] = {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}}
    return server.pictures(server.run(prompt), "show")[0].convert("RGB")


if __name__ == "__main__":
    main(sys.argv[1:] or list(WORKFLOWS))
