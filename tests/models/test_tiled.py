"""Tiled attention is attention: against torch's own, at every shape of tile, and in linear memory."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scalelab.core.errors import ConfigError
from scalelab.lab.measure import peak_bytes
from scalelab.models.tiled import tiled_attention

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def draw(
    *shape: int, n_keys: int | None = None, width: int = 16, dtype: torch.dtype, scale: float = 1.0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(math.prod(shape))
    *batch, n_queries = shape
    sizes = [(*batch, n_queries), (*batch, n_keys or n_queries), (*batch, n_keys or n_queries)]
    return [scale * torch.randn(*size, width, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("q_tile", "k_tile"), [(1, 1), (1, 64), (64, 1), (7, 5), (5, 7), (16, 16), (37, 37), (100, 100)]
)
def test_equals_torchs_attention_for_tiles_that_do_and_do_not_divide(
    dtype: torch.dtype, is_causal: bool, q_tile: int, k_tile: int
) -> None:
    q, k, v = draw(2, 3, 37, dtype=dtype)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    got = tiled_attention(q, k, v, is_causal=is_causal, q_tile=q_tile, k_tile=k_tile)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("n_queries", "n_keys"), [(5, 40), (40, 5), (1, 33), (33, 1)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_torchs_attention_where_queries_and_keys_are_not_as_many(
    n_queries: int, n_keys: int, is_causal: bool
) -> None:
    q, k, v = draw(2, n_queries, n_keys=n_keys, dtype=torch.float64)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)  # query t sees keys 0 … t
    got = tiled_attention(q, k, v, is_causal=is_causal, q_tile=8, k_tile=8)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_values_may_have_another_width_and_inputs_no_leading_axes() -> None:
    q, k, _ = draw(9, dtype=torch.float64)
    v = torch.randn(9, 3, dtype=torch.float64)
    want = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    torch.testing.assert_close(tiled_attention(q, k, v, q_tile=4, k_tile=2), want, rtol=0, atol=1e-13)


def test_tiles_wholly_in_the_future_are_never_looked_at() -> None:
    q, k, v = draw(32, dtype=torch.float32)
    k[20:], v[20:] = math.nan, math.nan
    got = tiled_attention(q[:16], k, v, is_causal=True, q_tile=4, k_tile=4)
    assert torch.isfinite(got).all()


def test_scores_of_hundreds_do_not_overflow_whichever_tile_holds_the_largest() -> None:
    q, k, v = draw(24, dtype=torch.float32, scale=30.0)
    for order in (slice(None), torch.arange(23, -1, -1)):
        want = F.scaled_dot_product_attention(*(part.double()[None] for part in (q, k[order], v[order])))[0]
        got = tiled_attention(q, k[order], v[order], q_tile=8, k_tile=3)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_memory_grows_linearly_where_plain_attention_grows_as_the_square() -> None:
    held: dict[str, list[int]] = {"plain": [], "tiled": []}
    for time in (512, 1024, 2048):
        q, k, v = draw(time, dtype=torch.float32)
        held["plain"].append(peak_bytes(lambda q=q, k=k, v=v: ((q @ k.T) / 4).softmax(-1) @ v))
        held["tiled"].append(peak_bytes(lambda q=q, k=k, v=v: tiled_attention(q, k, v, q_tile=64, k_tile=64)))
    assert held["plain"][2] > 3.8 * held["plain"][1] > 3.8 * 3.8 * held["plain"][0] * 0.99
    growth = [after - before for before, after in zip(held["tiled"], held["tiled"][1:], strict=False)]
    result = 16 * 4  # bytes a place: the result is all that grows
    assert growth == [512 * result, 1024 * result]
    assert held["tiled"][2] < held["plain"][2] / 50


@pytest.mark.parametrize(
    ("shapes", "about"),
    [
        (((4, 8), (4, 9), (4, 8)), "same width"),
        (((4, 8), (5, 8), (4, 8)), "as many places"),
        (((2, 4, 8), (3, 4, 8), (3, 4, 8)), "leading axes"),
        (((4, 8), (2, 4, 8), (2, 4, 8)), "equal rank"),
        (((4, 8), (0, 8), (0, 8)), "there must be a key"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(
    shapes: tuple[tuple[int, ...], ...], about: str
) -> None:
    with pytest.raises(ConfigError, match=about):
        tiled_attention(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("tile", [0, -1, 2.0, True])
def test_a_tile_must_hold_something(tile: object) -> None:
    q = torch.zeros(4, 8)
    with pytest.raises(ConfigError, match="q_tile"):
        tiled_attention(q, q, q, q_tile=tile)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="k_tile"):
        tiled_attention(q, q, q, k_tile=tile)  # type: ignore[arg-type]


@pytest.mark.parametrize("k_tile", [1, 128])
def test_means_over_many_keys_in_bf16_do_not_stop_growing(k_tile: int) -> None:
    """In bf16 a sum of ones ends at 256: the mean of zeros and ones, half of each, would come out as 1."""
    q, k = torch.zeros(1, 4, dtype=torch.bfloat16), torch.zeros(1024, 4, dtype=torch.bfloat16)
    v = torch.arange(1024).ge(512).to(torch.bfloat16)[:, None]
    got = tiled_attention(q, k, v, k_tile=k_tile)
    assert got.dtype == torch.bfloat16
    assert got.item() == 0.5


def test_scores_beyond_fp16_are_no_numbers_of_fp16() -> None:
    q = torch.full((3, 4), 200, dtype=torch.float16)  # 160,000 before the division by √K
    assert torch.equal(tiled_attention(q, q, q), q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_as_near_as_torchs_attention(dtype: torch.dtype) -> None:
    q, k, v = (part.to(dtype) for part in draw(4, n_keys=2000, dtype=torch.float32))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    error = (tiled_attention(q, k, v, k_tile=16).double() - exact).abs().max()
    assert error <= torch.finfo(dtype).eps * exact.abs().max()
