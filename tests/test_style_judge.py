"""The judge of benchmarks/: its network from the definition, LPIPS, leaving one out against N judges that never saw it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stylemamba.pipeline.losses import mean_std_loss

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def style_judge():
    spec = importlib.util.spec_from_file_location("style_judge", FOLDER / "style_judge.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["style_judge"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["style_judge"]


def random_alexnet(widths=(4, 5, 6, 7, 8)) -> dict[str, torch.Tensor]:
    """The file's keys and kernel sizes, at a small width."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "scaling_layer.shift": torch.full((1, 3, 1, 1), -0.1),
        "scaling_layer.scale": torch.full((1, 3, 1, 1), 0.4),
    }
    layers = zip(
        ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13"), (11, 5, 3, 3, 3), widths, strict=True
    )
    before = 3
    for i, (layer, kernel, width) in enumerate(layers):
        scale = 1.5 / (before * kernel**2) ** 0.5
        state[f"net.{layer}.weight"] = scale * torch.randn(width, before, kernel, kernel, generator=generator)
        state[f"net.{layer}.bias"] = 0.1 * torch.randn(width, generator=generator)
        state[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
        before = width
    for blur, width in zip(("slice1.1", "slice2.4", "slice3.8"), (widths[0], *widths[:2]), strict=True):
        state[f"net.{blur}.filt"] = torch.full((width, 1, 3, 3), 1 / 9)
    return state


@pytest.fixture
def alexnet(style_judge):
    return style_judge.AlexFeatures(random_alexnet(), "random")


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestAlexFeatures:
    def test_maps_have_the_strides_and_widths_of_the_network(self, alexnet):
        maps = alexnet(images(2, 3, 64, 48))
        assert [m.shape[1] for m in maps] == alexnet.widths == [4, 5, 6, 7, 8]
        assert all((m >= 0).all() and m.std() > 0 for m in maps)
        heights = [m.shape[2] for m in maps]
        assert heights[2] == heights[3] == heights[4] < heights[1] < heights[0] < 40

    def test_first_layer(self, alexnet):
        x = images(1, 3, 32, 32)
        w = alexnet.weights
        seen = (2 * x - 1 + 0.1) / 0.4
        full = F.conv2d(seen, w["net.slice1.0.weight"], w["net.slice1.0.bias"], padding=2)
        full = F.pad(full, (2, 2, 2, 2), mode="reflect")
        desired = F.relu(F.avg_pool2d(full, 3, stride=2))  # a blur of ninths is a mean
        torch.testing.assert_close(alexnet(x)[0], desired)

    def test_lpips(self, alexnet):
        a, b = images(1, 3, 48, 48), images(1, 3, 48, 48, seed=1)
        desired = 0
        for i, (one, other) in enumerate(zip(alexnet(a), alexnet(b), strict=True)):
            difference = F.normalize(one, dim=1) - F.normalize(other, dim=1)
            desired += (difference**2 * alexnet.weights[f"lin{i}.model.1.weight"]).sum(1).mean()
        torch.testing.assert_close(alexnet.lpips(a, b), desired, rtol=1e-4, atol=1e-6)
        assert alexnet.lpips(a, a) == 0 < alexnet.lpips(a, b)

    def test_from_file(self, style_judge, tmp_path):
        file = tmp_path / "alex.pth"
        torch.save(random_alexnet(), file)
        network = style_judge.AlexFeatures.from_file(file)
        again = style_judge.AlexFeatures(random_alexnet(), "")
        x = images(1, 3, 32, 32)
        torch.testing.assert_close(network(x), again(x))
        state = random_alexnet()
        state["net.slice5.13.weight"] = state["net.slice5.13.weight"] + 1
        torch.save(state, file)
        assert style_judge.AlexFeatures.from_file(file).name != network.name

    def test_exception(self, style_judge, tmp_path):
        with pytest.raises(FileNotFoundError, match="stlpips-pytorch"):
            style_judge.AlexFeatures.from_file(tmp_path / "none.pth")
        state = random_alexnet()
        del state["lin2.model.1.weight"]
        with pytest.raises(ValueError, match="lin2"):
            style_judge.AlexFeatures(state, "")


def test_style_distance_is_the_mean_std_loss_of_the_maps(style_judge, alexnet):
    pictures = [images(1, 3, 48, 48, seed=seed) ** (seed + 1) for seed in range(3)]
    statistics = [style_judge.channel_statistics(alexnet(p)) for p in pictures]
    distances = style_judge.style_distance(statistics[0], torch.cat(statistics[1:]), alexnet.widths)
    desired = [mean_std_loss(alexnet(pictures[0]), alexnet(other)) for other in pictures[1:]]
    torch.testing.assert_close(distances, torch.stack(desired)[None])


def test_square_is_the_centre(style_judge):
    picture = Image.new("RGB", (1024, 512), "red")
    picture.paste((0, 0, 255), (256, 0, 768, 512))
    centre = style_judge.square(picture)
    assert centre.shape == (1, 3, 256, 256)
    torch.testing.assert_close(centre.mean((2, 3)), torch.tensor([[0.0, 0.0, 1.0]]), atol=0.02, rtol=0)
    torch.testing.assert_close(
        style_judge.square(images(1, 3, 256, 256)), images(1, 3, 256, 256), atol=1 / 255, rtol=0
    )


def artworks(style_judge, counts=(5, 4, 1, 6), width=6, seed=0):
    """Labels are clouds of positive statistics around centres."""
    generator = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for label, count in zip("abcd", counts, strict=True):
        centre = torch.randn(width, generator=generator)
        rows += list((0.7 * centre + torch.randn(count, width, generator=generator)).exp())
        labels += [label] * count
    return style_judge.Artworks(torch.stack(rows), [f"{i}.png" for i in range(len(rows))], labels)


class TestStyleJudge:
    def test_an_artwork_far_from_the_rest_is_of_its_own_label(self, style_judge):
        known = artworks(style_judge)
        known.statistics[9] *= 50  # the only one of "c"
        judge = style_judge.StyleJudge(known)
        assert judge.ranks(known.statistics[9:10], ["c"]).tolist() == [0]
        assert judge.names == ["a", "b", "c", "d"]

    def test_ranks_count_the_labels_that_are_nearer(self, style_judge):
        known = artworks(style_judge)
        judge = style_judge.StyleJudge(known)
        picture = known.statistics[:1] * 1.1
        order = judge.distances(picture)[0].argsort().tolist()
        assert [int(judge.ranks(picture, [judge.names[i]])) for i in order] == [0, 1, 2, 3]
        assert sorted(int(judge.ranks(picture, [name])) for name in "abcd") == [0, 1, 2, 3]

    def test_leave_one_out_is_a_judge_that_never_saw_the_artwork(self, style_judge):
        """The formula against the definition: sums, centre and covariance taken anew without the artwork."""
        known = artworks(style_judge)
        judge = style_judge.StyleJudge(known)
        found = judge.leave_one_out()
        ridge = style_judge.RIDGE * (judge.offsets.T @ judge.offsets / judge.freedom).diagonal().mean()
        for left in range(len(known.labels)):
            rest = [i for i in range(len(known.labels)) if i != left]
            points, labels = judge.points[rest], judge.label[rest]
            if not (labels == judge.label[left]).any():
                assert found[left] == -1
                continue
            scatter, distances = torch.zeros(6, 6).double(), []
            means = {n: points[labels == n].mean(0) for n in range(4)}
            for n in range(4):
                offsets = points[labels == n] - means[n]
                scatter += offsets.T @ offsets
            metric = torch.linalg.inv(scatter / judge.freedom + ridge * torch.eye(6).double())
            for n in range(4):
                count = (labels == n).sum()
                step = judge.points[left] - means[n] * count / (count + style_judge.PRIOR)
                distances.append(step @ metric @ step)
            distances = torch.stack(distances)
            assert found[left] == (distances < distances[judge.label[left]]).sum()
        assert (found == 0).any() and (found > 0).any()  # so that it could have failed

    def test_exception(self, style_judge):
        known = artworks(style_judge)
        with pytest.raises(ValueError, match="of the 4"):
            style_judge.StyleJudge(known).ranks(known.statistics[:1], ["e"])


def test_statistics_are_kept_until_manifest_or_weights_change(style_judge, alexnet, tmp_path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    rows = []
    for i in range(3):
        Image.fromarray((images(40, 50, 3, seed=i) * 255).byte().numpy()).save(data / f"{i}.png")
        rows.append({"file": f"{i}.png", "kind": "style" if i else "content", "label": "ab"[i % 2]})
    manifest = data / "manifest.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    known = style_judge.Artworks.read(data, alexnet, cache)
    assert (known.files, known.labels) == (["1.png", "2.png"], ["b", "a"])
    desired = style_judge.channel_statistics(alexnet(style_judge.square(Image.open(data / "2.png"))))
    torch.testing.assert_close(known.statistics[1:], desired)

    (data / "1.png").write_bytes(b"no picture")
    again = style_judge.Artworks.read(data, alexnet, cache)
    assert torch.equal(again.statistics, known.statistics)
    with pytest.raises(OSError):
        style_judge.Artworks.read(data, style_judge.AlexFeatures(random_alexnet(), "other"), cache)
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(OSError):
        style_judge.Artworks.read(data, alexnet, cache)
    with pytest.raises(FileNotFoundError, match="manifest"):
        style_judge.Artworks.read(tmp_path, alexnet, cache)
