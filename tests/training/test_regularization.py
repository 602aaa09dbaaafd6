"""Label smoothing and noise: against torch and a count, and only in training."""

import pytest
import torch
import torch.nn.functional as F

from loralab.core.loss import head_loss
from loralab.data.types import Example
from loralab.training.starting import start
from loralab.training.tasks.noise import noisy_embeddings


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_head_loss_and_its_gradients_are_torch_s(smoothing):
    torch.manual_seed(0)
    hidden_NI, weight_VI, bias_V = (torch.randn(*s, dtype=torch.float64) for s in ((7, 5), (11, 5), (11,)))
    targets_N, weights_N = torch.randint(0, 11, (7,)), torch.rand(7, dtype=torch.float64)
    ours = [t.float().clone().requires_grad_() for t in (hidden_NI, weight_VI, bias_V)]
    plain = [t.clone().requires_grad_() for t in (hidden_NI, weight_VI, bias_V)]
    loss = head_loss(*ours, targets_N, weights_N.float(), smoothing)
    each = F.cross_entropy(F.linear(*plain), targets_N, reduction="none", label_smoothing=smoothing)
    expected = (each * weights_N).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for found, wanted in zip(ours, plain, strict=True):
        assert torch.allclose(found.grad.double(), wanted.grad, atol=1e-5)


def test_smoothing_is_for_training_only(settings):
    run = start(settings(label_smoothing=0.3))
    other = start(settings(name="plain"))
    examples = run.data.examples[:3]
    for mode, same in ((True, False), (False, True)):
        losses = []
        for one in (run, other):
            one.model.train(mode)
            losses.append(one.task.loss(one.model, examples).item())
        assert (losses[0] == pytest.approx(losses[1], rel=1e-6)) is same


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_as_strong_as_the_document_is_short(settings, seed):
    torch.manual_seed(seed)
    run = start(settings(neftune_alpha=5.0))
    embedding = run.model.get_input_embeddings()
    width = embedding.weight.shape[1]
    ids_BT = torch.randint(0, 300, (1, 60))
    documents_BT = torch.tensor([[0] * 10 + [1] * 40 + [-1] * 10])
    plain_BTI = embedding(ids_BT)
    reach = torch.zeros(60)
    with noisy_embeddings(run.model, 5.0, documents_BT):
        for _ in range(200):
            reach = torch.maximum(reach, (embedding(ids_BT) - plain_BTI).abs().amax((0, 2)))
    expected = 5 / (torch.tensor([10.0] * 10 + [40.0] * 40) * width).sqrt()
    assert torch.all(reach[:50] <= expected * 1.0001)
    assert torch.all(reach[:50] > 0.9 * expected)
    assert torch.equal(embedding(ids_BT), plain_BTI), "afterwards there is none"


def test_noise_is_for_training_only(settings):
    run = start(settings(neftune_alpha=50.0))
    examples: list[Example] = list(run.data.examples[:3])
    run.model.train()
    assert run.task.loss(run.model, examples) != run.task.loss(run.model, examples)
    run.model.eval()
    assert run.task.loss(run.model, examples) == run.task.loss(run.model, examples)
