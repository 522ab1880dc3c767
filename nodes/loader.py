"""StyleMamba Loader: a model and its native VAE."""

from . import host
from .folders import changed, find_model, model_names
from .host import io
from .model import DEFAULT_MODEL, HostModel


class StyleMambaLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaLoader",
            display_name="StyleMamba Loader",
            category="StyleMamba",
            description="Loads a StyleMamba model: a bundled one, a folder in models/stylemamba, or one of these around any "
            "Stable Diffusion VAE.",
            search_aliases=["style transfer model", "load style transfer", "neural style", "mamba"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_names(),
                    default=DEFAULT_MODEL,
                    tooltip="A bundled model, or a folder in models/stylemamba that save_pretrained wrote. Nothing is downloaded.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Works in the latents of this Stable Diffusion VAE in place of the model's own, with a fresh fusion: "
                    "fit a style on it, or load one that was.",
                ),
            ],
            outputs=[
                host.Model.Output(display_name="model", tooltip="For the other StyleMamba nodes."),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The model's autoencoder, for VAE Encode, VAE Decode and their tiled forms.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, vae=None) -> str:
        return changed(find_model(model) / "model_index.json")

    @classmethod
    def execute(cls, model: str, vae=None) -> io.NodeOutput:
        from .autoencoder import plain_vae, with_autoencoder

        loaded = HostModel.load(model)
        if vae is not None:
            loaded = with_autoencoder(loaded, vae)
        return io.NodeOutput(loaded, plain_vae(loaded))
