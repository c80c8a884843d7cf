"""The input of a first linear layer with a bias stands in its own gradient, whatever comes after it, dropout included.

    B = 1:   g_W[j, :] = g_b[j] x   for every unit j       x = g_W[j] / g_b[j]      for any j with g_b[j] != 0
    all j at once, least squares:  x = g_W^T g_b / (g_b . g_b)

No optimisation, no masks, no label, no box: exact up to rounding. With B > 1 it gives a mean of the inputs weighted by
how they move the layer, which is no reconstruction; convolutions and embeddings in front leave it undefined.

Source: Phong et al. (IEEE TIFS 2018); Geiping et al. (NeurIPS 2020), proposition 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.maskable import MaskableDropout
from attacks.gradient_inversion.objective import Update, check_update
from contracts.errors import NotApplicable


def analytic_linear_inversion(net: Instrumented, update: Update) -> Tensor:
    """The inputs of R clients of one example each, (R, 1, *shape); NaN where the layer's bias has no gradient.

    Works on the gradient as well as on the change of the weights after one local step (the factor cancels).

    Raises:
        NotApplicable: the model's first layer is not linear with a bias on the flattened input, or clients of several
            examples or local steps.
    """
    check_update(update, net)
    if net.batch != 1 or update.local.steps > 1:
        raise NotApplicable(
            f"the first layer's gradient is a multiple of the input for one example and one step only; "
            f"batch = {net.batch}, local steps = {update.local.steps}"
        )
    name = first_linear(net)
    prefix = f"{name}." if name else ""
    weight, bias = (update.tensors[prefix + part].double() for part in ("weight", "bias"))  # (R, H, D), (R, H)
    # Normalised first: gradients of a converged model are tiny, their squares smaller still.
    top = bias.abs().amax(dim=1, keepdim=True)
    unit = bias / top
    x = torch.einsum("rhd,rh->rd", weight / top[:, :, None], unit) / unit.square().sum(dim=1, keepdim=True)
    return x.reshape(len(update), 1, *net.input_shape).to(net.dtype)


def first_linear(net: Instrumented) -> str:
    """Name of the first layer with parameters, if it is linear with a bias and sees the flattened input as it is.

    Raises:
        NotApplicable: it is not; says what it is.
    """
    seen: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, m, args[0].detach())))
        for name, module in net.model.named_modules()
        if list(module.parameters(recurse=False))
    ]
    shape = (net.batch, *net.input_shape)
    size = torch.Size(shape).numel()
    x = torch.linspace(-1, 1, size, dtype=net.dtype, device=net.device).reshape(shape)
    try:
        with torch.no_grad(), MaskableDropout("off"):
            net.model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise NotApplicable("no layer with parameters of its own was called")
    name, module, inputs = seen[0]
    trained = {f"{name}.{part}" if name else part for part in ("weight", "bias")} <= set(net.params)
    if not isinstance(module, nn.Linear) or module.bias is None or not trained:
        raise NotApplicable(
            f"the first layer, {name or 'the model'} ({type(module).__name__}), is not linear with a bias"
        )
    if inputs.shape != (net.batch, size // net.batch) or not torch.equal(inputs, x.flatten(1)):
        raise NotApplicable(f"the first layer, {name}, does not see the flattened input as it is")
    return name
