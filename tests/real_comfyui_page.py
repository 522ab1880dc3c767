"""The page of a real ComfyUI server in headless Chromium, driven as a user drives it.

Needs Chromium on the machine and `playwright` from PyPI, which brings no browser of its own here.
"""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real_comfyui import RealComfyUI

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
_START, _RUN, _CLICK = 600_000, 1_800_000, 120_000  # milliseconds to wait, on a slow and busy machine

_READY = "() => window.app?.graph && LiteGraph.registered_node_types.StyleMambaStylize"
_LISTEN = """() => {
  window.seen = {end: null, previews: 0};
  for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(kind, () => seen.end = kind);
  app.api.addEventListener("b_preview", () => seen.previews++);
}"""
_NODES = """() => app.graph.nodes.map(node => ({
  id: String(node.id), type: node.type, title: node.title, mode: node.mode,
  box: [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, node.pos[0] + node.size[0], node.pos[1] + node.size[1]],
  red: !(node.type in LiteGraph.registered_node_types) || !!node.has_errors || !!app.lastNodeErrors?.[node.id],
  pictures: (node.imgs ?? []).map(picture => [picture.naturalWidth, picture.naturalHeight]),
  film: !!node.videoContainer?.querySelector("video")?.videoWidth,
  text: (node.widgets ?? []).filter(widget => typeof widget.value == "string").map(widget => widget.value).join("\\n"),
  files: app.nodeOutputs[node.id]?.images ?? [],
}))"""
# Every node that was given pictures has them on the screen.
_SHOWN = """() => app.canvas.setDirty(true, true) ?? app.graph.nodes.every(node => {
  const given = app.nodeOutputs[node.id]?.images?.length ?? 0;
  return !given || node.videoContainer?.querySelector("video")?.videoWidth
    || (node.imgs?.length == given && node.imgs.every(picture => picture.complete && picture.naturalWidth));
})"""


class Page:
    def __init__(self, page) -> None:
        self.page = page
        self.complaints: list[str] = []  # what the console was told of as an error, with its place
        self.opened = 0  # complaints before the page was there
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error.stack or error}"))

    def _hear(self, message) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")

    def of_ours(self) -> list[str]:
        """Complaints that name this pack, and what went wrong once the page was there; before, it has some of its own."""
        named = [text for text in self.complaints if "stylemamba" in text.lower()]
        return named + [text for text in self.complaints[self.opened :] if text.startswith("uncaught")]

    def command(self, name: str) -> None:
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def browse_templates(self) -> None:
        """Opens the template browser at this pack's own."""
        self.page.keyboard.press("Escape")  # a first visit opens it by itself, at another place
        self.page.locator(".p-dialog-mask").wait_for(state="detached", timeout=_CLICK)
        self.command("Comfy.BrowseTemplates")
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text("StyleMamba", exact=True).click(timeout=_CLICK)

    def open_template(self, name: str) -> None:
        self.browse_templates()
        self.page.get_by_test_id(f"template-workflow-{name}").click(timeout=_CLICK)
        self.page.wait_for_function(
            "name => app.extensionManager.workflow.activeWorkflow?.filename?.startsWith(name) && app.graph.nodes.length",
            arg=name, timeout=_CLICK,
        )  # fmt: skip
        self.page.locator(".p-dialog-mask").wait_for(state="detached", timeout=_CLICK)
        self.fit()

    def fit(self) -> None:
        """Brings the whole graph to view."""
        self.command("Comfy.Canvas.FitView")
        self.page.wait_for_timeout(1000)  # it glides there

    def nodes(self) -> list[dict]:
        return self.page.evaluate(_NODES)

    def prompt(self) -> dict[str, dict]:
        """What the page would queue."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def choose(self, kind: str, widget: str, value) -> None:
        """In every node of a class."""
        self.page.evaluate(
            """([kind, name, value]) => app.graph.nodes.filter(node => node.type == kind).forEach(node => {
              const widget = node.widgets.find(widget => widget.name == name);
              widget.value = value;
              widget.callback?.(value);
            })""",
            [kind, widget, value],
        )

    def press_run(self) -> None:
        self.page.evaluate("() => { seen.end = null; seen.previews = 0 }")
        self.page.get_by_test_id("queue-button").get_by_role("button").first.click(timeout=_CLICK)

    def run(self) -> tuple[str, int]:
        """Presses Run and waits until all results are shown -> how it ended, number of previews."""
        self.press_run()
        self.page.wait_for_function("() => seen.end", timeout=_RUN)
        self.fit()  # what is out of view is not drawn, and its pictures are not loaded
        self.page.wait_for_function(_SHOWN, timeout=_CLICK)
        seen = self.page.evaluate("() => seen")
        return seen["end"], seen["previews"]

    def screenshot(self, path: Path) -> None:
        self.page.screenshot(path=path, type="jpeg", quality=80)


@contextmanager
def open_page(server: RealComfyUI, size: tuple[int, int] = (1600, 1000)) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = Page(browser.new_page(viewport={"width": size[0], "height": size[1]}))
            page.page.goto(server.url, timeout=_START)
            page.page.wait_for_function(_READY, timeout=_START)
            page.page.evaluate(_LISTEN)
            for name, value in {
                "Comfy.Minimap.Visible": False,
                "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # text in small graphs, too
                "LiteGraph.Canvas.MaximumFps": 5,  # it is drawn without a GPU
            }.items():
                page.page.evaluate(
                    "([name, value]) => app.extensionManager.setting.set(name, value)", [name, value]
                )
            page.opened = len(page.complaints)
            yield page
        finally:
            browser.close()
