"""A linear probe: what of a name's role in a program can be read off a frozen model's state at that name?

Roles come from Python's own parser: whether a name is called, read, assigned … Most of them are decided by
what stands *after* the name, "(" or "=", so a model that has seen only what is before must guess.
Source: Alain & Bengio 2016, arXiv:1610.01644 (linear classifiers as probes).
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import DataError
from scalelab.data import Corpus, TokenData
from scalelab.data.special import SpecialTokens
from scalelab.lab.transformers.architectures import Model, batches, evaluating
from scalelab.models import Decoder, Encoder

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

ROLES = ("called", "read", "assigned", "method", "attribute", "stored attribute", "parameter", "keyword")
Ids64 = npt.NDArray[np.int64]


class Name(NamedTuple):
    """A name in a source text: where its bytes begin and end, and its role (a place in ROLES)."""

    begin: int
    end: int
    role: int


@dataclass(frozen=True, eq=False)
class Probes:
    """Names in windows of text, as many of each role.

    Attributes:
        windows: [N, W] ids. places: [N] where the name's last token is. roles: [N] places in ROLES.
        is_test: [N] True where the file is one the probe is not fitted on.
    """

    windows: Ids64 = field(repr=False)
    places: Ids64 = field(repr=False)
    roles: Ids64 = field(repr=False)
    is_test: npt.NDArray[np.bool_] = field(repr=False)


def names_of(source: str) -> list[Name]:
    """The names of a program with their roles, in the order of the text; [] if it is no program.

    Names after `def` and `class` and in imports are left out: the word before gives them away.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's backslashes, not of anything of ours
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    lines = source.encode().split(b"\n")
    starts = np.concatenate([[0], np.cumsum([len(line) + 1 for line in lines])])
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = []
    for text, line, begin, role in _named(tree, called):
        spelled = text.encode()
        end = begin + len(spelled)
        # Inside f-strings older parsers count columns from elsewhere: what is not there is left out.
        if 1 <= line <= len(lines) and begin >= 0 and lines[line - 1][begin:end] == spelled:
            at = int(starts[line - 1]) + begin
            found.append(Name(at, at + len(spelled), ROLES.index(role)))
    return sorted(found)


