"""Every check passes what is right, names what is usual, and survives everything else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.core.errors import LabError
from scalelab.lab.checks import Exercise, exercises, judge

EXERCISES = exercises("transformers/training")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def fail(*args: Any, **kwargs: Any) -> Any:
    raise IndexError("list index out of range")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        3,
        "text",
        fail,
        lambda: 1,
        lambda *a, **k: None,
        lambda *a, **k: "text",
        lambda *a, **k: [],
        lambda *a, **k: (None, None, None),
        lambda *a, **k: ("a", "b"),
        lambda *a, **k: True,
        lambda *a, **k: 1j,
        lambda *a, **k: {"loss": 1},
        lambda *a, **k: torch.zeros(3, 4, dtype=torch.complex64),
        lambda *a, **k: np.array(["text"]),
        lambda *a, **k: 10**400,
    ],
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message
    assert len(verdict.message.splitlines()) <= 4
    assert verdict.mistakes


def test_an_error_is_told_with_its_type_text_and_line(exercise: Exercise) -> None:
    verdict = judge(exercise, fail, exercise.cases(0))
    assert verdict.outcome == "broken"
    assert "IndexError: list index out of range" in verdict.message
    assert 'raise IndexError("list index out of range")' in verdict.message


def test_an_answer_in_which_torch_raises_notimplementederror_is_written() -> None:
    adamw, loss = EXERCISES["adamw_step"], EXERCISES["next_token_loss"]

    def xor(param: Any, grad: Any, m: Any, v: Any, step: int, **settings: float) -> Any:
        return param, m, v + grad ^ 2  # torch's C++ raises: no frame of its own

    def swapped(logits: Any, tokens: Any, pad_id: int) -> Any:
        return torch.nn.functional.cross_entropy(tokens[:, 1:].flatten(), logits[:, :-1].flatten(0, 1))

    def in_python(logits: Any, tokens: Any, pad_id: int) -> Any:
        return torch.nn.Module()(logits)  # a raise statement, in torch's own code

    for exercise, answer in ((adamw, xor), (loss, swapped), (loss, in_python)):
        verdict = judge(exercise, answer, exercise.cases(0))
        assert verdict.outcome == "broken"
        assert not verdict.ran
        assert verdict.mistakes[0].startswith("raised ")
        assert "not written" not in verdict.message
    assert "NotImplementedError" in judge(adamw, xor, adamw.cases(0)).message


def test_messages_count_arguments_and_end_in_one_stop() -> None:
    rate, accumulation = EXERCISES["learning_rate"], EXERCISES["accumulate_gradients"]
    assert "with 1 positional argument and peak=" in judge(rate, lambda: 1, rate.cases(0)).message
    message = judge(accumulation, lambda *a, **k: 1.0, accumulation.cases(0)).message
    assert message.endswith("was backward() called?")


def test_an_optimiser_step_must_return_tensors() -> None:
    adamw = EXERCISES["adamw_step"]

    def arrays(*args: Any, **settings: float) -> Any:
        return tuple(part.numpy() for part in adamw.reference(*args, **settings))

    verdict = judge(adamw, arrays, adamw.cases(0))
    assert verdict.mistakes == ("returned the wrong kind of thing",)
    assert "for new_param (ndarray), where a torch tensor of param's shape [" in verdict.message


def loss_sum(model: Any, tokens: Any, targets: Any) -> Any:
    logits = model(tokens).flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")


def finish(model: Any, divisor: float, clip_norm: float) -> float:
    for param in model.parameters():
        param.grad /= divisor
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm))


def test_one_backward_after_the_loop_and_an_unused_loss_scale_are_refused() -> None:
    accumulation = EXERCISES["accumulate_gradients"]

    def n_targets(micro_batches: Any) -> int:
        return sum(int((targets != -100).sum()) for _, targets in micro_batches)

    def after_the_loop(model: Any, micro_batches: Any, *, clip_norm: float, loss_scale: float) -> Any:
        model.zero_grad()
        total = sum(loss_sum(model, *pair) for pair in micro_batches) / n_targets(micro_batches)
        (total * loss_scale).backward()
        return finish(model, loss_scale, clip_norm)

    def unscaled(model: Any, micro_batches: Any, *, clip_norm: float, loss_scale: float) -> Any:
        return accumulation.reference(model, micro_batches, clip_norm=clip_norm, loss_scale=1.0)

    def divided_at_the_end(model: Any, micro_batches: Any, *, clip_norm: float, loss_scale: float) -> Any:
        model.zero_grad()
        for tokens, targets in micro_batches:
            model(tokens)  # a forward that nobody goes back through is no mistake
            (loss_sum(model, tokens, targets) * loss_scale).backward()
        return finish(model, loss_scale * n_targets(micro_batches), clip_norm)

    cases = accumulation.cases(0)
    verdict = judge(accumulation, after_the_loop, cases)
    assert verdict.mistakes == ("backward only after the loop",)
    assert "graphs of 3 micro-batches at once" in verdict.message
    assert judge(accumulation, unscaled, cases).mistakes == ("loss never scaled",)
    assert judge(accumulation, divided_at_the_end, cases).right


def spoilt(exercise: Exercise, value: float) -> Any:
    """The reference with every number of its outputs multiplied by `value`."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        result = exercise.reference(*args, **kwargs)
        if exercise.name == "accumulate_gradients":
            for param in args[0].parameters():
                param.grad *= value
        return tuple(part * value for part in result) if isinstance(result, tuple) else result * value

    return answer


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "NaN"), (math.inf, "inf"), (1.37, "should be")])
def test_numbers_that_are_nan_infinite_or_off_by_a_factor_are_shown(
    exercise: Exercise, value: float, shown: str
) -> None:
    verdict = judge(exercise, spoilt(exercise, value), exercise.cases(0))
    assert verdict.outcome == "unknown mistake"
    assert "none of the usual mistakes" in verdict.message
    assert shown in verdict.message or "NaN" in verdict.message


