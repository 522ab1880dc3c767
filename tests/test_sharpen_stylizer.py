"""By what the stylizer is sharpened: distances to labels, SSIM, and what may be trained."""

import random
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import sharpen_stylizer  # noqa: E402
from finish_pairs import Artworks, StyleJudge  # noqa: E402
from manifest import HELD_OUT  # noqa: E402
from pretended_gpu import PretendedGPU  # noqa: E402
from sharpen_stylizer import (  # noqa: E402
    STEERED,
    TEMPERATURE,
    LabelDistance,
    Palettes,
    Stylizer,
    crop,
    learn_to_read,
    ssim,
)
from timed_run import TimedRun  # noqa: E402
from tiny_teachers import picture_set, shift_tolerant_vgg16  # noqa: E402
from train_stylizer import WARM_UPS, shorter_warm_up  # noqa: E402

from stylemamba import StyleMambaPipeline  # noqa: E402
from stylemamba.pipeline import metrics  # noqa: E402
from stylemamba.pipeline.conditional_decoder import FINEST, ConditionalDecoder, FineLight  # noqa: E402
from stylemamba.pipeline.controls import blur, luminance  # noqa: E402
from stylemamba.pipeline.fusion import StyleFusion  # noqa: E402


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def judge() -> StyleJudge:
    """Four labels of ten artworks, whose numbers lie around a mean of their own."""
    labels = [name for name in ("ice", "marble", "neon", "fog") for _ in range(10)]
    means = noise(4, 6, seed=1).repeat_interleave(10, 0)
    numbers = means + 0.1 * noise(40, 6, seed=2)
    return StyleJudge(Artworks(numbers, [str(i) for i in range(40)], labels))


def test_distances_are_the_judges_own_and_have_gradients(judge):
    numbers = noise(3, 6, seed=3).requires_grad_()
    distances = LabelDistance(judge)(numbers)
    torch.testing.assert_close(distances.double(), judge.distances(numbers.detach()), rtol=1e-3, atol=1e-3)
    distances.sum().backward()
    assert (numbers.grad != 0).all()


def test_loss_is_the_surprise_at_the_label_asked_for(judge):
    distances = 10 * noise(2, 4, seed=4)
    wanted = []
    for row, asked in zip(distances.double(), (1, 3), strict=True):
        likely = torch.exp(-row / (TEMPERATURE * row.mean()))
        wanted.append(-torch.log(likely[asked] / likely.sum()))
    found = LabelDistance(judge).loss(distances, torch.tensor([1, 3]))
    torch.testing.assert_close(found.double(), torch.stack(wanted).mean(), rtol=1e-5, atol=1e-5)


def test_going_down_the_loss_leads_to_the_label(judge):
    distance = LabelDistance(judge)
    numbers, asked = noise(1, 6, seed=5), torch.tensor([judge.names.index("neon")])
    for _ in range(200):
        numbers = numbers.detach().requires_grad_()
        distance.loss(distance(numbers), asked).backward()
        numbers = (numbers - 0.02 * numbers.grad / numbers.grad.norm()).clamp(min=0)
    assert judge.ranks(numbers.detach(), ["neon"]).item() == 0


def flat(*colors: tuple[float, float, float]) -> torch.Tensor:
    """(1, 3, 128, 128 * n): patches of one colour beside each other."""
    return torch.cat([torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, 128, 128) for color in colors], -1)


