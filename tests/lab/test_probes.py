"""Roles of names by the parser, and a linear probe that finds what there is and no more."""

from __future__ import annotations

import ast
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalelab.data import (
    Corpus,
    Document,
    encode_corpus,
    train_bpe,
)
from scalelab.lab.transformers import probes
from scalelab.lab.transformers.architectures import (
    KINDS,
    Model,
    kin,
    make,
    specials,
)
from scalelab.models import Decoder

VOCAB, SEQ_LEN = 40, 32
SIZE: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_size": VOCAB, "seq_len": SEQ_LEN}
SPECIAL = specials(VOCAB, SEQ_LEN)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Model:
    return make(kin(request.param, **SIZE), seed=0)


def windows(n: int = 6, length: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SPECIAL.n_ordinary, size=(n, length))


PROGRAM = """
def area(width, height=2):
    total = scale(width, by=height)
    self.total = total.bit_length()
    print("é", self.name)
    return total
"""


def test_names_have_the_roles_that_the_parser_gives_them() -> None:
    text = PROGRAM.encode()
    found = [(text[n.begin : n.end].decode(), probes.ROLES[n.role]) for n in probes.names_of(PROGRAM)]
    assert found == [
        ("width", "parameter"), ("height", "parameter"), ("total", "assigned"), ("scale", "called"),
        ("width", "read"), ("by", "keyword"), ("height", "read"), ("self", "read"),
        ("total", "stored attribute"), ("total", "read"), ("bit_length", "method"), ("print", "called"),
        ("self", "read"), ("name", "attribute"), ("total", "read"),
    ]  # fmt: skip
    assert probes.names_of("def broken(:") == []


def test_a_windows_place_is_the_last_token_of_a_name_of_that_role() -> None:
    body = "\n".join(PROGRAM.replace("area", f"area_{n}").strip() for n in range(30)) + "\n"
    documents = tuple(Document(f"{n}.py", body.replace("scale", f"scale_{n}")) for n in range(4))
    text = Corpus("made", documents, documents)
    tokenizer = train_bpe(text, 300, cache=None)
    data = encode_corpus(text, tokenizer, cache=None)
    found = probes.draw_probes(text, data, n_per_role=5, window=20, seed=0)
    assert len(found.windows) == 2 * 5 * len(probes.ROLES)
    assert found.places.min() >= 5
    assert found.places.max() < 15
    after = {"called": "(", "keyword": "=", "method": "("}
    for row, place, role in zip(found.windows, found.places, found.roles, strict=True):
        following = after.get(probes.ROLES[role])
        if following:
            assert tokenizer.decode(row[place + 1 : place + 2].tolist()).startswith(following)


def test_the_probe_equals_scikit_learns_logistic_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(0, 4, size=300)
    x[:, 0] += y
    decay = 1e-2
    ours = probes.fit_softmax(torch.tensor(x), torch.tensor(y), 4, decay=decay)
    # There: sum of losses + |w|²/(2C); here: mean + decay |w|².
    theirs = linear.LogisticRegression(C=1 / (2 * decay * 300), max_iter=5_000, tol=1e-8).fit(x, y)
    assert np.allclose(ours[:-1].numpy().T, theirs.coef_, atol=2e-3)


def test_the_probe_is_at_the_minimum_of_its_convex_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 5, generator=rng), torch.randint(0, 3, (200,), generator=rng)
    weights = probes.fit_softmax(x, y, 3, decay=1e-2).double().requires_grad_()
    loss = F.cross_entropy(probes.with_one(x.double()) @ weights, y) + 1e-2 * weights[:-1].square().sum()
    (slope,) = torch.autograd.grad(loss, weights)
    assert float(slope.abs().max()) < 1e-4


def test_states_do_not_see_further_than_their_architecture(model: Model) -> None:
    rows, places = windows(4), np.full(4, 9)
    before = probes.states(model, rows, places, SPECIAL)
    rows[:, 12] = (rows[:, 12] + 1) % SPECIAL.n_ordinary
    moved = not torch.allclose(before, probes.states(model, rows, places, SPECIAL))
    assert moved == (not isinstance(model, Decoder))
    assert before.shape == (4, 16)


def test_reading_other_peoples_programs_warns_of_nothing_in_them() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert probes.names_of('x = "\\d"\nif x is 3: pass\n')
    assert not heard


def test_programs_in_the_tests_are_programs() -> None:
    ast.parse(PROGRAM)
