"""The same objective in PyTorch with ``transformers``: plainly, as the reference does it, and improved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from benchmarks.batches import Dense
from rcjax.hf.convert import to_hf
from rcjax.model import LlamaConfig


def model(config: LlamaConfig, params, attention: str = "sdpa", device: str = "cpu") -> transformers.LlamaForCausalLM:
    """transformers' Llama with our parameters, float32."""
    fields = {key: value for key, value in config.to_hf().items() if key not in ("architectures", "model_type")}
    with torch.device(device):
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, attn_implementation=attention))
    tensors = {name: torch.tensor(np.array(tensor), device=device) for name, tensor in to_hf(config, params)}
    missing, unexpected = made.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return made.train()


class Step:
    """An optimizer step: gradients of microbatches added up, clipped, AdamW.

    Args:
      mixed: products in bfloat16, by autocast; weights stay float32.
    """

    def __init__(
        self, config: LlamaConfig, params, loss, learning_rate: float = 1e-4, device: str = "cpu", mixed: bool = False
    ):
        self.model = model(config, params, device=device)
        self.loss, self.device, self.mixed = loss, device, mixed
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)

    def __call__(self, batches: Sequence[dict[str, torch.Tensor]]) -> float:
        total = 0.0
        for batch in batches:
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
            with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
                loss = self.loss(self.model, batch)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total)


def tensors(batch: Dense) -> dict[str, torch.Tensor]:
    """As torch tensors; tokens int64."""
    made = {field.name: torch.from_numpy(np.array(getattr(batch, field.name))) for field in dataclasses.fields(Dense)}
    return made | {"tokens": made["tokens"].long()}


def plain_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Both views at full length in one doubled batch, logits of every position, cross-entropy and ``kl_div``."""
    tokens, real = batch["tokens"], batch["real"]
    mask = torch.cat([real, batch["seen"] & real]).long()
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(2 * len(tokens), -1)
    logits = model(torch.cat([tokens, tokens]), attention_mask=mask, position_ids=positions, use_cache=False).logits
    weights = torch.cat([batch["teacher_ce"], batch["student_ce"]])
    targets = torch.cat([tokens, tokens])
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
    ce = (nll * weights[:, 1:].flatten()).sum()
    teacher, student = logits.chunk(2)
    at = batch["kd"] > 0
    kl = F.kl_div(
        F.log_softmax(student[at], -1), F.log_softmax(teacher[at].detach(), -1), reduction="none", log_target=True
    )
    return ce + (kl.sum(-1) * batch["kd"][at]).sum()


def improved_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The student's hidden tokens are cut out, positions kept, and only labelled positions are projected."""
    tokens, real, seen = batch["tokens"], batch["real"], batch["seen"] & batch["real"]
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    # Visible tokens to the left, in order.
    order = torch.argsort((~seen).int(), dim=1, stable=True)[:, : int(seen.sum(1).max())]
    pick = {name: torch.gather(batch[name], 1, order) for name in ("tokens", "student_ce", "kd")}
    kept = torch.gather(seen, 1, order)
    states = model.model(tokens, attention_mask=real.long(), position_ids=positions, use_cache=False).last_hidden_state
    short = model.model(
        pick["tokens"], attention_mask=kept.long(), position_ids=torch.gather(positions, 1, order), use_cache=False
    ).last_hidden_state
    head = model.lm_head
    ce = 0.0
    for hidden, ids, weights in (
        (states, tokens, batch["teacher_ce"]),
        (short, pick["tokens"], pick["student_ce"] * kept),
    ):
        at = weights[:, 1:] > 0
        nll = F.cross_entropy(head(hidden[:, :-1][at]), ids[:, 1:][at], reduction="none")
        ce = ce + (nll * weights[:, 1:][at]).sum()
    at, at_short = batch["kd"] > 0, (pick["kd"] > 0) & kept
    with torch.no_grad():
        teacher = F.log_softmax(head(states[at]), -1)
    kl = F.kl_div(F.log_softmax(head(short[at_short]), -1), teacher, reduction="none", log_target=True)
    return ce + (kl.sum(-1) * batch["kd"][at]).sum()
