"""What a lab hands back when an answer is wrong is itself held against torch and the published counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from scalelab.lab.checks import exercises

EXERCISES = exercises("transformers/training")


def test_next_token_loss_equals_a_loop_over_positions() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    tokens[1, 3:] = 6
    losses = [
        -logits[row, t].double().log_softmax(-1)[tokens[row, t + 1]]
        for row in range(3)
        for t in range(4)
        if tokens[row, t + 1] != 6
    ]
    got = EXERCISES["next_token_loss"].reference(logits, tokens, 6)
    torch.testing.assert_close(got.double(), torch.stack(losses).mean(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_step_equals_torch_over_five_steps(weight_decay: float) -> None:
    torch.manual_seed(1)
    start = torch.randn(4, 3, dtype=torch.float64)
    param = nn.Parameter(start.clone())
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay}
    optimiser = torch.optim.AdamW([param], **settings)
    ours, m, v = start, torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 6):
        param.grad = torch.randn(4, 3, dtype=torch.float64)
        ours, m, v = EXERCISES["adamw_step"].reference(
            ours, param.grad, m, v, step, lr=0.03, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=weight_decay
        )
        optimiser.step()
        torch.testing.assert_close(ours, param.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(m, optimiser.state[param]["exp_avg"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(v, optimiser.state[param]["exp_avg_sq"], rtol=1e-12, atol=1e-12)


def test_learning_rate_equals_torchs_linear_and_cosine_schedules_end_to_end() -> None:
    warmup, total, peak, final = 5, 23, 0.01, 0.1
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    warm = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / warmup, 1.0, total_iters=warmup - 1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total - warmup, eta_min=peak * final)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [warm, cosine], [warmup - 1])
    for step in range(total):
        got = EXERCISES["learning_rate"].reference(
            step, peak=peak, warmup_steps=warmup, total_steps=total, final_fraction=final
        )
        assert got == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()


def test_learning_rate_is_the_trainers_own_cosine() -> None:
    schedule = pytest.importorskip("scalelab.train.schedule")
    ours = EXERCISES["learning_rate"].reference
    trainers = schedule.Cosine(peak=3e-3, n_steps=40, warmup_steps=7, final_share=0.1)
    for step in range(40):
        want = ours(step, peak=3e-3, warmup_steps=7, total_steps=40, final_fraction=0.1)
        assert trainers.rate(step) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("clip_norm", [1e-3, 1e9])
def test_accumulated_gradient_equals_one_backward_over_the_whole_batch(clip_norm: float) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)).double()
    batches = []
    for n_targets in (20, 9, 1):
        targets = torch.full((20,), -100)
        targets[:n_targets] = torch.randint(9, (n_targets,))
        batches.append((torch.randint(9, (4, 5)), targets.view(4, 5)))
    norm = EXERCISES["accumulate_gradients"].reference(model, batches, clip_norm=clip_norm, loss_scale=512.0)
    got = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    tokens, targets = (torch.cat([pair[i] for pair in batches]) for i in (0, 1))
    functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
    want = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm))
    assert norm == pytest.approx(want, rel=1e-12)
    for ours, param in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(ours, param.grad, rtol=1e-10, atol=1e-14)


def test_step_bill_counts_gpt2s_published_parameters() -> None:
    _, state_bytes = EXERCISES["step_bill"].reference(12, 768, 3072, 50257, 1024, 1)
    assert state_bytes == 16 * 124_439_808


@pytest.mark.parametrize("sizes", [(1, 8, 24, 11, 5, 1), (3, 32, 96, 50, 16, 2)])
def test_step_bill_equals_torchs_flop_counter_and_gpt2s_parameters(sizes: tuple[int, ...]) -> None:
    transformers = pytest.importorskip("transformers")
    n_layers, d_model, d_ff, vocab_size, seq_len, batch_size = sizes
    config = transformers.GPT2Config(
        n_layer=n_layers, n_embd=d_model, n_inner=d_ff, n_head=2, vocab_size=vocab_size, n_positions=seq_len,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
        tokens = torch.zeros((batch_size, seq_len), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    flops, state_bytes = EXERCISES["step_bill"].reference(*sizes)
    assert flops == counter.get_total_flops()
    assert state_bytes == 16 * sum(param.numel() for param in model.parameters())


def test_step_bill_equals_the_packages_own_count() -> None:
    cost = pytest.importorskip("scalelab.cost")
    from scalelab.core.config import DecoderConfig

    n_layers, d_model, d_ff, vocab_size, seq_len, batch_size = 4, 128, 512, 512, 128, 8
    config = DecoderConfig(
        n_layers=n_layers, d_model=d_model, n_heads=4, d_ff=d_ff, vocab_size=vocab_size, seq_len=seq_len
    )
    flops, state_bytes = EXERCISES["step_bill"].reference(
        n_layers, d_model, d_ff, vocab_size, seq_len, batch_size
    )
    counted = cost.flops(config, batch_size=batch_size, seq_len=seq_len, training=True)
    assert flops == counted.total
    memory = cost.memory(config, batch_size=batch_size, seq_len=seq_len, precision="fp32", optimizer="adamw")
    assert state_bytes == memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes


def test_fresh_logits_lose_about_the_logarithm_of_the_vocabulary() -> None:
    tokens = torch.randint(512, (4, 64))
    loss = EXERCISES["next_token_loss"].reference(0.02 * torch.randn(4, 64, 512), tokens, 511)
    assert float(loss) == pytest.approx(math.log(512), abs=0.01)
