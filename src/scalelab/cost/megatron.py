"""Parameters, FLOPs and training time of GPT models by the closed formulas that Megatron's papers print.

P = 12 l h² (1 + 13/12h + (V+s)/12lh); an iteration with every layer made again for backward takes
F = 96 B s l h² (1 + s/6h + V/16lh), four times forward but for the head. Of that the model needs
72 B L s h² (1 + s/6h + V/12hL): what is divided by the peak decides between model and hardware utilisation.

`params` and `flops` count any config exactly; on a GPT-2 shape the model's FLOPs are the same number, and
parameters differ by the final norm, which P leaves out (its 13 l h are biases and the norms in the layers).
Source: Narayanan et al. 2021, arXiv:2104.04473, section 5.1, equations 2 to 4 and appendix; Korthikanti et
al. 2022, arXiv:2205.05198, appendix A, equations 7 to 9.
Taught in book/parallelism/tensor-parallel.md and pipeline.md.
"""

from __future__ import annotations

from scalelab.core.checks import check_choice, check_positive, check_positive_int

RECOMPUTE = ("none", "selective", "full")


def megatron_params(*, n_layers: int, d_model: int, vocab_size: int, seq_len: int) -> int:
    """P = 12 l h² + 13 l h + (V + s) h: a GPT with biases, tied head and learned positions, no final norm.

    Args:
        n_layers, d_model, vocab_size, seq_len: l, h, V, s.

    Raises:
        ConfigError: a size that is no whole number of at least 1.
    """
    _check(n_layers=n_layers, d_model=d_model, vocab_size=vocab_size, seq_len=seq_len)
    return 12 * n_layers * d_model**2 + 13 * n_layers * d_model + (vocab_size + seq_len) * d_model


def model_flops(*, batch_size: int, seq_len: int, n_layers: int, d_model: int, vocab_size: int) -> int:
    """What one iteration's products take, forward and backward: 72 B L s h² (1 + s/6h + V/12hL).

    Args:
        batch_size: B, sequences of the whole batch. seq_len, n_layers, d_model, vocab_size: s, L, h, V.

    Raises:
        ConfigError: a size that is no whole number of at least 1.
    """
    sizes = {"batch_size": batch_size, "seq_len": seq_len, "n_layers": n_layers}
    return hardware_flops(**sizes, d_model=d_model, vocab_size=vocab_size, recompute="none")


def hardware_flops(
    *, batch_size: int, seq_len: int, n_layers: int, d_model: int, vocab_size: int, recompute: str
) -> int:
    """What the devices execute in one iteration, recomputation included.

    Args:
        batch_size: B, sequences of the whole batch. seq_len, n_layers, d_model, vocab_size: s, L, h, V.
        recompute: "full" makes every layer's forward pass once more (the paper of 2021), "selective" that of
            the attention's two products (the paper of 2022), "none" nothing.

    Raises:
        ConfigError: a size that is no whole number of at least 1, or an unknown recompute.

    Differs: for "selective" the paper of 2022 prints more, see `printed_hardware_flops`.
    """
    _check(batch_size=batch_size, seq_len=seq_len, n_layers=n_layers, d_model=d_model, vocab_size=vocab_size)
    check_choice("recompute", recompute, RECOMPUTE)
    tokens = batch_size * seq_len
    layers = 24 * tokens * n_layers * d_model**2  # forward, matrices
    scores = 4 * tokens * n_layers * seq_len * d_model  # forward, attention's two products
    head = 2 * tokens * d_model * vocab_size  # forward; no scheme makes it again
    again_layers = layers if recompute == "full" else 0
    again_scores = scores if recompute in ("full", "selective") else 0
    return 3 * (layers + scores + head) + again_layers + again_scores


def printed_hardware_flops(
    *, batch_size: int, seq_len: int, n_layers: int, d_model: int, vocab_size: int
) -> int:
    """Equation 8 of Korthikanti et al. 2022, selective recomputation: 72 B L s h² (1 + s/3h + V/12hL).

    It doubles the whole term of the attention's products, backward as well as forward: three times what it
    takes to make them once more. The paper's hardware utilisation, and its 2.7 % (GPT-3) and 1.6 % (530B) of
    overhead, follow from it to every digit; one forward pass more is 0.9 % and 0.5 %.

    Args:
        batch_size: B, sequences of the whole batch. seq_len, n_layers, d_model, vocab_size: s, L, h, V.

    Raises:
        ConfigError: a size that is no whole number of at least 1.
    """
    sizes = {"batch_size": batch_size, "seq_len": seq_len, "n_layers": n_layers, "d_model": d_model}
    once = hardware_flops(**sizes, vocab_size=vocab_size, recompute="none")
    again = hardware_flops(**sizes, vocab_size=vocab_size, recompute="selective") - once
    return once + 3 * again


def training_seconds(n_params: float, n_tokens: float, *, n_gpus: int, flops_per_s: float) -> float:
    """8 T P / (n X): a training run with full recomputation, attention and head left out.

    Args:
        n_params, n_tokens: P and T.
        n_gpus: n.
        flops_per_s: X, what each reaches, recomputation counted as work.

    Raises:
        ConfigError: a number that is not above 0.
    """
    check_positive("n_params", n_params)
    check_positive("n_tokens", n_tokens)
    check_positive_int("n_gpus", n_gpus)
    check_positive("flops_per_s", flops_per_s)
    return 8 * n_tokens * n_params / (n_gpus * flops_per_s)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        check_positive_int(name, value)
