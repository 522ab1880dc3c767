"""A second module over the same weights."""

import accelerate
import pytest
import torch
from torch import nn

from stylemamba.pipeline.module_view import module_view


@pytest.fixture
def vae(components):
    return components()["vae"]


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def pictures():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def storages(module):
    return [p.data_ptr() for p in module.parameters()]


def test_shares_every_weight_and_computes_the_same(vae):
    view = module_view(vae)
    assert type(view) is type(vae) and view is not vae
    assert storages(view) == storages(vae)
    with torch.no_grad():
        assert torch.equal(view(pictures()).sample, vae(pictures()).sample)


def test_is_frozen_and_in_eval_mode_while_the_module_stays_as_it_was(vae):
    vae.train().requires_grad_(True)
    view = module_view(vae)
    assert not view.training and not any(p.requires_grad for p in view.parameters())
    assert all(part.training for part in vae.modules()) and all(p.requires_grad for p in vae.parameters())


def test_gradients_flow_through_to_the_input_and_not_to_the_weights(vae):
    x = pictures().requires_grad_()
    module_view(vae)(x).sample.sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_is_a_copy_and_leaves_the_module_alone(vae, dtype):
    before = state(vae)
    view = module_view(vae, dtype=dtype)
    assert {p.dtype for p in view.parameters()} == {dtype}
    with torch.no_grad():
        for p in view.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_integer_buffers_keep_their_type():
    norm = nn.BatchNorm1d(3)
    view = module_view(norm, dtype=torch.float64)
    assert view.running_mean.dtype == torch.float64 and view.num_batches_tracked.dtype == torch.int64


def test_children_can_be_left_out(vae):
    view = module_view(vae, without=("encoder", "quant_conv"))
    assert view.encoder is None and view.quant_conv is None
    assert isinstance(vae.encoder, nn.Module) and len(list(view.parameters())) < len(list(vae.parameters()))
    with torch.no_grad():
        z = torch.ones(1, 4, 4, 4)
        assert torch.equal(view.decode(z).sample, vae.decode(z).sample)


def test_shared_weights_stay_shared():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    view = module_view(tied, dtype=torch.float64)
    assert view[0].weight is view[1].weight


def test_hooks_of_offloading_are_left_behind(vae):
    accelerate.cpu_offload_with_hook(vae, "cpu")
    assert hasattr(vae, "_hf_hook")
    view = module_view(vae)
    assert not hasattr(view, "_hf_hook") and hasattr(vae, "_hf_hook")
    assert storages(view) == storages(vae)
    with torch.no_grad():
        torch.testing.assert_close(view(pictures()).sample, vae(pictures()).sample)


def test_hooks_are_not_even_copied_on_the_way(vae):
    class Uncopyable(accelerate.hooks.ModelHook):
        def __deepcopy__(self, memo):
            raise AssertionError("a hook may hold all weights of a model")

    accelerate.hooks.add_hook_to_module(vae.decoder, Uncopyable())
    assert storages(module_view(vae)) == storages(vae)


def test_weights_offloaded_piece_by_piece_give_one_clear_sentence(vae):
    accelerate.cpu_offload(vae, "cpu")
    with pytest.raises(ValueError, match="enable_sequential_cpu_offload"):
        module_view(vae)


def test_weights_made_under_inference_mode_can_be_trained_through(components):
    with torch.inference_mode():
        vae = components()["vae"]
        with torch.inference_mode(False), torch.enable_grad():
            x = pictures().requires_grad_()
            module_view(vae)(x).sample.sum().backward()
            assert x.grad.abs().sum() > 0
