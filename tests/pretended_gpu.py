"""A CPU that pretends to have a GPU, to find tensors that were left on the wrong side of it.

Within `PretendedGPU()` code may move tensors to `cuda`. They stay where they are and are marked; results of marked tensors are
marked, and an operation on both kinds raises what torch would raise. All numbers are computed for real, by torch on the CPU.
What it does not see: kernels, precision and speed of a GPU; what torch itself calls, such as the backward of a
`torch.autograd.Function`; numpy's own reading of a tensor.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

GPU = torch.device("cuda", 0)
# Operations that take tensors of both sides, or ask nothing of where they lie.
CROSSING = {
    "copy_",
    "load_state_dict",
    "is_set_to",
    "__set__",
    "allclose",
    "equal",
    "backward",
    "_has_compatible_shallow_copy_type",
}


def is_gpu(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def on_gpu(tensor) -> bool:
    return getattr(tensor, "_pretends", False)


def place(found, gpu: bool):
    """Marks every tensor in `found`."""
    for tensor in tree_flatten(found)[0]:
        if isinstance(tensor, torch.Tensor) and gpu != on_gpu(tensor):
            if gpu:
                tensor._pretends = True
            else:  # gone again, since accelerate takes all attributes of a parameter for arguments
                del tensor._pretends
    return found


class PretendedGPU(TorchFunctionMode):
    def __enter__(self):
        # What torch does not ask a mode about.
        self.real = torch.load, torch.autograd.Function.__dict__["apply"], torch.Tensor._make_subclass
        load, apply, make_subclass = self.real

        def pretended_load(*args, map_location=None, **kwargs):
            return place(load(*args, map_location="cpu", **kwargs), is_gpu(map_location))

        def pretended_apply(cls, *args):
            found = apply.__get__(None, cls)(*args)
            return place(found, any(map(on_gpu, tree_flatten(args)[0])))

        def pretended_subclass(cls, data, *args, **kwargs):
            return place(make_subclass(cls, data, *args, **kwargs), on_gpu(data))

        torch.load, torch.autograd.Function.apply = pretended_load, classmethod(pretended_apply)
        torch.Tensor._make_subclass = staticmethod(pretended_subclass)
        return super().__enter__()

    def __exit__(self, *error):
        torch.load, torch.autograd.Function.apply, _ = self.real
        del torch.Tensor._make_subclass  # its own again
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if name == "__get__":
            asked, gpu = getattr(func.__self__, "__name__", ""), on_gpu(first)
            if gpu and asked in ("device", "is_cuda", "is_cpu"):
                return {"device": GPU, "is_cuda": True, "is_cpu": False}[asked]
            return place(func(*args, **kwargs), gpu)
        if name == "__set__":
            found = func(*args, **kwargs)
            if getattr(func.__self__, "__name__", "") == "data":
                place(first, on_gpu(args[1]))
            return found
        if name in ("to", "cpu", "cuda") and isinstance(first, torch.Tensor):
            return self._moved(name, func, args, kwargs)
        if name == "__deepcopy__":  # its second argument holds all that has been copied so far
            return place(func(*args, **kwargs), on_gpu(first))
        if name == "numpy" and on_gpu(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")} if is_gpu(asked) else kwargs
            gpu = is_gpu(asked)
        else:
            gpu = any(map(on_gpu, tensors))
            self._check(name, first, tensors)
        found = func(*args, **kwargs)
        if name.endswith("_") and not name.startswith("_"):
            return found
        return place(found, gpu) if not _same(found, tensors) else found

    def _moved(self, name, func, args, kwargs):
        first, *rest = args
        gpu = {"cpu": False, "cuda": True}.get(name, on_gpu(first))
        if name == "to":
            rest = list(rest)
            for i, x in enumerate(rest):
                if isinstance(x, torch.Tensor):
                    gpu, rest[i] = on_gpu(x), x.dtype
                elif isinstance(x, str | torch.device):
                    gpu, rest[i] = is_gpu(x), torch.device("cpu")
            if kwargs.get("device") is not None:
                gpu, kwargs = is_gpu(kwargs["device"]), {**kwargs, "device": torch.device("cpu")}
            found = func(first, *rest, **kwargs)
        else:
            found = first
        if found is first:
            if gpu == on_gpu(first):
                return found
            found = first.clone()
        return place(found, gpu)

    def _check(self, name, first, tensors):
        if name in CROSSING or (name == "__getitem__" and on_gpu(first)):
            return
        joins = name in ("stack", "cat")  # where a number of the CPU will not do
        sides = {on_gpu(tensor) for tensor in tensors if tensor.dim() or on_gpu(tensor) or joins}
        if name in ("__setitem__", "index_put_") and on_gpu(first):
            return
        if len(sides) > 1:
            shapes = [("cuda" if on_gpu(t) else "cpu", tuple(t.shape)) for t in tensors]
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found two in {name}: {shapes}"
            )


def _same(found, tensors) -> bool:
    return isinstance(found, torch.Tensor) and any(found is tensor for tensor in tensors)