def neighbours(picture: torch.Tensor, area: int, away: int) -> torch.Tensor:
    """By the definition: (light, red - light, blue - light), chroma times 1.5, of an area, of the one `away` to the right, and of the
    one below; in a list of all of them that have both."""
    _, _, height, width = picture.shape
    color = {}
    for y in range(height // area):
        for x in range(width // area):
            r, g, b = (
                picture[0, :, y * area : (y + 1) * area, x * area : (x + 1) * area].mean((1, 2)).tolist()
            )
            light = float(luminance(torch.tensor([r, g, b]).view(1, 3, 1, 1)))
            color[y, x] = [light, 1.5 * (r - light), 1.5 * (b - light)]
    found = [
        color[y, x] + color[y, x + away] + color[y + away, x]
        for y, x in color
        if (y, x + away) in color and (y + away, x) in color
    ]
    return torch.tensor(found)


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|"""
    mean = [torch.linalg.vector_norm(a[:, None] - b, dim=-1).mean() for a, b in ((x, y), (x, x), (y, y))]
    return float(2 * mean[0] - mean[1] - mean[2])


def test_a_palette_is_the_energy_distance_of_colours_and_of_those_beside_them():
    artwork, other, picture, second = (noise(1, 3, 56, 60, seed=seed) for seed in range(4))
    pictures = [F.interpolate(p, scale_factor=2, mode="bilinear") for p in (picture, second)]
    palettes = Palettes({"soot": [artwork], "chess": [other, artwork]})
    areas = {"soot": [artwork], "chess": [other, artwork]}
    wanted = []
    for made, label in zip(pictures, ("soot", "chess"), strict=True):
        for away in (1, 4, 12):
            known = torch.cat(
                [neighbours(p, 4, away) for p in areas[label]]
            )  # artworks are seen at half size
            wanted.append(energy_distance(neighbours(made, 8, away), known))
    found = palettes.loss(torch.cat(pictures), ["soot", "chess"])
    assert found.item() == pytest.approx(sum(wanted) / 6, rel=1e-3)
    # greys have no chroma, so that black and white are 1 apart, and three of each the root of 3
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    soot = Palettes({"soot": [flat(black)]})
    assert soot.loss(flat(white), ["soot"]).item() == pytest.approx(2 * 3**0.5, abs=1e-3)
    assert soot.loss(flat(black), ["soot"]).item() == pytest.approx(0, abs=1e-3)


def test_the_same_colours_in_specks_are_farther_than_in_patches():
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    palettes = Palettes({"chess": [flat(black, white, black, white)]})
    patches = flat(white, black, white, black)
    specks = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    specks = specks.repeat_interleave(8, 0).repeat_interleave(8, 1).float().expand(1, 3, -1, -1)
    assert palettes.loss(specks, ["chess"]) > 3 * palettes.loss(patches, ["chess"])


def test_two_colours_are_not_the_palette_that_has_their_mean_and_deviation():
    """What a judge of means and deviations would be content with."""
    red, green, blue, yellow = (0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9), (0.9, 0.9, 0.1)
    many = flat(red, green, blue, yellow)
    mean, deviation = many.mean((2, 3), keepdim=True), many.std((2, 3), correction=0, keepdim=True)
    two = torch.cat(
        [(mean - deviation).expand(1, 3, 128, 256), (mean + deviation).expand(1, 3, 128, 256)], -1
    )
    palettes = Palettes({"glass": [many]})
    assert palettes.loss(two, ["glass"]) > palettes.loss(many.flip(-1), ["glass"]) + 0.1
    # strokes finer than an area do not count
    stripes = torch.arange(512) % 2 * 0.1 - 0.05
    torch.testing.assert_close(
        palettes.loss(many + stripes, ["glass"]), palettes.loss(many, ["glass"]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_ssim_is_that_of_the_metrics(share):
    a = noise(2, 1, 96, 80)
    b = torch.lerp(a, noise(2, 1, 96, 80, seed=1), share)
    wanted = torch.stack([metrics.ssim(*pair) for pair in zip(a, b, strict=True)])
    torch.testing.assert_close(ssim(a, b), wanted, rtol=0, atol=5e-3)


def test_only_what_an_embedding_steers_is_trained():
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), latent_channels=4,
    )  # fmt: skip
    stylizer = Stylizer(vae, cond_dim=16)
    steered = {name for name, _ in stylizer.named_parameters() if any(part in name for part in STEERED)}
    embeds = torch.nn.functional.normalize(noise(2, 16) - 0.5, dim=-1)
    images = noise(1, 3, 32, 32).expand(2, -1, -1, -1) * 2 - 1
    for name, p in stylizer.named_parameters():
        p.requires_grad_(name in steered)
    plain = stylizer(images, embeds, torch.zeros(2, 1))
    optimizer = torch.optim.Adam([p for p in stylizer.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        stylizer(images, embeds, torch.ones(2, 1)).square().mean().backward()
        optimizer.step()
    one, other = stylizer(images, embeds, torch.ones(2, 1))
    assert (one - other).abs().mean() > 1e-3  # two styles of the same photo
    # at strength 0 the picture is what it was: none of that is the style's
    torch.testing.assert_close(stylizer(images, embeds, torch.zeros(2, 1)), plain)
    assert steered and all(not name.startswith("vae.") for name in steered)


def test_crops_have_the_size_asked_for_and_are_parts_of_the_photo():
    photo = torch.arange(3 * 40 * 60.0).view(3, 40, 60)
    for seed in range(4):
        part = crop(photo, 32, random.Random(seed))
        assert part.shape == (3, 32, 32)
        assert torch.isin(part, photo).all()
    assert crop(photo, 48, random.Random(0)).shape == (3, 48, 48)  # from a photo that is too small


def start_without_fine_light(folder: Path) -> None:
    """`tiny` as train_stylizer.py leaves it."""
    shutil.copytree(Path(__file__).parent.parent / "weights" / "tiny", folder)
    decoder = ConditionalDecoder.from_pretrained(folder / "style_decoder")
    plain = ConditionalDecoder(**{**decoder.config, "reads_fine_light": False})
    plain.load_state_dict(decoder.state_dict(), strict=False)
    plain.half().save_pretrained(folder / "style_decoder")


def test_the_finest_light_is_learnt_from_latents_far_from_0(monkeypatch):
    """Latents that hold the light itself, at many times its size and with a large mean: what is read is that light."""
    monkeypatch.setattr(sharpen_stylizer, "READING_STEPS", 300)
    photos = noise(12, 3, 32, 32)
    light = luminance(photos)
    finest = light - blur(light, FINEST)
    latents = 10 + 40 * torch.nn.functional.pixel_unshuffle(finest, 4)  # (12, 16, 8, 8)
    torch.manual_seed(0)
    reader = FineLight(latent_channels=16, code_dim=4, scale=4)
    error = learn_to_read(reader, latents, photos)
    found = reader.own(latents)
    assert error == pytest.approx(float((found - finest).detach().abs().mean()), rel=1e-4)
    assert error < 0.25 * finest.abs().mean()


def test_a_step_has_a_shorter_warm_up_than_the_model_that_is_written():
    fusion, seen = StyleFusion(4, 8, depth=2, warm_up=400), set()
    rng = random.Random(0)
    for _ in range(40):
        with pytest.raises(RuntimeError), shorter_warm_up(fusion, rng):
            first, second = (block.mixer.warm_up for block in fusion.blocks)
            assert first == second
            seen.add(first)
            raise RuntimeError  # a step that fails
        assert [block.mixer.warm_up for block in fusion.blocks] == [400, 400]
    assert len(seen) > 30 and WARM_UPS[0] * 400 <= min(seen) < max(seen) <= WARM_UPS[1] * 400


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_training_goes_on_where_it_stopped_and_changes_two_parts(device, tmp_path, monkeypatch):
    torch.manual_seed(0)
    data, start = tmp_path / "data", tmp_path / "start"
    start_without_fine_light(start)
    pictures = [
        (f"{label}{i}.png", kind, label)
        for kind, label, count in (("content", "photo", 2), ("style", "dots", 3), ("style", "fog", 3))
        for i in range(count)
    ]
    rows = picture_set(data, [(Path(HELD_OUT["photos"][-1]).name, "content", "photo"), *pictures])
    (data / rows[0]["file"]).unlink()  # whoever reads it fails
    vgg = shift_tolerant_vgg16(tmp_path / "vgg.pth")
    out = tmp_path / "out"
    command = ["sharpen_stylizer.py", *map(str, (data, start, out)), "--vgg", str(vgg)]
    command += ["--batch", "1", "--crop", "176", "--device", device]
    monkeypatch.setitem(HELD_OUT, "photos", [rows[0]["file"]])
    monkeypatch.setattr(sharpen_stylizer, "READING_STEPS", 2)
    monkeypatch.setattr(sharpen_stylizer, "READING_CROPS", 2)
    monkeypatch.setattr(sharpen_stylizer, "draw_samples", lambda *_: None)  # of photos that are not here

    monkeypatch.setattr(sharpen_stylizer, "TimedRun", partial(TimedRun, save_every=0))

    def train(minutes: float) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(sys, "argv", [*command, "--minutes", str(minutes)])
        with nullcontext() if device == "cpu" else PretendedGPU():
            sharpen_stylizer.main()
        parts = ("fusion", "style_decoder", "vae", "text_encoder")
        files = {
            file.relative_to(out / "pipeline"): file
            for part in parts
            for file in (out / "pipeline" / part).glob("*.safetensors")
        }
        return {str(name): load_file(file) for name, file in files.items()}

    first = train(0.03)
    steps = torch.load(out / "state.pt", weights_only=True)["step"]
    second = train(0.06)
    assert torch.load(out / "state.pt", weights_only=True)["step"] > steps > 0
    for name, tensors in second.items():
        bundled = load_file(start / name)
        new = set(tensors) - set(bundled)
        assert all(key.startswith("fine_light.") for key in new) and bool(new) == ("decoder" in name)
        changed = {key for key in set(tensors) - new if not torch.equal(tensors[key], bundled[key])}
        if name.split("/")[0] in ("vae", "text_encoder"):
            assert not changed
        else:
            steered = {
                key for key in tensors if name.startswith("fusion") or any(part in key for part in STEERED)
            }
            assert changed <= steered and len(changed) > len(steered) / 2
    assert any(not torch.equal(first[name][key], second[name][key]) for name in first for key in first[name])
    made, begun = (
        StyleMambaPipeline.from_pretrained(folder).fusion.config for folder in (out / "pipeline", start)
    )
    assert made["warm_up"] == begun["warm_up"] > 0
