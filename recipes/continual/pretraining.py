"""The encoder before the first step: trained with a softmax head of its own, which is then thrown away.

    labels   the P classes of the pre-training examples; with ``rotations`` 4 P: class c turned by r quarter turns is
    label 4 c + r

The weights that it leaves are the first anchor of an L2 penalty. There is no Fisher information of it: EWC begins after
step one.
Source: Smith et al. (CVPRW 2023, arXiv 2203.17269), section 4, where ImageNet takes this place; rotations as labels:
Lee et al.,
"Self-supervised label augmentation" (ICML 2020, arXiv 1910.05872).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import Diverged, NotApplicable
from recipes.continual.head import GrowingHead
from recipes.continual.stream import PRETRAINING, Stream, StreamConfig
from recipes.fitting import deterministic, smallest_batch
from recipes.inputs import Inputs
from recipes.rng import generator, local_rng
from recipes.schedule import SupervisedConfig, batches_of

QUARTERS = 4


def pretrain(
    model: nn.Module, head: GrowingHead, inputs: Inputs, stream: Stream, *, config: StreamConfig, seed: int
) -> bool:
    """Train the encoder of ``model`` in place on the pre-training examples; the head is as before.

    Returns:
        Whether there were any.

    Raises:
        NotApplicable: rotations of what is no square image.
        Diverged: a parameter is not finite.
    """
    rows = torch.from_numpy(stream.rows(PRETRAINING, inputs.data.example_id)).to(inputs.device)
    if not len(rows):
        return False
    place = {c: i for i, c in enumerate(stream.pretrain)}
    labels = torch.tensor([place[int(c)] for c in inputs.data.y[rows.cpu().numpy()]], device=inputs.device)
    turns = QUARTERS if config.rotations else 1
    if turns > 1 and (len(inputs.data.input_shape) != 3 or len(set(inputs.data.input_shape[1:])) != 1):
        raise NotApplicable(f"rotations need square images; these examples have shape {inputs.data.input_shape}")
    num = turns * len(rows)
    with local_rng(derive_seed("pre-training head", seed)):
        own = nn.Linear(head.layer.in_features, turns * len(place)).to(inputs.device, head.layer.weight.dtype)
    model.set_submodule(head.name, own)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.pretrain_lr, weight_decay=config.weight_decay)
    batches = batches_of(num, SupervisedConfig(batch=config.batch), smallest=smallest_batch(model))
    model.train()
    for epoch in range(config.pretrain_epochs):
        order = torch.randperm(num, generator=generator(derive_seed("pre-training order", seed, epoch))).to(
            inputs.device
        )
        with local_rng(derive_seed("pre-training", seed, epoch), device=inputs.device), deterministic(inputs.device):
            for batch in batches:
                at, turn = order[batch] // turns, order[batch] % turns
                loss = F.cross_entropy(model(turned(inputs.gather(rows[at]), turn)), turns * labels[at] + turn)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.set_submodule(head.name, head.layer)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise Diverged(
            f"the pre-training diverged: a parameter is not finite. Lower pretrain_lr (= {config.pretrain_lr:g})"
        )
    return True


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Images (B, C, H, H), each by its own number of quarter turns (B,) int64; anything else untouched where all are 0.

    >>> turned(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([1])).tolist()
    [[[[2.0, 4.0], [1.0, 3.0]]]]
    """
    if not bool(turn.any()):
        return x
    found = x.clone()
    for quarter in range(1, QUARTERS):
        chosen = turn == quarter
        found[chosen] = torch.rot90(x[chosen], quarter, dims=(-2, -1))
    return found
