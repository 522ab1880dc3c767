"""Style files: what goes in comes out bit for bit, and whatever else a file may hold is one clear sentence."""

import base64
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save, save_file

from stylemamba import Style, StyleFusion
from stylemamba.pipeline.style import FORMAT_VERSION, StyleFileError, describe_component
from stylemamba.pipeline.style_decoder import StyleDecoder

SMALLEST = {"cond_dim": 4, "unshuffle": 1, "d_state": 1, "d_conv": 2, "expand": 1}  # four channels wide
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(width=40, height=30, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def fusion_of(**options):
    torch.manual_seed(0)
    fusion = StyleFusion(**options)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return fusion


def config_of(fusion):
    return {name: value for name, value in fusion.config.items() if not name.startswith("_")}


def make_style(fusion=None, decoder=None, **info):
    fusion = fusion or fusion_of(**SMALLEST)
    width = fusion.config.cond_dim
    if decoder is None:
        decoder = {
            "decoder.conv_in.weight": torch.full((2, 3, 1, 1), 0.1),
            "decoder.conv_out.weight": (torch.ones(2, 1), torch.ones(1, 3)),
        }
    info = {"prompt": "stained glass", "seed": 3, "losses": {"total": [2.0, 1.5]}, **info}
    embeds = torch.nn.functional.normalize(torch.randn(width), dim=0)
    return Style(embeds, config_of(fusion), fusion.state_dict(), decoder, info, picture())


def tensors_of(style):
    """Every tensor of a style by one name."""
    found = {"prompt_embeds": style.prompt_embeds, **style.fusion}
    for name, change in style.decoder.items():
        parts = change if isinstance(change, tuple) else (change,)
        found.update({f"{name} {i}": part for i, part in enumerate(parts)})
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "glass.safetensors"


@pytest.fixture
def saved(path):
    make_style().save(path)
    return path


def contents(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118


def refusal(path):
    """The sentence with which a file is refused; any other outcome fails."""
    with pytest.raises(StyleFileError) as caught:
        Style.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and sentence.endswith(".")
    assert len(sentence) < 500 + len(str(path))
    return sentence


def loads_or_is_refused(path):
    try:
        style = Style.load(path)
    except StyleFileError:
        return None
    return style.build_fusion()


# Round trip


def test_what_is_saved_is_loaded_bit_for_bit(path):
    style = make_style(created="2026-01-01T00:00:00+00:00", base={"vae": {"name": "sd", "fingerprint": "0"}})
    style.save(path)
    loaded = Style.load(path)
    before, after = tensors_of(style), tensors_of(loaded)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and torch.equal(value, after[name]), name
    assert loaded.info == style.info and loaded.fusion_config == style.fusion_config
    assert loaded.prompt == "stained glass"


def test_weights_are_half_precision_but_those_of_the_scan_are_not(path):
    make_style().save(path)
    tensors, _ = contents(path)
    exact = {name for name, value in tensors.items() if value.dtype == torch.float32}
    assert exact == {"prompt_embeds", *(f"fusion.blocks.0.mixer.{n}" for n in ("A_log", "D", "dt_bias"))}
    assert {value.dtype for name, value in tensors.items() if name not in exact} == {torch.float16}


def test_the_fusion_of_a_loaded_style_computes_what_the_fitted_one_did(path):
    fusion = fusion_of(cond_dim=4, unshuffle=2, d_model=8, depth=2, d_state=2, scan_order="cross")
    style = make_style(fusion)
    style.save(path)
    with torch.no_grad():
        for part, value in fusion.named_parameters():
            value.copy_(style.fusion[part])  # as rounded
        latents = torch.randn(1, 4, 5, 6)
        wanted = fusion(latents, style.prompt_embeds[None])
        found = Style.load(path).build_fusion().float()(latents, style.prompt_embeds[None])
    assert torch.equal(found, wanted)


def test_a_loaded_style_does_not_depend_on_its_file_any_more(saved):
    loaded = Style.load(saved)
    before = {name: value.clone() for name, value in tensors_of(loaded).items()}
    saved.write_bytes(b"\xff" * saved.stat().st_size)  # in place, as some programs write
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(loaded).items())


def test_a_style_loaded_under_inference_mode_passes_gradients(saved):
    with torch.inference_mode():
        style = Style.load(saved)
        fusion = style.build_fusion()
    latents = torch.randn(1, 4, 2, 2, requires_grad=True)
    fusion.float()(latents, style.prompt_embeds[None]).sum().backward()
    assert latents.grad.abs().max() > 0


@pytest.mark.parametrize(
    "prompt", ["ünïcödé 浮世絵", "🎨🖌️ stained glass", 'quotes " and \\ and \n newline', "x" * 10_000, ""]
)
def test_any_prompt_comes_back(path, prompt):
    make_style(prompt=prompt).save(path)
    assert Style.load(path).prompt == prompt


def test_file_names_may_be_unicode_and_paths_may_be_strings(tmp_path):
    path = str(tmp_path / "новый стиль 🎨" / "glass.safetensors")
    make_style().save(path)
    assert Style.load(path).prompt == "stained glass"


def test_the_name_has_to_say_what_the_file_is(tmp_path):
    with pytest.raises(StyleFileError, match="ends in '.ckpt', wanted a name that ends in .safetensors"):
        make_style().save(tmp_path / "glass.ckpt")
    assert list(tmp_path.iterdir()) == []


# Metadata


def test_metadata_tells_model_browsers_what_the_file_is(saved):
    _, metadata = contents(saved)
    assert metadata["format"] == "stylemamba-style" and metadata["format_version"] == str(FORMAT_VERSION)
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "stylemamba/style"
    assert metadata["modelspec.title"] == metadata["modelspec.trigger_phrase"] == "stained glass"
    assert json.loads(metadata["info"])["seed"] == 3
    assert json.loads(metadata["fusion_config"])["cond_dim"] == 4


def test_a_title_goes_before_the_prompt(path):
    make_style(title="Glass").save(path)
    assert contents(path)[1]["modelspec.title"] == "Glass"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "CMYK"])
