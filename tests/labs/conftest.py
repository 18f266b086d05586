"""The tools' folder on the path, and a small whole lab that breaks no rule, to be broken in tests."""

from __future__ import annotations

import copy
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

NAME = "transformers/training"
SOLUTIONS = {
    "next_token_loss": (
        "logits, tokens, pad_id",
        """
        log_p = logits[:, :-1].log_softmax(-1)
        nats = -log_p.gather(-1, tokens[:, 1:, None])[..., 0]
        return nats[tokens[:, 1:] != pad_id].mean()
        """,
    ),
    "adamw_step": (
        "param, grad, m, v, step, *, lr, beta1, beta2, eps, weight_decay",
        """
        m = torch.lerp(grad, m, beta1)
        v = torch.lerp(grad * grad, v, beta2)
        update = m / (1 - beta1**step) / ((v / (1 - beta2**step)) ** 0.5 + eps)
        return param - lr * (update + weight_decay * param), m, v
        """,
    ),
    "learning_rate": (
        "step, *, peak, warmup_steps, total_steps, final_fraction",
        """
        done = step + 1 - warmup_steps
        if done <= 0:
            return peak * (step + 1) / warmup_steps
        half_wave = math.cos(math.pi / 2 * done / (total_steps - warmup_steps)) ** 2
        return peak * (final_fraction + (1 - final_fraction) * half_wave)
        """,
    ),
    "accumulate_gradients": (
        "model, micro_batches, *, clip_norm, loss_scale",
        """
        model.zero_grad(set_to_none=True)
        total = sum((targets >= 0).sum() for _, targets in micro_batches)
        for tokens, targets in micro_batches:
            logits = model(tokens).transpose(1, 2)
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            (losses.sum() * loss_scale / total).backward()
        for param in model.parameters():
            param.grad.div_(loss_scale)
        return torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm).item()
        """,
    ),
    "step_bill": (
        "n_layers, d_model, d_ff, vocab_size, seq_len, batch_size",
        """
        block = 4 * d_model**2 + 2 * d_model * d_ff
        per_token = n_layers * (block + 2 * seq_len * d_model) + vocab_size * d_model
        small = n_layers * (9 * d_model + d_ff) + 2 * d_model
        n_params = n_layers * block + small + (vocab_size + seq_len) * d_model
        return 6 * batch_size * seq_len * per_token, 4 * 4 * n_params
        """,
    ),
}


def exercise_source(name: str) -> str:
    """An exercise cell with its solution between the markers."""
    arguments, body = SOLUTIONS[name]
    marked = f"### BEGIN SOLUTION\n{textwrap.dedent(body).strip()}\n### END SOLUTION"
    return f"def {name}({arguments}):\n" + textwrap.indent(marked, "    ")


def make_sample() -> NotebookNode:
    """A lab with all of a lab's parts, not yet executed."""

    import address

    def markdown(source: str, *tags: str) -> NotebookNode:
        return nbformat.v4.new_markdown_cell(textwrap.dedent(source).strip(), metadata={"tags": list(tags)})

    def code(source: str, *tags: str) -> NotebookNode:
        return nbformat.v4.new_code_cell(textwrap.dedent(source).strip(), metadata={"tags": list(tags)})

    cells = [
        markdown("# A sample\n\n<!-- badges -->\n<!-- /badges -->\n\nHow large is a loss at first?"),
        code("SEED = 0", "parameters"),
        code(
            f"""
            import sys
            if "google.colab" in sys.modules:
                {address.repository().install_line(address.version())}
            import math
            import torch
            import scalelab.lab
            lab = scalelab.lab.start("{NAME}", seed=SEED)
            """,
            "setup",
        ),
        code(
            """
            ### BEGIN SOLUTION
            guess = 2.5  # nats
            ### END SOLUTION
            lab.predict("first loss", guess, "nats")
            """,
            "predict",
        ),
    ]
    for name in SOLUTIONS:
        cells += [
            code(exercise_source(name), "exercise"),
            code(f"{name} = lab.check.{name}({name})", "check"),
            code(
                f'### BEGIN HIDDEN TESTS\nlab.hidden_test("{name}", seed=7)\n### END HIDDEN TESTS', "hidden"
            ),
        ]
    cells += [
        code('assert 2 < math.log(16) < 3\nlab.measured("first loss", math.log(16))', "measure"),
        code(
            """
            lines = {"model": ([1, 2], [3, 2])}
            figure, axes = lab.plot.curve(lines, title="Loss falls", xlabel="steps", ylabel="nats")
            lab.show(figure, alt="Loss falls from 3 to 2 nats & stays there.")
            """,
        ),
        markdown("Because all tokens look alike at first.", "solution"),
        markdown("On to [the chapter](../../book/transformers/training.md)."),
        code("lab.report()"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def sample() -> NotebookNode:
    """A lab that breaks no rule once it is executed."""
    return make_sample()


@pytest.fixture(scope="session")
def executed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample lab, executed by the tool in a folder of its own. Not to be written to."""
    import labs
    import notebooks

    path = tmp_path_factory.mktemp("labs") / "labs" / f"{NAME}.ipynb"
    notebooks.write(path, make_sample())
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("SCALELAB_TIER", "SCALELAB_STRICT", "SCALELAB_CACHE"):
            patch.delenv(variable, raising=False)
        assert labs.main(["--labs", str(path.parents[1]), NAME]) == 0
    return path


@pytest.fixture
def broken(executed_path: Path, tmp_path: Path) -> Callable[[Callable[[NotebookNode], object]], list[str]]:
    """Break a copy of the executed sample, and give back what the lint says."""
    import lint_labs
    import notebooks

    def problems(change: Callable[[NotebookNode], object]) -> list[str]:
        notebook = copy.deepcopy(notebooks.read(executed_path))
        change(notebook)
        path = tmp_path / f"{NAME}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(nbformat.writes(notebook), encoding="utf-8")
        return lint_labs.problems(path)

    return problems
