"""The list of nodes that ComfyUI registers. None yet: the pack loads, and the nodes come with a later release."""

from .host import ComfyExtension


class StyleMambaExtension(ComfyExtension):
    async def get_node_list(self) -> list:
        return []
