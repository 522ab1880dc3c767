"""The package: what is in it, what an import costs, and that its parts agree. Those tests that read pyproject.toml are
skipped where only the wheel is installed."""

import ast
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from safetensors import safe_open

import stylemamba
import stylemamba.weights

ROOT = Path(stylemamba.__file__).parent  # what is installed
TREE = Path(__file__).resolve().parent.parent  # what it was built from, if the tests lie in it
SOURCE = (TREE / "pyproject.toml").is_file()
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8")) if SOURCE else {}
needs_source = pytest.mark.skipif(not SOURCE, reason="needs the source tree: a wheel holds no pyproject.toml")


def packages(folder: Path, name: str) -> list[str]:
    inner = [p for p in folder.iterdir() if (p / "__init__.py").is_file()]
    return [name, *(found for p in inner for found in packages(p, f"{name}.{p.name}"))]


def name_and_bounds(requirement: str) -> tuple[str, str]:
    name, bounds = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?\s*(.*)", requirement).group(1, 3)
    return name.lower().replace("_", "-"), bounds.replace(" ", "")


def fresh(script: str, *arguments: str, **kwargs) -> dict:
    """What `script` prints as JSON, run by a Python that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, *arguments], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class TestWhatIsInIt:
    @needs_source
    def test_every_package_folder_is_listed_in_pyproject(self):
        assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(packages(TREE, "stylemamba"))

    @needs_source
    def test_every_file_beside_the_weights_is_shipped(self):
        globs = PROJECT["tool"]["setuptools"]["package-data"]["stylemamba.weights"]
        files = [
            p.relative_to(TREE / "weights").as_posix() for p in (TREE / "weights").rglob("*") if p.is_file()
        ]
        files = [p for p in files if not p.endswith((".py", ".pyc"))]
        assert "registry.json" in files
        # one level of folders for each star, as setuptools reads them
        shipped = [p for p in files for g in globs if p.count("/") == g.count("/") and fnmatch(p, g)]
        assert sorted(set(files) - set(shipped)) == []

    @pytest.mark.parametrize(("name", "most"), [("tiny", 25), ("samam-tiny", 10), ("mamba-st-tiny", 10)])
    def test_bundled_models_are_there_small_and_in_half_precision(self, name, most):
        folder = ROOT / "weights" / stylemamba.weights.registry()["models"][name]["folder"]
        assert (folder / "model_index.json").is_file()
        assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < most * 1e6
        for file in folder.rglob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118 (no dict)
            wider = {key.split(".")[-1] for key, kind in kinds.items() if kind != "F16"}
            # those of a scan, which is computed in single precision
            assert wider <= {"A_log", "D", "dt_bias"}, file

    def test_the_door_is_the_only_module_in_the_root(self):
        assert [p.name for p in ROOT.glob("*.py")] == ["__init__.py"]

    @needs_source
    def test_no_other_module_lies_in_the_root_of_the_tree(self):
        assert [p.name for p in TREE.glob("*.py")] == ["__init__.py"]

    def test_inside_the_package_imports_are_relative(self):
        # By its own name it would be found elsewhere than where ComfyUI put it.
        for path in (p for folder in ("pipeline", "nodes", "weights") for p in (ROOT / folder).rglob("*.py")):
            assert not re.search(r"^\s*(from|import) stylemamba", path.read_text(encoding="utf-8"), re.M), (
                path
            )

    def test_the_tests_are_no_package(self):
        assert not (Path(__file__).parent / "__init__.py").exists()

    def test_types_are_shipped_for_every_name(self):
        assert (ROOT / "py.typed").is_file()
        stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
        imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
        typed = {(name.asname, f".{node.module}") for node in imports for name in node.names}
        assert typed == set(stylemamba._EXPORTS.items())

    @pytest.mark.parametrize("name", stylemamba.__all__)
    def test_every_public_name_can_be_imported(self, name):
        value = getattr(stylemamba, name)
        assert name in dir(stylemamba)
        assert name == "__version__" or value.__module__.startswith("stylemamba.pipeline.")

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="module 'stylemamba' has no attribute 'StyleMamba'"):
            _ = stylemamba.StyleMamba

    def test_names_of_the_contract(self):
        assert {
            "StyleMambaPipeline", "PromptFitConfig", "Style", "StyleFusion", "selective_scan", "selective_scan_ref",
            "scan_backends", "scan_orders", "directional_loss", "masked_directional_loss", "second_order_loss",
            "alpha_shift", "style_loss", "patch_mask", "content_loss", "mean_std_loss", "total_variation", "score",
        } <= set(stylemamba.__all__)  # fmt: skip

    def test_the_command_is_installed_and_can_be_loaded(self):
        (command,) = importlib.metadata.entry_points(group="console_scripts", name="stylemamba")
        assert callable(command.load())


class TestAgreement:
    def test_the_version_is_the_installed_one(self):
        assert stylemamba.__version__ == importlib.metadata.version("stylemamba")

    @needs_source
    def test_the_version_is_that_of_pyproject_and_static(self):
        assert stylemamba.__version__ == PROJECT["project"]["version"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", stylemamba.__version__) and "dynamic" not in PROJECT["project"]

    @needs_source
    def test_requirements_for_comfyui_are_dependencies_with_the_same_bounds_and_never_torch(self):
        lines = (TREE / "requirements.txt").read_text(encoding="utf-8").splitlines()
        required = dict(name_and_bounds(line) for line in lines if line and line[0] != "#")
        dependencies = dict(map(name_and_bounds, PROJECT["project"]["dependencies"]))
        assert required and required.items() <= dependencies.items()
        assert not {"torch", "torchvision", "torchaudio"} & required.keys()
        # and nothing that only the command line needs, which the node pack leaves out
        sources = [p for folder in ("nodes", "pipeline") for p in (TREE / folder).glob("*.py")]
        text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
        assert all(re.search(rf"^\s*(from|import) {name}\b", text, re.M) for name in required)

    @needs_source
    def test_dependencies_have_lower_bounds_and_no_pins(self):
        groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
        for name, bounds in (name_and_bounds(line) for group in groups for line in group):
            assert re.fullmatch(r">=[\d.]+", bounds), name

    @needs_source
    def test_example_workflows_say_which_pack_their_nodes_are_of(self):
        # by which a host offers to install it
        for path in (TREE / "example_workflows").glob("*.json"):
            nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
            packs = {
                n["type"]: n["properties"].get("cnr_id") for n in nodes if n["type"].startswith("StyleMamba")
            }
            assert packs and set(packs.values()) == {PROJECT["project"]["name"]}, path

    @needs_source
    def test_the_hashes_beside_the_weights_are_those_of_the_files(self):
        text = (TREE / "weights" / "README.md").read_text(encoding="utf-8")
        digests = [
            hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (TREE / "weights").rglob("*.safetensors")
        ]
        assert [digest for digest in digests if digest not in text] == []
        assert set(re.findall(r"\b[0-9a-f]{64}\b", text)) == set(digests)

    @needs_source
    def test_the_extras_are_those_of_the_contract(self):
        assert set(PROJECT["project"]["optional-dependencies"]) == {
            "cuda", "test", "train", "scale", "ui", "docs",
        }  # fmt: skip


WATCHED_IMPORT = """
import json, os, sys

