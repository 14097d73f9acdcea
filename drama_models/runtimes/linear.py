"""Linear layers for inference on a CPU: weights laid out once as oneDNN's kernels want them.

A plain product lays out the weight anew in every call, which costs more than half of the time at the size of a query.
The operators are private to torch, so they are tried first and checked against the plain product; without them, or on
another device, a layer is the plain product.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

EXPECTED_TOKENS = 128  # what the layout is chosen for; queries and full batches run well on it too


class PrepackedLinear(nn.Module):
    """x W' + b, without gradients.

    Args:
        weight: (out, in).
        bias: (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        weight = weight.detach().contiguous()
        self.bias = None if bias is None else bias.detach()
        self.prepacked = weight.device.type == "cpu" and can_prepack(weight.dtype)
        self.weight = _prepack(weight) if self.prepacked else weight

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) to (..., out), dtype of the weight."""
        return self._prepacked_product(states) if self.prepacked else F.linear(states, self.weight, self.bias)

    # inductor cannot read a laid out weight, and has nothing to gain on a matrix product
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _prepacked_product(self, states: Tensor) -> Tensor:
        return _product(states, self.weight, self.bias)


def prepack_linears(model: nn.Module) -> None:
    """Replace every linear layer of a model in place; afterwards it is for inference only."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, PrepackedLinear(module.weight, module.bias))


@lru_cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether torch's private operators are there, work for this number format, and agree with the plain product."""
    generator = torch.Generator().manual_seed(0)
    weight, states = (torch.randn(shape, generator=generator).to(dtype) for shape in ((48, 96), (2, 7, 96)))
    bias = torch.randn(48, generator=generator).to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    try:
        packed = _prepack(weight)
        pairs = [(_product(states, packed, each), F.linear(states, weight, each)) for each in (None, bias)]
        single = _product(states[0, :1], packed, None), F.linear(states[0, :1], weight)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return all(
        found.shape == wanted.shape and torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)
        for found, wanted in (*pairs, single)
    )


def _prepack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, EXPECTED_TOKENS)


def _product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
