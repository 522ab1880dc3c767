"""How the teacher's pictures are finished before the stylizer learns from them."""

import json
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import finish_pairs  # noqa: E402
from finish_pairs import STEEPEST, WAYS, finish, flatten, in_histogram  # noqa: E402


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_flattening_evens_out_grain_and_keeps_an_edge():
    edge = torch.full((1, 3, 40, 40), 0.2)
    edge[..., 20:] = 0.8
    grain = 0.06 * (noise(1, 3, 40, 40) - 0.5)
    flat = flatten(edge + grain, 0.1)
    assert (flat - edge).std() < grain.std() / 4
    assert (flat[..., 20] - flat[..., 19]).mean() > 0.55


def test_flattening_leaves_what_is_flat_and_treats_rows_as_columns():
    even = torch.full((1, 3, 16, 20), 0.3)
    assert torch.allclose(flatten(even, 0.1), even)
    # Not exactly: columns are evened out after rows.
    image = noise(1, 3, 24, 24)
    assert (flatten(image, 0.1) - flatten(image.mT, 0.1).mT).abs().mean() < 0.02


def test_colours_get_the_quantiles_of_the_artwork():
    picture, artwork = noise(1, 3, 64, 64), noise(1, 3, 48, 80, seed=1).square()  # slopes of at most 2
    result = in_histogram(picture, artwork)
    at = torch.linspace(0.02, 0.98, 25)
    for channel, wanted in zip(result[0], artwork[0], strict=True):
        assert torch.allclose(channel.flatten().quantile(at), wanted.flatten().quantile(at), atol=0.02)


def test_colours_keep_the_order_of_values_and_what_is_the_same_stays_the_same():
    picture = torch.linspace(0, 1, 9).repeat_interleave(32).view(1, 1, 12, 24).expand(1, 3, 12, 24)
    result = in_histogram(picture, noise(1, 3, 32, 32, seed=2).sqrt())
    values = [result[0, 0][picture[0, 0] == value] for value in torch.linspace(0, 1, 9)]
    assert all((group == group[0]).all() for group in values)
    assert (torch.stack([group[0] for group in values]).diff() >= 0).all()


def test_noise_in_a_plain_sky_does_not_become_texture():
    sky = 0.5 + 0.002 * noise(1, 3, 32, 32)
    result = in_histogram(sky, noise(1, 3, 32, 32, seed=1))
    assert (result.std((2, 3)) <= STEEPEST * sky.std((2, 3)) * 1.01).all()


def test_every_way_is_another_picture():
    picture, artwork = noise(1, 3, 32, 48), noise(1, 3, 32, 32, seed=1).square()
    results = [finish(picture, artwork, way) for way in WAYS]
    assert torch.equal(results[WAYS.index(("plain", "own"))], picture)
    for index, one in enumerate(results):
        assert one.shape == picture.shape
        assert all((one - other).abs().mean() > 1e-3 for other in results[:index])


def test_a_label_with_flat_artworks_is_flattened_and_a_rough_one_is_not(tmp_path, monkeypatch):
    """Two labels, the same rough pictures: what is chosen comes from the artworks alone."""
    torch.manual_seed(0)
    data, pairs = tmp_path / "data", tmp_path / "pairs"
    data.mkdir(), pairs.mkdir()

    def blocks(seed, grain):
        image = noise(3, 6, 6, seed=seed).repeat_interleave(16, 1).repeat_interleave(16, 2)
        return (image + grain * (noise(3, 96, 96, seed=seed + 50) - 0.5)).clamp(0, 1)

    def write(file, image):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(file)

    rows, number = [], 0
    for label, grain in (("flat", 0.0), ("rough", 0.16)):
        for art in range(4):
            write(data / f"{label}{art}.png", blocks(10 + art, grain))
            for _ in range(2):
                number += 1
                write(pairs / f"{number}.jpg", blocks(100 + number, 0.16))
                rows.append(
                    {
                        "file": f"{number}.jpg",
                        "photo": "none",
                        "artwork": f"{label}{art}.png",
                        "label": label,
                        "stands_for_label": art == 0,
                    }
                )
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    layers, width, position, state = (2, 2, 3, 3, 3), 3, 0, {}
    for count in layers:
        for _ in range(count):
            channels = 16
            state[f"features.{position}.weight"] = torch.randn(channels, width, 3, 3) * (2 / 9 / width) ** 0.5
            state[f"features.{position}.bias"] = torch.zeros(channels)
            position, width = position + 2, channels
        position += 1
    torch.save(state, tmp_path / "vgg.pth")

    out = tmp_path / "finished"
    command = ["finish_pairs.py", str(data), str(pairs), "-o", str(out), "--vgg", str(tmp_path / "vgg.pth")]
    monkeypatch.setattr(sys, "argv", command)
    finish_pairs.main()
    written = [json.loads(line) for line in (out / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{**row, "finish": None} for row in written] == [{**row, "finish": None} for row in rows]
    surface = {row["label"]: row["finish"][0] for row in written}
    assert surface["flat"] != "plain"
    assert surface["rough"] == "plain"
    for row in rows:
        with Image.open(out / row["file"]) as finished, Image.open(pairs / row["file"]) as before:
            assert finished.size == before.size