events, reads = [], []
def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(("socket.", "subprocess.", "os.mkdir", "os.rename", "os.remove", "os.link")):
        events.append([event, str(args[0])])

read = type(os.environ).__getitem__
type(os.environ).__getitem__ = lambda self, key: reads.append(key) or read(self, key)
sys.addaudithook(watch)
import stylemamba
stylemamba.__version__, dir(stylemamba)
print(json.dumps({"heavy": sorted({"torch", "diffusers", "transformers", "numpy"} & set(sys.modules)), "events": events, "reads": reads}))
"""

WITHOUT_COMFYUI = """
import importlib, json, pkgutil, sys

asked = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server", "execution"}:
            asked.append(name)

sys.meta_path.insert(0, Watch())
import stylemamba.pipeline
names = [module.name for module in pkgutil.walk_packages(stylemamba.pipeline.__path__, "stylemamba.pipeline.")]
for name in names:
    importlib.import_module(name)
print(json.dumps({"asked": asked, "nodes": [n for n in sys.modules if n.startswith("stylemamba.nodes")], "names": names}))
"""


class TestImport:
    def test_costs_no_heavy_library_no_file_no_socket_and_no_environment_variable(self, tmp_path):
        assert fresh(WATCHED_IMPORT, cwd=tmp_path) == {"heavy": [], "events": [], "reads": []}
        assert not list(tmp_path.iterdir())

    def test_no_pipeline_module_imports_anything_of_comfyui_or_the_nodes(self, tmp_path):
        seen = fresh(WITHOUT_COMFYUI, cwd=tmp_path)
        assert {p.stem for p in (ROOT / "pipeline").glob("[!_]*.py")} <= {
            n.split(".")[-1] for n in seen["names"]
        }
        assert seen["asked"] == [] and seen["nodes"] == []
