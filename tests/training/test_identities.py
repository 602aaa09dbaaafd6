"""What must not matter does not matter: micro-batches, packing, the short way through the output head."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.adapters import PeftModel, get_peft_model
from loralab.core.config import LoraConfig
from loralab.data.types import Example
from loralab.training.checkpoint import Progress
from loralab.training.config import RunConfig
from loralab.training.events import Event, Saved, Stepped
from loralab.training.loop import Course, evaluate, train
from loralab.training.optimizers import make_optimizer
from loralab.training.order import batch_at
from loralab.training.tasks.causal_lm import CausalLM
from loralab.training.trainee import AdapterTrainee

TASK = CausalLM(0, "positions", torch.device("cpu"), torch.float32)


def example(length: int, trained: int, seed: int) -> Example:
    """Random tokens of which the last `trained` have a loss weight."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 300, (length,), generator=generator).tolist()
    return Example(tuple(ids), (0.0,) * (length - trained) + (1.0,) * trained)


# One token against a hundred, so that a mean of means would be far off.
UNEVEN = [
    example(n, t, i)
    for i, (n, t) in enumerate([(120, 100), (9, 1), (4, 3), (60, 1), (33, 32), (2, 1), (90, 7)])
]


@pytest.fixture
def adapted(tiny) -> PeftModel:
    """A fixed adapter that does something, on the tiny base."""
    model = tiny.make_model()
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def run(
    model: PeftModel, examples: Sequence[Example], **settings: Any
) -> Iterator[tuple[Event, dict[str, Tensor]]]:
    """Train, and yield each event with the gradients' running mean that AdamW keeps."""
    config = RunConfig(**{"max_grad_norm": 1e9, "learning_rate": 1e-3, "warmup_steps": 0, **settings})
    optimizer = make_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    course = Course(
        AdapterTrainee(model), TASK, (examples, ()), config, optimizer, Progress(), lambda: "nowhere"
    )
    for event in train(course):
        yield event, {names[id(p)]: state["exp_avg"].clone() for p, state in optimizer.state.items()}


def gradient(model: PeftModel, examples: Sequence[Example]) -> dict[str, Tensor]:
    """The gradient of the mean loss over all trained tokens, by transformers' own loss, a row at a time."""
    model.zero_grad()
    trained = sum(example.trained for example in examples)
    for one in examples:
        labels = [token if weight else -100 for token, weight in zip(one.ids, one.weights, strict=True)]
        loss = model(torch.tensor([one.ids]), labels=torch.tensor([labels])).loss
        (loss * one.trained / trained).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance * float(value.abs().max()), msg=name
        )


def first_step(
    model: PeftModel, examples: Sequence[Example], **settings: Any
) -> tuple[Stepped, dict[str, Tensor]]:
    """The first step and its gradient: AdamW's mean is then a tenth of it."""
    events = run(model, examples, max_steps=1, **settings)
    event, means = next(events)
    assert isinstance(event, Stepped)
    return event, {name: 10 * mean for name, mean in means.items()}


@pytest.mark.parametrize("micro", [1, 2, 3, 6])
def test_the_gradient_is_that_of_the_whole_batch_whatever_the_micro_batch(adapted, micro):
    batch = UNEVEN[:6]
    expected = gradient(adapted, batch)
    event, found = first_step(adapted, batch, batch_size=6, micro_batch_size=micro)
    assert_close(found, expected)
    norm = torch.stack([value.norm() for value in expected.values()]).norm()
    assert event.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert event.tokens == sum(len(one.ids) for one in batch)


