"""Each loss: it runs, refuses what it cannot read, has the right shape, equals its definition written out, and has
the gradient of its value (kornia's contract).  The numbers of the specification are in `test_vectors.py`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn.functional import cosine_similarity, normalize

from stylemamba.pipeline import losses

DIM = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@pytest.fixture
def features():
    return {
        "FY": random(3, DIM, seed=1),
        "FX": random(3, DIM, seed=2),
        "FT": random(DIM, seed=3),
        "Fsrc": random(DIM, seed=4),
    }


def finite_gradient(function, *tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    function(*tensors).backward()
    return all(bool(tensor.grad.isfinite().all()) for tensor in tensors)


class TestDirectionalLoss:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("delta", [0.0, 0.05])
    @pytest.mark.parametrize("normalize", [True, False])
    def test_smoke(self, features, dtype, delta, normalize):
        cast = {name: feature.to(dtype) for name, feature in features.items()}
        loss = losses.directional_loss(**cast, delta=delta, normalize=normalize)
        assert loss.isfinite() and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    def test_exception(self, features):
        with pytest.raises(ValueError, match="one width"):
            losses.directional_loss(**{**features, "FT": random(DIM + 1)})
        with pytest.raises(ValueError, match="one width"):
            losses.directional_loss(*[torch.tensor(1.0)] * 4)

    @pytest.mark.parametrize("image", [(DIM,), (1, DIM), (4, DIM)])
    @pytest.mark.parametrize("text", [(DIM,), (1, DIM)])
    def test_cardinality(self, image, text):
        named = {"FY": random(*image), "FX": random(*image, seed=1), "FT": random(*text, seed=2)}
        assert losses.directional_loss(**named, Fsrc=random(*text, seed=3)).shape == ()

    def test_feature(self, features):
        FY, FX, FT, Fsrc = (normalize(feature, dim=-1) for feature in features.values())
        desired = (1 - cosine_similarity(FY - FX, (FT - Fsrc).expand(3, -1))).mean()
        torch.testing.assert_close(losses.directional_loss(**features), desired)

    def test_one_direction_per_sample_equals_single_runs(self, features):
        FT = random(3, DIM, seed=9)
        single = [
            losses.directional_loss(features["FY"][i], features["FX"][i], FT[i], features["Fsrc"])
            for i in range(3)
        ]
        together = losses.directional_loss(**{**features, "FT": FT})
        torch.testing.assert_close(together, torch.stack(single).mean())

    @pytest.mark.parametrize("delta", [0.0, 0.05])
    def test_gradcheck(self, features, delta):
        def loss(FY):
            return losses.directional_loss(**{**features, "FY": FY}, delta=delta)

        assert gradcheck(loss, features["FY"].requires_grad_())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("delta", [0.0, 0.05])
    def test_is_one_with_a_finite_gradient_at_the_content(self, features, dtype, delta):
        FX, FT, Fsrc = (features[name].to(dtype) for name in ("FX", "FT", "Fsrc"))
        assert losses.directional_loss(FX, FX, FT, Fsrc, delta=delta) == 1
        assert finite_gradient(lambda FY: losses.directional_loss(FY, FX, FT, Fsrc, delta=delta), FX)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
    def test_bounded_and_blind_to_the_size_of_the_shift(self, seed, scale):
        shift, direction = random(2, DIM, seed=seed)
        zero = torch.zeros(DIM, dtype=torch.float64)
        loss = losses.directional_loss(shift, zero, direction, zero, normalize=False)
        scaled = losses.directional_loss(scale * shift, zero, direction, zero, normalize=False)
        assert -1e-12 <= loss <= 2 + 1e-12
        torch.testing.assert_close(loss, scaled)

    def test_the_guard_caps_the_gradient(self):
        start, zero, T = torch.zeros(3, requires_grad=True), torch.zeros(3), torch.tensor([2.0, 0.0, 0.0])
        losses.directional_loss(start, zero, T, zero, normalize=False, delta=0.1).backward()
        assert math.isclose(start.grad.norm(), 10, rel_tol=1e-5)


class TestMaskedDirectionalLoss:
    def test_exception(self, features):
        FZ, FX, FT, Fsrc = features.values()
        with pytest.raises(ValueError, match="FX_masked"):
            losses.masked_directional_loss(FZ, None, FT, Fsrc, variant="same_mask")
        with pytest.raises(ValueError, match="pass FX"):
            losses.masked_directional_loss(FZ, FT=FT, Fsrc=Fsrc, FX_masked=FX)
        with pytest.raises(ValueError, match="FT"):
            losses.masked_directional_loss(FZ, FX)
        with pytest.raises(ValueError, match="'same_mask'"):
            losses.masked_directional_loss(FZ, FX, FT, Fsrc, variant="directionl")

    def test_feature(self, features):
        FZ, FX, FT, Fsrc = features.values()
        plain = losses.directional_loss(FZ, FX, FT, Fsrc, delta=0.05)
        assert losses.masked_directional_loss(FZ, FX, FT, Fsrc, delta=0.05) == plain
        by_name = losses.masked_directional_loss(
            FZ, FT=FT, Fsrc=Fsrc, FX_masked=FX, variant="same_mask", delta=0.05
        )
        by_place = losses.masked_directional_loss(FZ, FX, FT, Fsrc, variant="same_mask", delta=0.05)
        assert by_name == by_place == plain
        ratio = (FZ - FX).norm(dim=-1).mean() / (FT - Fsrc).norm()
        torch.testing.assert_close(losses.masked_directional_loss(FZ, FX, FT, Fsrc, variant="ratio"), ratio)

    @pytest.mark.parametrize("variant", ["directional", "same_mask", "ratio"])
    def test_gradient(self, features, variant):
        FZ, *others = features.values()

        def loss(FZ):
            return losses.masked_directional_loss(FZ, *others, variant=variant)

        assert gradcheck(loss, FZ.requires_grad_())
        assert finite_gradient(loss, others[0].float())


class TestSecondOrderLoss:
    @pytest.fixture
    def step(self):
        names = ("FYnew", "FYprev", "FX", "FT", "Fsrc")
        return {
            name: random(*((2, DIM) if name[1] in "YX" else (DIM,)), seed=i) for i, name in enumerate(names)
        }

    def test_exception(self, step):
        with pytest.raises(ValueError, match="'aligned'"):
            losses.second_order_loss(**step, variant="cosine")

    def test_feature(self, step):
        new, old, FX, FT, Fsrc = step.values()
        weight = 0.5 * (1 - torch.exp(-3 * (old - FX).norm(dim=-1)))
        S, T = new - old, FT - Fsrc
        desired = {
            "aligned": weight * (1 - cosine_similarity(S, T.expand_as(S))),
            "ratio": weight * (S.norm(dim=-1) / T.norm()) ** 2,
            "elementwise": weight * ((S / T) ** 2).sum(-1),
        }
        torch.testing.assert_close(losses.alpha_shift(old, FX, 0.5, 3), weight)
        for variant, value in desired.items():
            torch.testing.assert_close(
                losses.second_order_loss(**step, alpha=0.5, beta=3, variant=variant), value.mean()
            )

    @pytest.mark.parametrize("variant", ["aligned", "ratio", "elementwise"])
    def test_gradient(self, step, variant):
        new, *others = step.values()

        def loss(new):
            return losses.second_order_loss(new, *others, variant=variant)

        assert gradcheck(loss, new.requires_grad_())
        assert finite_gradient(loss, others[0].float())

    @pytest.mark.parametrize("variant", ["aligned", "ratio", "elementwise"])
    def test_the_snapshot_and_the_weight_are_constants(self, step, variant):
        leaves = {name: feature.clone().requires_grad_() for name, feature in step.items()}
        losses.second_order_loss(**leaves, variant=variant).backward()
        assert leaves["FYnew"].grad.abs().sum() > 0
        assert leaves["FYprev"].grad is None and leaves["FX"].grad is None
        assert not losses.alpha_shift(leaves["FYprev"], leaves["FX"]).requires_grad

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10_000), alpha=st.floats(0, 5), beta=st.floats(0, 5))
    def test_alpha_shift_stays_between_0_and_alpha(self, seed, alpha, beta):
        weight = losses.alpha_shift(random(DIM, seed=seed), random(DIM, seed=seed + 1), alpha, beta)
        assert 0 <= weight <= alpha


class TestStyleAndTotalLoss:
    @pytest.mark.parametrize(("L_dir", "opens"), [(0.79, True), (0.8, False), (0.81, False)])
    @pytest.mark.parametrize("make", [float, lambda v: torch.tensor(v), lambda v: torch.tensor(v).double()])
    def test_the_gate_is_strict(self, L_dir, opens, make):
        loss = losses.style_loss(
            make(L_dir), make(0.5), make(0.25), theta=make(0.8) if make is float else 0.8
        )
        assert math.isclose(loss, L_dir + 0.5 + 0.25 * opens, rel_tol=1e-6)

    def test_the_gate_may_look_at_the_unguarded_loss(self):
        assert losses.style_loss(0.9, 0.0, 1.0, theta=0.8, gate_on=0.7) == 1.9

    def test_a_closed_gate_stops_the_gradient_of_the_second_order_term_alone(self):
        for theta, expected in ((0.5, 0.0), (0.9, 1.0)):
            terms = [torch.tensor(0.7, requires_grad=True) for _ in range(3)]
            losses.style_loss(*terms, theta=theta).backward()
            assert [term.grad.item() for term in terms] == [1, 1, expected]

    def test_total(self):
        assert losses.total_loss(2.0, 0.25, 0.5, w_style=10, w_content=4) == 23


class TestPatchMask:
    def test_exception(self):
        for wrong in ({"height": 0, "width": 4}, {"height": 4, "width": 4, "ratio": 1.5}):
            with pytest.raises(ValueError, match="wanted"):
                losses.patch_mask(**wrong)
        with pytest.raises(ValueError, match="each of 0..3 once"):
            losses.patch_mask(4, 4, 2, permutation=[0, 1, 2, 2])

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        height=st.integers(1, 40), width=st.integers(1, 40), patch=st.integers(1, 17), ratio=st.floats(0, 1)
    )
    def test_exactly_the_wanted_number_of_patches_is_gone(self, height, width, patch, ratio):
        keep = losses.patch_mask(height, width, patch, ratio, generator=seeded())
        rows, columns = losses.patch_grid(height, width, patch)
        assert keep.shape == (height, width) and set(keep.unique().tolist()) <= {0.0, 1.0}
        corners = keep[::patch, ::patch]
        assert corners.shape == (rows, columns)
        assert (corners == 0).sum() == math.floor(ratio * rows * columns)
        spread = corners.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]
        assert torch.equal(keep, spread)

    def test_vit_grid_seed_and_freshness(self):
        generator = seeded(7)
        first, second = (losses.patch_mask(224, 224, generator=generator) for _ in range(2))
        assert (first == 0).sum() == 98 * 256
        assert not torch.equal(first, second)
        assert torch.equal(first, losses.patch_mask(224, 224, generator=seeded(7)))

    def test_no_gradient_through_holes(self, features):
        """L5: the gradient of the masked loss with respect to the picture is 0 inside the holes, and only there."""
        picture = random(1, 3, 8, 8).requires_grad_()
        keep = losses.patch_mask(8, 8, 4, generator=seeded())
        encoder = random(3 * 64, DIM, seed=5)
        FZ = losses.apply_patch_mask(picture, keep).flatten(1) @ encoder
        losses.masked_directional_loss(FZ, *list(features.values())[1:]).backward()
        assert torch.equal((picture.grad != 0).all(1)[0], keep.bool())

    def test_fill(self):
        keep = losses.patch_mask(4, 4, 2, permutation=[0, 3, 1, 2])
        filled = losses.apply_patch_mask(torch.full((2, 3, 4, 4), math.nan), keep, fill=0.25)
        assert (filled[..., :2, :2] == 0.25).all() and filled[..., :2, 2:].isnan().all()


class TestPatchLoss:
    def test_feature(self):
        cosines = random(20).tanh()
        desired = sum(0 if 1 - c < 0.7 else 1 - c for c in cosines.tolist()) / 20
        assert math.isclose(losses.patch_directional_loss(cosines), desired)

    def test_rejected_patches_have_no_gradient(self):
        cosines = torch.tensor([0.1, 0.9], requires_grad=True)
        losses.patch_directional_loss(cosines).backward()
        assert cosines.grad.tolist() == [-0.5, 0]


class TestFeatureMapLosses:
    def test_exception(self):
        a = random(1, 2, 3, 3)
        with pytest.raises(ValueError, match="equal image sizes"):
            losses.content_loss(a, random(1, 2, 4, 4))
        with pytest.raises(ValueError, match="equal image sizes"):
            losses.content_loss([a], [a, a])
        with pytest.raises(ValueError, match="'normalised'"):
            losses.content_loss(a, a, variant="mse")
        with pytest.raises(ValueError, match="larger image"):
            losses.mean_std(random(1, 2, 1, 1))
        with pytest.raises(ValueError, match="same layers"):
            losses.mean_std_loss([a], [a, a])

    @pytest.mark.parametrize("variant", ["normalised", "clipstyler", "sse"])
    def test_layers_are_summed(self, variant):
        a, b = (
            [random(2, 3, 4, 5), random(2, 2, 3, 3)],
            [random(2, 3, 4, 5, seed=1), random(2, 2, 3, 3, seed=1)],
        )
        single = [losses.content_loss(one, other, variant=variant) for one, other in zip(a, b, strict=True)]
        torch.testing.assert_close(losses.content_loss(a, b, variant=variant), sum(single))

    def test_two_unrelated_maps_are_two_apart(self):
        a, b = random(1, 64, 32, 32), random(1, 64, 32, 32, seed=1)
        assert abs(losses.content_loss(a, b) - 2) < 0.05

    def test_normalised_is_blind_to_gain_and_offset(self):
        a, b = random(1, 3, 6, 6), random(1, 3, 6, 6, seed=1)
        torch.testing.assert_close(
            losses.content_loss(a, b), losses.content_loss(3 * a + 1, b), rtol=1e-3, atol=0
        )

    def test_mean_std_loss_allows_other_sizes_and_sees_no_arrangement(self):
        a = random(2, 3, 4, 5)
        shuffled = a.flatten(2)[..., torch.randperm(20, generator=seeded())].view(2, 3, 5, 4)
        torch.testing.assert_close(losses.mean_std_loss(a, shuffled), torch.zeros((), dtype=a.dtype))

    def test_gram(self):
        f = random(2, 3, 4, 5)
        desired = torch.stack([one.flatten(1) @ one.flatten(1).T / 60 for one in f])
        torch.testing.assert_close(losses.gram_matrix(f), desired)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(losses.gram_matrix(f.float()), desired.float())

    def test_identity_losses(self):
        Icc, Ic, Iss, Is = (random(1, 3, 4, 4, seed=seed) for seed in range(4))

        def layers(image):
            return [2 * image, image[:, :1]]

        def mse(a, b):
            return ((a - b) ** 2).mean()

        Lid1, Lid2 = losses.identity_losses(Icc, Ic, Iss, Is, layers)
        torch.testing.assert_close(Lid1, mse(Icc, Ic) + mse(Iss, Is))
        by_hand = 4 * mse(Icc, Ic) + mse(Icc[:, 0], Ic[:, 0]) + 4 * mse(Iss, Is) + mse(Iss[:, 0], Is[:, 0])
        torch.testing.assert_close(Lid2, by_hand)

    @pytest.mark.parametrize(
        "loss",
        [
            losses.mean_std_loss,
            losses.content_loss,
            lambda a, b: losses.content_loss(a, b, variant="clipstyler"),
            lambda a, b: losses.content_loss(a, b, variant="sse"),
            lambda a, b: (losses.gram_matrix(a) - losses.gram_matrix(b)).square().sum(),
        ],
    )
    def test_gradient(self, loss):
        a, b = random(1, 2, 3, 3), random(1, 2, 3, 3, seed=1)
        assert gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))
        assert finite_gradient(lambda x: loss(x, a.detach()), a.detach())
        flat = torch.zeros(1, 2, 3, 3)
        assert finite_gradient(lambda x: loss(x, flat), flat)


class TestPixelLosses:
    def test_total_variation(self):
        image = random(1, 2, 4, 5)
        pairs = [((0, 1), (0, 0)), ((1, 0), (0, 0)), ((1, 0), (0, 1)), ((1, 1), (0, 0))]
        desired = 0.0
        for (di, dj), (ei, ej) in pairs:
            total = sum(
                (image[0, c, i + di, j + dj] - image[0, c, i + ei, j + ej]).item() ** 2
                for c in range(2)
                for i in range(4 - max(di, ei))
                for j in range(5 - max(dj, ej))
            )
            desired += math.sqrt(total)
        assert math.isclose(losses.total_variation(image), desired)
        assert gradcheck(losses.total_variation, image.requires_grad_())

    def test_total_variation_of_a_flat_image(self):
        flat = torch.full((1, 3, 4, 4), 0.3)
        assert losses.total_variation(flat) == 0
        assert finite_gradient(losses.total_variation, flat)

    def test_range_penalty(self):
        image = torch.tensor([[-3.0, -1.0], [0.5, 1.5]], dtype=torch.float64)
        assert losses.range_penalty(image) == (4 + 0.25) / 4
        assert losses.range_penalty(image.clamp(-1, 1)) == 0
        assert gradcheck(losses.range_penalty, (2 * random(2, 3)).requires_grad_())
        assert finite_gradient(losses.range_penalty, image)


def test_importing_the_losses_needs_only_torch():
    import subprocess
    import sys

    code = (
        "import sys, stylemamba.pipeline.losses\n"
        "heavy = {'diffusers', 'transformers', 'torchmetrics', 'torchvision', 'lpips'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_maps_without_a_batch_or_of_other_channels_are_refused():
    for a, b in (
        (torch.rand(3, 5, 7), torch.rand(3, 5, 7)),
        (torch.rand(2, 3, 5, 5), torch.rand(2, 1, 5, 5)),
        (torch.rand(2, 3, 5, 5), torch.rand(1, 3, 5, 5)),
    ):
        with pytest.raises(ValueError, match="wanted"):
            losses.mean_std_loss(a, b)
