"""The library. It knows nothing of ComfyUI; its public names are exported by the package root."""
