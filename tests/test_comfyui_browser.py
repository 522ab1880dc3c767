"""The example workflows in the page of a real ComfyUI, as a newcomer meets them; see docs/testing.md.

Needs `COMFYUI_PATH`, Chromium, and playwright from PyPI.
"""
# ruff: noqa: E402 (real_comfyui.py lies beside this file, and is no test)

import sys
from itertools import combinations
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from real_comfyui import CHECKOUT, WORKFLOWS, RealComfyUI, read_workflow, to_api
from real_comfyui_page import CHROMIUM, HAS_PLAYWRIGHT, open_page

pytestmark = [
    pytest.mark.skipif(not CHECKOUT, reason="needs a whole ComfyUI: set COMFYUI_PATH"),
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt install chromium"),
    pytest.mark.skipif(not HAS_PLAYWRIGHT, reason="needs playwright: pip install playwright"),
]
NEEDS_A_CHECKPOINT = "3-fuse-before-ksampler"
_MUTED = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RealComfyUI(tmp_path_factory.mktemp("comfyui"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(server):
    with open_page(server) as page:
        yield page


def overlaps(nodes: list[dict]) -> list[tuple[str, str]]:
    def apart(a, b):
        return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]

    return [(a["title"], b["title"]) for a, b in combinations(nodes, 2) if not apart(a["box"], b["box"])]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_opens_from_the_template_browser_and_runs(page, server, name):
    page.open_template(name)
    nodes = page.nodes()
    assert not [node["title"] for node in nodes if node["red"]] and not overlaps(nodes)
    assert any(node["type"] == "MarkdownNote" and len(node["text"]) > 100 for node in nodes)

    # The page queues what the tests of the server post, but for widgets that it made itself.
    info = server.get("/object_info")
    queued = page.prompt()
    for node in queued.values():
        known = {one for group in info[node["class_type"]]["input"].values() for one in group}
        node["inputs"] = {one: value for one, value in node["inputs"].items() if one in known}
        del node["_meta"]
    assert queued == to_api(read_workflow(name), info)

    if name == NEEDS_A_CHECKPOINT:
        page.press_run()
        page.page.wait_for_function("() => app.lastNodeErrors")
        assert {node["type"] for node in page.nodes() if node["red"]} == {"CheckpointLoaderSimple"}
        return
    end, previews = page.run()
    assert end == "execution_success"
    nodes = page.nodes()
    assert not [node["title"] for node in nodes if node["red"]] and not overlaps(nodes)
    for node in nodes:
        if (
            node["type"] in ("SaveImage", "PreviewImage", "MaskPreview", "LossGraphNode")
            and node["mode"] != _MUTED
        ):
            assert node["pictures"] and min(node["pictures"][0]) > 100, node["title"]
        if node["type"] == "SaveVideo":
            assert node["film"]
        if node["type"] == "PreviewAny":
            assert '"ssim"' in node["text"]
        if node["type"] == "StyleMambaPromptFit":
            assert node["pictures"] and previews
    assert not page.of_ours()