def test_the_thumbnail_is_a_small_jpeg_in_a_data_uri(path, mode):
    style = make_style()
    style.thumbnail = picture(700, 350, mode)
    style.save(path)
    head, _, data = contents(path)[1]["modelspec.thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    decoded = Image.open(io.BytesIO(base64.b64decode(data)))
    assert decoded.format == "JPEG" and decoded.size == (256, 128)
    assert Style.load(path).thumbnail.size == (256, 128)
    assert style.thumbnail.size == (700, 350)  # the caller's picture stays as it was


def test_a_style_without_a_thumbnail_has_none(path):
    style = make_style()
    style.thumbnail = None
    style.save(path)
    assert "modelspec.thumbnail" not in contents(path)[1] and Style.load(path).thumbnail is None


# Size


@pytest.fixture(scope="module")
def sd_vae():
    """Stable Diffusion's autoencoder at full size, with random weights (330 MB)."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def test_styles_of_full_size_models_stay_below_four_megabytes(path, sd_vae):
    paper = fusion_of(**config_of(StyleFusion.from_preset("paper", cond_dim=768)))
    low_rank = StyleDecoder(sd_vae).low_rank_changes(4, seed=0)
    assert len(low_rank) > 8
    curves = {f"term {i}": [round(0.123456 * j, 6) for j in range(200)] for i in range(12)}
    for decoder in ({}, low_rank):
        style = make_style(paper, decoder, losses=curves)
        style.thumbnail = picture(512, 512)  # noise: the largest JPEG there is
        style.save(path)
        assert 3e6 < path.stat().st_size < 4e6
        assert Style.load(path).decoder.keys() == decoder.keys()


def test_a_full_decoder_is_stored_in_half_precision(sd_vae, path):
    changes = StyleDecoder(sd_vae).full_changes()
    weights = sum(change.numel() for change in changes.values())
    assert weights == 49_490_199  # methods 1.3
    make_style(decoder=changes).save(path)
    assert path.stat().st_size < 2 * weights + 1e6


# Atomic


class Interrupting(Image.Image):
    """Ctrl-C while the metadata is made."""

    def convert(self, *_args, **_options):
        raise KeyboardInterrupt


def test_an_interrupted_save_leaves_the_old_file_and_no_other(saved):
    before = saved.read_bytes()
    style = make_style(prompt="mosaic")
    style.thumbnail = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        style.save(saved)
    with pytest.raises(TypeError):
        make_style(unserialisable=object()).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


# Files that are no styles


def test_a_file_cut_off_at_any_byte_is_refused(saved):
    whole = saved.read_bytes()
    cut = saved.with_name("cut.safetensors")
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        assert "damaged, cut off or of another kind" in refusal(cut)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.safetensors", Path("a\0b"), tmp_path / ("x" * 5000)):
        assert "is not a file" in refusal(path)


@fuzz
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(path, data):
    path.write_bytes(data)
    refusal(path)
    path.write_bytes(struct.pack("<Q", len(data)) + data)  # with a length that fits
    refusal(path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 100_000_001, 10_000])
def test_a_header_that_claims_more_than_there_is_is_refused(path, length):
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 64)
    refusal(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**60]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
    ],
    ids=["huge shape", "offset behind the end", "offsets reversed", "unknown type", "negative shape"],
)
def test_a_header_that_contradicts_the_data_is_refused(path, entry):
    header = json.dumps(
        {"__metadata__": {"format": "stylemamba-style", "format_version": "1"}, "a": entry}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refusal(path)


@fuzz
@given(places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_loads_or_is_refused(saved, places):
    damaged = bytearray(saved.read_bytes())
    for place, value in places:
        damaged[place % len(damaged)] = value
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(damaged)
    loads_or_is_refused(path)


def test_nested_headers_are_refused(path):
    header = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refusal(path)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_pickles_are_refused_and_not_run(path, tmp_path):
    marker = tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(marker)))
    refusal(path)
    torch.save({"payload": Payload(marker)}, path)
    refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"ss_network_module": "networks.lora", "modelspec.architecture": "sd/lora\x1b[2J\n"},
    ],
)
def test_safetensors_of_other_programs_are_refused(path, metadata):
    save_file({"lora_unet.lora_up.weight": torch.ones(2, 2)}, path, metadata=metadata)
    sentence = refusal(path)
    assert "no StyleMamba style" in sentence and "\x1b" not in sentence


@pytest.mark.parametrize(("version", "sentence"), [
    (str(FORMAT_VERSION + 1), "newer than the 1 this StyleMamba reads: upgrade with pip install --upgrade stylemamba"),
    ("one", "wanted a whole number"),
    ("", "wanted a whole number"),
    ("-1", "wanted a whole number"),
    ("9" * 5000, "wanted a whole number"),
])  # fmt: skip
def test_other_format_versions_are_refused(saved, version, sentence):
    tensors, metadata = contents(saved)
    save_file(tensors, saved, metadata={**metadata, "format_version": version})
    assert sentence in refusal(saved)


# Files that claim to be styles


def with_metadata(path, **changed):
    tensors, metadata = contents(path)
    metadata.update(changed)
    path.write_bytes(save(tensors, {name: text for name, text in metadata.items() if text is not None}))


def with_tensors(path, **changed):
    tensors, metadata = contents(path)
    tensors.update({name.replace("__", "."): value for name, value in changed.items()})
    save_file({name: value for name, value in tensors.items() if value is not None}, path, metadata=metadata)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("field", ["info", "fusion_config"])
@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "3",
        "null",
        DEEP,
        f'{{"a": {DEEP}}}',
        '{"seed": ' + "9" * 5000 + "}",
        "[" + "0," * 3_000_000 + "0]",
    ],
    ids=[
        "missing",
        "empty",
        "cut off",
        "list",
        "number",
        "null",
        "deep",
        "deep inside",
        "long number",
        "long",
    ],
)
def test_damaged_metadata_is_refused(saved, field, text):
    with_metadata(saved, **{field: text})
    assert "metadata" in refusal(saved)


@pytest.mark.parametrize(
    "info",
    [
        {"prompt": 3}, {"prompt": None}, {"title": ["a"]}, {"seed": "3"}, {"base": []}, {"base": {"vae": "sd"}},
        {"base": {"vae": {"name": 3}}}, {"losses": {"total": [float("nan")]}}, {"losses": {"total": 3}}, {"losses": {"total": ["3"]}}, {"config": 1},
    ],
    ids=str,
)  # fmt: skip
def test_metadata_of_the_wrong_kind_is_refused(saved, info):
    with_metadata(saved, info=json.dumps(info))
    assert "damaged metadata" in refusal(saved)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["A", "zigzag", "spatial"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@fuzz
@given(
    name=st.sampled_from([*config_of(StyleFusion(**SMALLEST)), "unknown", "self", "_name_or_path"]),
    value=json_values,
)
def test_any_fusion_config_loads_or_is_refused(path, name, value):
    style = make_style()
    style.fusion_config[name] = value
    style.save(path)
    fusion = loads_or_is_refused(path)
    if fusion is not None:
        fusion.float()(torch.zeros(1, 4, 3, 3), torch.ones(1, 4))


@fuzz
@given(
    info=st.dictionaries(
        st.sampled_from(["prompt", "base", "losses", "config", "seed", "other"]), json_values
    )
)
def test_any_info_loads_or_is_refused(path, info):
    make_style().save(path)
    with_metadata(path, info=json.dumps(info))
    loads_or_is_refused(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"depth": 10**9},
        {"d_model": 30_000},
        {"d_model": 10**9},
        {"d_state": 10**9},
        {"cond_dim": 10**12},
        {"unshuffle": 10**6},
        {"expand": 2**40},
        {"d_conv": 10**9},
        {"mlp_ratio": 1e18},
        {"mlp_ratio": "x" * 1000},
        {"d_model": 10**4000},
        {"depth": 0},
        {"latent_channels": -4, "unshuffle": 1},
        {"unshuffle": -1},
        {"unshuffle": 1.0},
        {"scan_order": ["zigzag"]},
        {"reading": "Z"},
        {"unknown": 1},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_a_hostile_fusion_config_is_refused_before_memory_is_taken(path, changed):
    resource = pytest.importorskip("resource")
    style = make_style()
    style.fusion_config.update(changed)
    style.save(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "fusion" in refusal(path)
    with pytest.raises(StyleFileError):
        style.build_fusion()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


F8 = torch.ones(4).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"prompt_embeds": None}, "holds no prompt embedding"),
        ({"prompt_embeds": torch.ones(1, 4)}, "holds no prompt embedding"),
        ({"prompt_embeds": torch.ones(5)}, "prompt embedding of width 5, its fusion wants 4"),
        ({"prompt_embeds": torch.tensor([1, float("nan"), 0, 0])}, "finite"),
        ({"prompt_embeds": torch.arange(4)}, "finite"),
        ({"prompt_embeds": torch.ones(4, dtype=torch.complex64)}, "finite"),
        ({"prompt_embeds": F8}, "finite"),
        ({"fusion__blocks__0__mixer__D": torch.full((1, 4), float("inf"))}, "finite"),
        ({"fusion__blocks__0__ada_ln__1__bias": torch.full((24,), 1e5)}, "finite"),  # not in half precision
        ({"fusion__blocks__0__mixer__D": torch.ones(1, 5)}, r"'blocks.0.mixer.D' is (1, 5), its config wants (1, 4)"),
        ({"fusion__blocks__0__mixer__D": None}, r"'blocks.0.mixer.D' is missing, its config wants (1, 4)"),
        ({"fusion__extra": torch.ones(1)}, "'extra' is (1,), its config wants none"),
        ({"fusion__blocks__1__mixer__D": torch.ones(1, 4)}, "its config says depth 1, it holds 2 blocks"),
        ({"model__weight": torch.ones(1)}, "unknown tensor 'model.weight'"),
        ({"decoder__conv_in__up": torch.ones(2, 1)}, "neither full nor a pair of factors"),
        ({"decoder__conv_in__up": torch.ones(2, 2), "decoder__conv_in__down": torch.ones(3, 2)}, "neither full"),
        ({"decoder__conv_in__up": torch.ones(2), "decoder__conv_in__down": torch.ones(2)}, "neither full"),
        ({"decoder__conv_in__up": torch.ones(2, 1), "decoder__conv_in__full": torch.ones(2)}, "neither full"),
        ({"decoder__conv_in__other": torch.ones(2, 1)}, "neither full"),
        ({f"decoder__w{i}__full": torch.zeros(0) for i in range(5000)}, "tensors, too many"),
    ],
)  # fmt: skip
def test_tensors_that_make_no_style_are_refused(saved, changed, sentence):
    with_tensors(saved, **changed)
    assert sentence in refusal(saved)


def test_a_file_too_large_is_refused_unread(path):
    with open(path, "wb") as file:
        file.truncate(2**31 + 1)  # sparse: takes no room
    assert "too many for a style file" in refusal(path)


def jpeg_claiming(width, height):
    """A JPEG whose header promises another size."""
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def encoded(data):
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


BROKEN_THUMBNAILS = {
    "no data uri": "https://example.org/a.jpg",
    "no base64": "data:image/jpeg;base64,%%%",
    "not ASCII": "data:image/jpeg;base64,äöü",
    "empty": "data:image/jpeg;base64,",
    "PNG": "data:image/png;base64,iVBORw0KGgo=",
    "no picture": encoded(b"\xff\xd8\xff\xe0 but no more"),
    "cut off": encoded(jpeg_claiming(40, 30)[:400]),
    "65000 x 65000": encoded(jpeg_claiming(65000, 65000)),
    "10000 x 10000": encoded(jpeg_claiming(10000, 10000)),
    "too long": encoded(bytes(2**20)),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("uri", BROKEN_THUMBNAILS.values(), ids=BROKEN_THUMBNAILS.keys())
def test_a_broken_thumbnail_is_left_out_and_the_style_still_loads(saved, uri):
    with_metadata(saved, **{"modelspec.thumbnail": uri})
    style = Style.load(saved)
    assert style.thumbnail is None and style.prompt == "stained glass"


def test_building_a_fusion_draws_no_random_numbers(saved):
    state = torch.get_rng_state()
    Style.load(saved)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "folder, name",
    [
        ("home/me/models/ink/vae", "ink/vae"),  # a part of a pipeline
        ("home/me/models/vae", "vae"),
        ("cache/models--someone--painter--v2/snapshots/0f0f/vae", "someone/painter--v2/vae"),
        ("cache/models--someone--sd-vae/snapshots/0f0f", "someone/sd-vae"),
    ],
)
def test_a_model_is_known_by_a_name_that_others_can_find_and_by_no_path(tmp_path, folder, name):
    fusion_of(**SMALLEST).save_pretrained(tmp_path / folder)
    if name == "ink/vae":
        (tmp_path / folder).with_name("model_index.json").write_text("{}")
    loaded = StyleFusion.from_pretrained(tmp_path / folder)
    assert describe_component(loaded)["name"] == name
    loaded.register_to_config(_name_or_path="someone/sd-vae")
    assert describe_component(loaded)["name"] == "someone/sd-vae"