def _named(tree: ast.AST, called: set[int]) -> Iterator[tuple[str, int, int, str]]:
    """Each name with its line, its first column in bytes, and its role."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            role = "called" if id(node) in called else "read"
            yield node.id, node.lineno, node.col_offset, "assigned" if _is_stored(node.ctx) else role
        elif isinstance(node, ast.Attribute):
            role = "method" if id(node) in called else "attribute"
            begin = (node.end_col_offset or 0) - len(node.attr.encode())
            role = "stored attribute" if _is_stored(node.ctx) else role
            yield node.attr, node.end_lineno or 0, begin, role
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno, node.col_offset, "parameter"
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.arg, node.lineno, node.col_offset, "keyword"


def _is_stored(context: ast.expr_context) -> bool:
    return isinstance(context, ast.Store)


def draw_probes(corpus: Corpus, data: TokenData, *, n_per_role: int, window: int, seed: int) -> Probes:
    """Names of held-out files, as many of each role, each somewhere in the middle half of its window.

    Every other file is for fitting the probe, the rest for testing it.

    Args:
        data: the ids of this corpus. n_per_role: names of each role on each side. window: W, tokens.

    Raises:
        DataError: the held-out files do not hold so many names of a role.
    """
    check_positive_int("n_per_role", n_per_role)
    check_positive_int("window", window)
    rng = np.random.default_rng(seed)
    pools: dict[tuple[bool, int], list[tuple[Ids64, int]]] = {}
    for number, (source, ids) in enumerate(_documents(corpus, data)):
        for place, role in _places(source, ids, data):
            offset = int(rng.integers(window // 4, window - window // 4))
            begin = place - offset
            if begin >= 0 and begin + window <= len(ids):
                pool = pools.setdefault((number % 2 == 1, role), [])
                pool.append((ids[begin : begin + window], offset))
    rows = []
    for is_test in (False, True):
        for role, name in enumerate(ROLES):
            pool = pools.get((is_test, role), [])
            if len(pool) < n_per_role:
                raise DataError(
                    f"the held-out files have {len(pool)} names that are {name!r} for one side of the probe, "
                    f"not {n_per_role}: lower n_per_role, or take another corpus"
                )
            chosen = rng.choice(len(pool), n_per_role, replace=False)
            rows += [(*pool[int(i)], role, is_test) for i in chosen]
    windows, places, roles, tests = zip(*rows, strict=True)
    return Probes(np.array(windows, dtype=np.int64), np.array(places), np.array(roles), np.array(tests))


def _documents(corpus: Corpus, data: TokenData) -> Iterator[tuple[str, Ids64]]:
    """Held-out texts with their ids."""
    ids = data.held_out.astype(np.int64)
    parts = np.split(ids, np.flatnonzero(ids == data.end_of_text))
    if len(parts) != len(corpus.held_out):
        raise DataError(f"data holds {len(parts)} held-out texts, corpus {len(corpus.held_out)}")
    for document, part in zip(corpus.held_out, parts, strict=True):
        yield document.text, part[part != data.end_of_text]


def _places(source: str, ids: Ids64, data: TokenData) -> Iterator[tuple[int, int]]:
    """Place and role of each name whose last byte is the last of a token."""
    ends = np.cumsum(data.bytes_per_token[ids])
    for name in names_of(source):
        place = int(np.searchsorted(ends, name.end))
        if place < len(ids) and ends[place] == name.end:
            yield place, name.role


def states(
    model: Model,
    windows: Ids64,
    places: Ids64,
    special: SpecialTokens,
    *,
    later: int = 0,
    batch_size: int = 64,
) -> Float[Tensor, "N D"]:
    """The last stream of a frozen model at one place of each window, nothing hidden.

    Of an encoder–decoder it is the reading side's.

    Args:
        later: look so many tokens further right.
    """
    found = []
    with evaluating(model):
        for chosen, place in batches(model, windows, places, batch_size):
            rows = torch.arange(len(chosen), device=chosen.device)
            found.append(_stream(model, chosen, special)[rows, place + later].float().cpu())
    return torch.cat(found)


def _stream(model: Model, windows: Int[Tensor, "B W"], special: SpecialTokens) -> Float[Tensor, "B W D"]:
    ends = windows.new_ones(len(windows), 1)
    if isinstance(model, Decoder):
        return model.hidden(windows)
    if isinstance(model, Encoder):
        return model.hidden(torch.cat((ends * special.cls, windows, ends * special.sep), 1))[:, 1:-1]
    return model.read(torch.cat((windows, ends * special.sep), 1)).states[:, :-1]


def words_alone(model: Model, probes: Probes) -> Float[Tensor, "N D"]:
    """The names' last tokens as the token table has them: what is known without any context."""
    tokens = torch.from_numpy(probes.windows[np.arange(len(probes.places)), probes.places])
    with torch.no_grad():
        return model.token_embedding.weight.detach().cpu()[tokens].float()


def probe_accuracy(features: Float[Tensor, "N D"], probes: Probes, *, decay: float = 1e-3) -> float:
    """Share of test names whose role a linear classifier of these features tells; 1/8 is chance.

    The classifier is fitted on the other files: softmax regression on standardised features, with `decay`
    times the squared weights, by L-BFGS to its one minimum.
    """
    fit = torch.from_numpy(~probes.is_test)
    roles = torch.from_numpy(probes.roles)
    mean, spread = features[fit].mean(0), features[fit].std(0) + 1e-6
    x = (features - mean) / spread
    weights = fit_softmax(x[fit], roles[fit], len(ROLES), decay=decay)
    guesses = with_one(x[~fit]) @ weights
    return float((guesses.argmax(-1) == roles[~fit]).float().mean())


def fit_softmax(
    x: Float[Tensor, "N D"], y: Int[Tensor, " N"], n_classes: int, *, decay: float
) -> Float[Tensor, "D+1 C"]:
    """Weights (the last row: biases, not decayed) that minimise mean cross-entropy + decay · |weights|²."""
    inputs = with_one(x)
    weights = torch.zeros(inputs.shape[1], n_classes, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(inputs @ weights, y) + decay * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def with_one(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D+1"]:
    """A column of ones at the end."""
    return F.pad(x, (0, 1), value=1.0)
