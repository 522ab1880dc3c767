"""A real ComfyUI server on the CPU, with folders of its own, and workflows in the form that it runs.

Knows nothing of styles. What is asked of the server is in `test_comfyui_server.py`, what is asked of its page in
`test_comfyui_browser.py`; both need a ComfyUI checkout at `COMFYUI_PATH`, whose requirements are installed.
"""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

CHECKOUT = os.environ.get("COMFYUI_PATH")
PACK = Path(__file__).resolve().parents[1]
WORKFLOWS = {path.stem: path for path in sorted((PACK / "example_workflows").glob("*.json"))}
_START, _RUN = 600, 1800  # seconds to wait, on a slow and busy machine
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_MUTED = 2


@dataclass
class Run:
    """What the server told while it ran a prompt."""

    prompt_id: str
    messages: list[tuple[str, dict]] = field(default_factory=list)
    previews: int = 0  # pictures sent before there was a result
    outputs: dict[str, dict] = field(default_factory=dict)  # id of the node -> what it shows

    @property
    def end(self) -> str:
        """execution_success, execution_error or execution_interrupted; "" if the server died."""
        return self.messages[-1][0] if self.messages and self.messages[-1][0] in _ENDS else ""

    def steps(self, node: str, total: int) -> list[int]:
        """The progress of a node, where it counted up to `total`."""
        told = [data for kind, data in self.messages if kind == "progress" and data["node"] == node]
        return [data["value"] for data in told if data["max"] == total]


_ENDS = {"execution_success", "execution_error", "execution_interrupted"}
Told = Callable[[str, dict], None]


class RealComfyUI:
    """The server as a user runs it, with this repository linked into `custom_nodes`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for name in ("custom_nodes", "input", "models/checkpoints", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "StyleMamba").symlink_to(PACK, target_is_directory=True)
        with Image.open(Path(CHECKOUT) / "input" / "example.png") as picture:  # that every ComfyUI comes with
            picture.reduce(2).save(base / "input" / "example.png")  # quicker
        self.process: subprocess.Popen | None = None
        self.url = ""

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{self.base / 'comfyui.db'}", "--disable-api-nodes",
        ]  # fmt: skip
        # As many threads as conftest.py gives the tests: a fit follows rounding errors far away from where it would have been.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(self.base / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + _START
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}") from None
                time.sleep(0.5)

    def kill(self) -> None:
        """At once, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def log(self) -> str:
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

    def read(self, path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} gave {error.code}: {error.read().decode()[:2000]}") from None

    def get(self, path: str):
        return json.loads(self.read(path))

    def run(self, prompt: dict, told: Told = lambda kind, data: None) -> Run:
        """Queues a prompt and waits on the websocket until it has ended. told: called with each message."""
        with ThreadPoolExecutor(1) as thread:  # playwright keeps an event loop of its own in this one
            return thread.submit(asyncio.run, self._run(prompt, told)).result()

    async def _run(self, prompt: dict, told: Told) -> Run:
        import aiohttp  # one of ComfyUI's own requirements

        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}") as page,
        ):
            answer = json.loads(self.read("/prompt", {"prompt": prompt, "client_id": client}))
            assert not answer["node_errors"], answer["node_errors"]
            run = Run(answer["prompt_id"])
            async with asyncio.timeout(_RUN):
                async for message in page:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        run.previews += 1
                    elif message.type == aiohttp.WSMsgType.TEXT:
                        kind, data = (value := json.loads(message.data))["type"], value["data"]
                        if data.get("prompt_id") != run.prompt_id:
                            continue
                        run.messages.append((kind, data))
                        told(kind, data)
                        if kind in _ENDS:
                            break
        if run.end == "execution_success":
            while not (history := self.get(f"/history/{run.prompt_id}")):
                await asyncio.sleep(0.1)  # it is written just after the message
            run.outputs = history[run.prompt_id]["outputs"]
        return run

    def pictures(self, run: Run, node: str) -> list[Image.Image]:
        """What a Save Image or Preview Image shows."""
        return [Image.open(io.BytesIO(self.read(self.view(file)))) for file in run.outputs[node]["images"]]

    def view(self, file: dict) -> str:
        return f"/view?{urllib.parse.urlencode(file)}"


def to_api(workflow: dict, object_info: dict) -> dict[str, dict]:
    """A workflow as the page saves it -> the prompt that the page would queue for it.

    Widget values are stored by position: in the order of the inputs, and behind a seed or an uploaded picture comes one
    more, which only the page uses. Widgets that a node has got since take their defaults. Notes and muted nodes are left
    out; bypassed nodes and subgraphs are not read.
    """
    links = {link[0]: link for link in workflow["links"]}
    nodes = [node for node in workflow["nodes"] if node["type"] in object_info and node["mode"] != _MUTED]
    ids = {node["id"] for node in nodes}
    prompt = {}
    for node in nodes:
        info = object_info[node["type"]]["input"]
        values, inputs = list(node.get("widgets_values") or []), {}
        for name, (kind, *options) in {**info.get("required", {}), **info.get("optional", {})}.items():
            options = options[0] if options else {}
            if (isinstance(kind, list) or kind in _WIDGETS) and not options.get("forceInput"):
                inputs[name] = values.pop(0) if values else options.get("default")
                if values and (options.get("control_after_generate") or options.get("image_upload")):
                    values.pop(0)
        assert not values, f"{node['type']} has no widgets for {values}"
        for slot in node["inputs"]:
            if slot["link"] is not None and links[slot["link"]][1] in ids:
                _, source, output, *_ = links[slot["link"]]
                inputs[slot["name"]] = [str(source), output]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def nodes_of(prompt: dict, kind: str) -> list[str]:
    """Ids of the nodes of a class, in the order of the workflow."""
    return [name for name, node in prompt.items() if node["class_type"] == kind]


def read_workflow(name: str) -> dict:
    return json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