def test_a_wrong_shape_is_told_with_both_shapes() -> None:
    adamw = EXERCISES["adamw_step"]

    def flat(*args: Any, **kwargs: Any) -> Any:
        return tuple(part.flatten() for part in adamw.reference(*args, **kwargs))

    message = judge(adamw, flat, adamw.cases(0)).message
    assert "new_param has shape [" in message
    assert "it should have [" in message


def test_a_check_leaves_the_labs_random_numbers_gradient_mode_and_threads_alone(
    exercise: Exercise, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(99)
        torch.rand(5)
        return exercise.reference(*args, **kwargs)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert judge(exercise, noisy, exercise.cases(0)).right
    assert torch.equal(torch.rand(3), expected)
    assert torch.is_grad_enabled()
    assert threads == [1, 3], "one thread meanwhile, and as many as before afterwards"


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_a_loss_that_cannot_train_is_refused() -> None:
    loss = EXERCISES["next_token_loss"]
    for cut in (lambda x: x.item(), lambda x: x.detach(), lambda x: float(x)):
        verdict = judge(loss, lambda *a, cut=cut: cut(loss.reference(*a)), loss.cases(0))
        assert verdict.mistakes == ("loss cut off from the graph",)
        assert "backward" in verdict.message


def test_an_optimiser_step_that_changes_its_inputs_is_refused() -> None:
    adamw = EXERCISES["adamw_step"]

    def in_place(param: Any, grad: Any, m: Any, v: Any, step: int, **settings: float) -> Any:
        result = adamw.reference(param, grad, m, v, step, **settings)
        m.copy_(result[1])
        return result

    verdict = judge(adamw, in_place, adamw.cases(0))
    assert verdict.mistakes == ("changes its inputs",)
    assert "changed m in place" in verdict.message


def test_accumulating_by_one_big_batch_is_refused() -> None:
    accumulation = EXERCISES["accumulate_gradients"]

    def all_at_once(model: Any, micro_batches: Any, **settings: float) -> Any:
        whole = tuple(torch.cat([pair[i] for pair in micro_batches]) for i in (0, 1))
        return accumulation.reference(model, [whole], **settings)

    verdict = judge(accumulation, all_at_once, accumulation.cases(0))
    assert verdict.mistakes == ("one big batch",)


def masked_by_the_input(logits: Any, tokens: Any, pad_id: int) -> Any:
    nats = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return nats[tokens[:, :-1] != pad_id].mean()


def root_decay(step: int, *, peak: float, warmup_steps: int, **_: Any) -> float:
    return peak * min((step + 1) / warmup_steps, (warmup_steps / (step + 1)) ** 0.5)


def one_micro_batch(model: Any, micro_batches: Any, **settings: Any) -> Any:
    return EXERCISES["accumulate_gradients"].reference(model, micro_batches[:1], **settings)


def squared_norm(model: Any, micro_batches: Any, **settings: Any) -> Any:
    return EXERCISES["accumulate_gradients"].reference(model, micro_batches, **settings) ** 2


UNLISTED: dict[str, list[Any]] = {
    "next_token_loss": [lambda logits, tokens, pad_id: logits.mean(), masked_by_the_input],
    "adamw_step": [
        lambda param, grad, m, v, step, **k: (param, m, v),
        lambda param, grad, m, v, step, *, lr, **k: (param - lr * grad, m, v),
        lambda param, grad, m, v, step, *, lr, **k: (param - lr * grad.sign(), grad, grad),
    ],
    "learning_rate": [
        lambda step, *, peak, **k: peak,
        lambda step, *, peak, total_steps, **k: peak * (1 - step / total_steps),
        root_decay,
    ],
    "accumulate_gradients": [one_micro_batch, squared_norm],
    "step_bill": [
        lambda n_layers, d, f, v, t, b: (6 * b * t * 12 * n_layers * d * d, 16 * 12 * n_layers * d * d),
        lambda *sizes: (0, 0),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "On " in verdict.message
        assert "should be" in verdict.message


def test_log_softmax_before_cross_entropy_is_right_because_it_changes_nothing() -> None:
    def answer(logits: Any, tokens: Any, pad_id: int) -> Any:
        log_p = logits.log_softmax(-1)[:, :-1].transpose(1, 2)
        return torch.nn.functional.cross_entropy(log_p, tokens[:, 1:], ignore_index=pad_id)

    loss = EXERCISES["next_token_loss"]
    assert judge(loss, answer, loss.cases(0)).right


def test_hidden_cases_that_cannot_differ_are_an_error_and_not_a_loop() -> None:
    exercise = dataclasses.replace(EXERCISES[next(iter(EXERCISES))], draw_cases=lambda rng: ())
    assert exercise.hidden_cases(0) == ()
    first = EXERCISES[next(iter(EXERCISES))].cases(0)
    exercise = dataclasses.replace(exercise, draw_cases=lambda rng: first)
    with pytest.raises(LabError, match="1,000 draws"):
        exercise.hidden_cases(0)