def test_the_check_above_sees_a_mean_of_means(adapted):
    batch = UNEVEN[:6]
    parts = [gradient(adapted, batch[start : start + 2]) for start in (0, 2, 4)]
    mean_of_means = {name: sum(part[name] for part in parts) / 3 for name in parts[0]}
    with pytest.raises(AssertionError):
        assert_close(mean_of_means, gradient(adapted, batch), tolerance=0.1)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_last_partial_batch_of_an_epoch_weighs_its_own_tokens(adapted, micro):
    """Seven examples in batches of four: the second step has three."""
    still = {"batch_size": 4, "micro_batch_size": micro, "max_steps": 2, "learning_rate": 1e-30}
    still |= {"save_steps": 5}
    (one, before), (two, after), (saved, _) = run(adapted, UNEVEN, **still)
    assert isinstance(saved, Saved)
    assert isinstance(one, Stepped)
    assert isinstance(two, Stepped)
    assert [one.epoch, two.epoch] == [0.5, 1.0]
    batch = [UNEVEN[index] for index in batch_at(1, 7, 4, seed=0)]
    assert len(batch) == 3
    assert two.tokens == sum(len(example.ids) for example in batch)
    # AdamW's mean after two steps is 0.9 of the mean before and 0.1 of the second gradient.
    assert_close(
        {name: 10 * (after[name] - 0.9 * before[name]) for name in after}, gradient(adapted, batch), 1e-3
    )


def test_the_norm_is_told_before_it_is_clipped(adapted):
    still = {"batch_size": 4, "learning_rate": 1e-30}
    free, _ = first_step(adapted, UNEVEN[:4], **still)
    clipped, less = first_step(adapted, UNEVEN[:4], **still, max_grad_norm=free.grad_norm / 4)
    assert clipped.grad_norm == pytest.approx(free.grad_norm, rel=1e-5)
    norm = torch.stack([value.norm() for value in less.values()]).norm()
    assert float(norm) == pytest.approx(free.grad_norm / 4, rel=1e-3)


def test_the_loss_is_transformers_own(adapted):
    adapted.eval()
    for one in UNEVEN:
        labels = [token if weight else -100 for token, weight in zip(one.ids, one.weights, strict=True)]
        with torch.no_grad():
            mean = model_loss(adapted, one.ids, labels)
            assert float(TASK.loss(adapted, [one])) == pytest.approx(mean * one.trained, rel=1e-5)


def model_loss(model: nn.Module, ids: Sequence[int], labels: Sequence[int]) -> float:
    return float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)


class WholeHead(nn.Module):
    """The same model without the argument that leaves columns out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, position_ids, use_cache):
        return self.model(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)


def test_leaving_columns_out_of_the_head_changes_nothing(adapted):
    found = []
    for model in (adapted, WholeHead(adapted)):
        adapted.zero_grad()
        loss = TASK.loss(model, UNEVEN)
        loss.backward()
        found.append(
            (loss.detach(), {n: p.grad.clone() for n, p in adapted.named_parameters() if p.requires_grad})
        )
    (short, gradients), (whole, expected) = found
    torch.testing.assert_close(short, whole, rtol=1e-6, atol=0)
    assert_close(gradients, expected)


def test_only_columns_with_a_trained_token_reach_the_head(adapted):
    head = adapted.get_base_model().lm_head
    seen = []
    head.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    TASK.loss(adapted, [UNEVEN[3]])
    assert seen == [(1, 1, 16)], "one trained token: one column of sixty"


def test_weights_between_zero_and_one_count_as_shares(adapted):
    one = UNEVEN[4]
    half = Example(one.ids, tuple(weight / 2 for weight in one.weights))
    assert float(TASK.loss(adapted, [half]).detach()) == pytest.approx(
        float(TASK.loss(adapted, [one]).detach()) / 2
    )
    assert evaluate(adapted, TASK, [half], 1)[0] == pytest.approx(evaluate(adapted, TASK, [one], 1)[0])


@pytest.mark.parametrize("micro", [1, 3, 7])
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_the_mean_over_all_trained_tokens_and_leaves_the_model_alone(adapted, micro, training):
    adapted.train(training)
    state = torch.get_rng_state()
    loss, tokens = evaluate(adapted, TASK, UNEVEN, micro)
    assert adapted.training is training
    assert torch.equal(torch.get_rng_state(), state)
    adapted.eval()
    sums = []
    for one in UNEVEN:
        labels = [token if weight else -100 for token, weight in zip(one.ids, one.weights, strict=True)]
        with torch.no_grad():
            sums.append(model_loss(adapted, one.ids, labels) * one.trained)
    assert tokens == sum(one.trained for one in UNEVEN)
    assert loss == pytest.approx(sum(sums) / tokens, rel=1e-5)
