"""Checkpoints of the public repositories: written here under their names, from models of ours, and read back."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stylemamba import MambaST, MambaSTPipeline, SaMam, SaMamPipeline
from stylemamba.pipeline.public_checkpoints import load_public_mamba_st, load_public_samam


def tiny_samam(patch_size):
    torch.manual_seed(0)
    return SaMam(
        embed_dim=16, patch_size=patch_size, style_dim=8, encoder_depth=2, groups=2, group_depth=2, d_state=3, compat=True
    ).eval()  # fmt: skip


def tiny_mamba_st():
    torch.manual_seed(0)
    return MambaST(embed_dim=16, encoder_depth=2, depth=2, d_state=3, compat=True).eval()


def layer(state, name, module, bias=True):
    state[f"{name}.weight"] = module.weight
    if bias:
        state[f"{name}.bias"] = module.bias


def as_conv(state, name, linear):
    state[f"{name}.weight"], state[f"{name}.bias"] = linear.weight[:, :, None, None], linear.bias


def public_scan(state, name, scan):
    state[f"{name}.x_proj_weight"] = scan.x_proj
    state[f"{name}.dt_projs_weight"] = scan.dt_proj
    state[f"{name}.dt_projs_bias"] = scan.dt_bias
    if scan.A_log is not None:
        state[f"{name}.A_logs"] = scan.A_log.flatten(0, 1)
        state[f"{name}.Ds"] = scan.D.flatten()


def public_local(state, name, local):
    for theirs, module in (
        ("0", local.conv1), ("2", local.conv2), ("3.attention.1", local.gate1), ("3.attention.3", local.gate2)
    ):  # fmt: skip
        layer(state, f"{name}.cab.{theirs}", module)


def public_decoder(state, prefix, decoder):
    """Theirs pads in layers of their own: pad, convolution, ReLU, with a doubling after some."""
    number = 0
    for module in decoder:
        if isinstance(module, nn.Conv2d):
            layer(state, f"{prefix}{number + 1}", module)
            number += 2
        else:
            number += 1


def public_samam(model):
    state = {}
    for name in ("content_encoder", "style_encoder"):
        encoder = getattr(model, name)
        layer(state, f"{name}.0.proj", encoder.patch_embed)
        for i, block in enumerate(encoder.blocks, 1):
            layer(state, f"{name}.{i}.SSM.in_proj", block.in_proj, bias=False)
            layer(state, f"{name}.{i}.SSM.conv2d", block.conv)
            public_scan(state, f"{name}.{i}.SSM", block.scan)
            layer(state, f"{name}.{i}.SSM.out_proj", block.out_proj, bias=False)
        public_local(state, f"{name}.{i + 1}", encoder.local)
    for i, conv in enumerate(model.style_embedder.convs):
        layer(state, f"global_embedder.downscale.{3 * i}" if i < 3 else "global_embedder.downscale2.0", conv)
    layer(state, "global_embedder.fc", model.style_embedder.out)
    for g, group in enumerate(model.decoder_groups):
        for b, block in enumerate(group.blocks):
            name = f"SAVSSGs.{g}.SAVSSMs.{b}"
            for theirs, norm in (("SAIN1", block.norm_in), ("SSM.SAIN", block.norm_out)):
                as_conv(state, f"{name}.{theirs}.compress_gamma.1", norm.gain)
                as_conv(state, f"{name}.{theirs}.compress_beta.1", norm.offset)
            layer(state, f"{name}.SSM.in_proj", block.in_proj, bias=False)
            layer(state, f"{name}.SSM.SConv.compress_key.0", block.to_kernel)
            public_scan(state, f"{name}.SSM", block.scan)
            as_conv(state, f"{name}.SSM.A_logs_generate.1", block.decay.to_A)
            as_conv(state, f"{name}.SSM.Ds_generate.1", block.decay.to_D)
            layer(state, f"{name}.SSM.out_proj", block.out_proj, bias=False)
            layer(state, f"{name}.ca.conv_du.0", block.gate.conv, bias=False)
            layer(state, f"{name}.ca.conv_du.1", block.gate.act, bias=False)
            layer(state, f"{name}.ca.conv_du.2", block.gate.out, bias=False)
        public_local(state, f"SAVSSGs.{g}.LoE", group.local)
    public_decoder(state, "decoder.decoder.", model.decoder)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def public_mamba_st(model):
    """The three files: mamba, decoder and embedding."""
    state, pictures, patches = {}, {}, {}
    stacks = (
        ("encoder_c", model.content_encoder), ("encoder_s", model.style_encoder), ("decoder", model.blocks)
    )  # fmt: skip
    for name, blocks in stacks:
        for i, block in enumerate(blocks):
            place, mixer = f"{name}.layers.{i}", block.mixer
            state[f"{place}.skip_scale"], state[f"{place}.skip_scale2"] = block.scale, block.unused_scale
            layer(state, f"{place}.ln_1", block.norm_in)
            layer(state, f"{place}.norm", block.norm_out)
            layer(state, f"{place}.self_attention.in_proj", mixer.in_proj, bias=False)
            layer(state, f"{place}.self_attention.in_style_proj", mixer.style_proj, bias=False)
            layer(state, f"{place}.self_attention.conv2d", mixer.conv)
            layer(state, f"{place}.self_attention.out_norm", mixer.norm)
            layer(state, f"{place}.self_attention.out_proj", mixer.out_proj, bias=False)
            public_scan(state, f"{place}.self_attention", mixer.scan)
            if name == "decoder":
                written, read = mixer.scan.x_proj.split((mixer.scan.dt_rank + 3, 3), dim=1)
                state[f"{place}.self_attention.style_proj_weight"] = written
                state[f"{place}.self_attention.x_proj_weight"] = read
    layer(state, "decoder.norm", model.norm)
    layer(state, "new_ps", model.unused_position)
    public_decoder(pictures, "", model.decoder)
    layer(patches, "proj", model.patch_embed)
    return [{k: v.detach().clone() for k, v in part.items()} for part in (state, pictures, patches)]


def same(loaded, model):
    theirs, ours = loaded.state_dict(), model.state_dict()
    return theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)


def sizes(model):
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


@pytest.fixture
def samam_file(tmp_path):
    file = tmp_path / "samam.ckpt"
    torch.save(public_samam(tiny_samam(8)), file)
    return file


class TestSaMam:
    @pytest.mark.parametrize("patch_size", [4, 8])
    def test_every_weight_finds_its_place(self, tmp_path, patch_size):
        model, file = tiny_samam(patch_size), tmp_path / "samam.pth"
        torch.save(public_samam(model), file)
        loaded = load_public_samam(file)
        assert same(loaded, model) and sizes(loaded) == sizes(model)
        content, style = torch.rand(2, 1, 3, 64, 64)
        torch.testing.assert_close(loaded(content, style), model(content, style))

    def test_a_lightning_checkpoint(self, tmp_path):
        model, file = tiny_samam(8), tmp_path / "epoch.ckpt"
        state = {f"model.{key}": value for key, value in public_samam(model).items()}
        state["loss_func.vgg.0.weight"] = torch.zeros(3, 3, 1, 1)
        torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"patch_size": 8}}, file)
        assert same(load_public_samam(file), model)

    def test_safetensors_and_pipeline(self, tmp_path):
        model, file = tiny_samam(8), tmp_path / "samam.safetensors"
        save_file(public_samam(model), file)
        pipe = SaMamPipeline.from_public_checkpoint(file)
        assert same(pipe.model, model) and pipe.config.style_size == 256


class TestMambaST:
    def test_every_weight_finds_its_place_in_any_order_of_the_files(self, tmp_path):
        model, files = tiny_mamba_st(), []
        for name, state in zip(("mamba", "decoder", "embedding"), public_mamba_st(model), strict=True):
            files.append(tmp_path / f"{name}_iter_160000.pth")
            torch.save(state, files[-1])
        loaded = load_public_mamba_st(*files)
        assert same(loaded, model) and sizes(loaded) == sizes(model)
        assert same(MambaSTPipeline.from_public_checkpoint(*files[::-1]).model, model)

    def test_one_file_of_three(self, tmp_path):
        file = tmp_path / "mamba_iter_1.pth"
        torch.save(public_mamba_st(tiny_mamba_st())[0], file)
        with pytest.raises(ValueError, match=r"mamba_iter_1.pth lacks patch_embed.weight: .*its three files"):
            load_public_mamba_st(file)


class TestWrongFiles:
    def test_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load_public_samam(tmp_path / "nowhere.pth")

    def test_code_in_the_file_is_not_run(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return (tmp_path.joinpath("touched").touch, ())

        file = tmp_path / "hostile.pth"
        torch.save({"state_dict": Hostile()}, file)
        with pytest.raises(ValueError, match="holds more than tensors and is not read"):
            load_public_samam(file)
        file.write_bytes(pickle.dumps(Hostile(), protocol=2))
        with pytest.raises(ValueError, match="hostile.pth"):
            load_public_samam(file)
        assert not (tmp_path / "touched").exists()

    @pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors"])
    def test_damaged(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no archive")
        with pytest.raises(ValueError, match=f"{name} "):
            load_public_samam(tmp_path / name)

    def test_no_state_dict(self, tmp_path):
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="list.pth holds no state dict"):
            load_public_samam(tmp_path / "list.pth")

    def test_another_model(self, tmp_path):
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
        with pytest.raises(ValueError, match="lacks content_encoder.patch_embed.weight"):
            load_public_samam(tmp_path / "vgg.pth")

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda s: s.pop("global_embedder.fc.bias"), r"lacks 1 weights \(style_embedder.out.bias\)"),
            (lambda s: s.update(extra=torch.zeros(1)), r"has 1 that no layer takes \(extra\)"),
            (
                lambda s: s.update({"global_embedder.fc.weight": torch.zeros(9, 3)}),
                r"style_embedder.out.weight has shape \(9, 3\), wanted \(72, 256\)",
            ),
        ],
    )
    def test_a_weight_too_few_too_many_or_of_another_shape(self, samam_file, change, message):
        state = torch.load(samam_file, weights_only=True)
        change(state)
        torch.save(state, samam_file)
        with pytest.raises(ValueError, match=message):
            load_public_samam(samam_file)
