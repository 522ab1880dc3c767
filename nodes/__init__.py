"""The ComfyUI side of StyleMamba: thin nodes that convert, call the pipeline and return."""


async def comfy_entrypoint():
    from .extension import StyleMambaExtension

    return StyleMambaExtension()
