"""The waveform misfit: value, precision, gradient, weights."""

import pytest
import torch

from hpfwi.errors import DataError
from hpfwi.inversion.misfit import equal_traces, l2


def gathers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randn(2, 5, 40, generator=generator)
    return predicted.requires_grad_(), torch.randn(2, 5, 40, generator=generator)


def test_value_and_gradient_follow_the_definition() -> None:
    predicted, observed = gathers(0)
    value = l2(predicted, observed)
    value.backward()
    residual = (predicted - observed).detach()
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(0.5 * float((residual.double() ** 2).sum()), rel=1e-14)
    assert predicted.grad is not None
    assert torch.equal(predicted.grad, residual)


def test_small_residuals_are_not_lost_beside_large_ones() -> None:
    predicted = torch.zeros(1, 1, 100_001)
    predicted[0, 0, 0] = 1e4
    predicted[0, 0, 1:] = 1.0
    # In float32 the ones vanish: 1e8 + 1 rounds to 1e8.
    assert float(l2(predicted, torch.zeros_like(predicted))) == 0.5 * (1e8 + 1e5)


def test_weights_scale_the_squares_of_their_trace_and_zero_hides_even_nan() -> None:
    predicted, observed = gathers(1)
    observed[0, 3] = float("nan")
    weights = torch.ones(2, 5)
    weights[0, 3] = 0.0
    weights[1, 2] = 2.5
    value = l2(predicted, observed, weights)
    value.backward()
    residual = (predicted - observed).detach().double()
    residual[0, 3] = 0.0
    expected = 0.5 * float((weights.double()[..., None] * residual**2).sum())
    assert float(value.detach()) == pytest.approx(expected, rel=1e-14)
    assert predicted.grad is not None
    assert torch.equal(predicted.grad[0, 3], torch.zeros(40))
    torch.testing.assert_close(predicted.grad[1, 2], 2.5 * residual[1, 2].float())


def test_the_value_does_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(2)
    predicted, observed = torch.randn(3, 100, 1000, generator=generator), torch.zeros(3, 100, 1000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = float(l2(predicted, observed))
        torch.set_num_threads(2)
        together = float(l2(predicted, observed))
    finally:
        torch.set_num_threads(threads)
    assert alone == together


def test_other_shapes_are_refused() -> None:
    predicted, observed = gathers(0)
    with pytest.raises(DataError, match=r"\(2, 5, 40\), observed ones \(2, 5, 39\)"):
        l2(predicted, observed[..., :-1])
    with pytest.raises(DataError, match=r"Trace weights have shape \(5,\)"):
        l2(predicted, observed, torch.ones(5))


def test_equal_traces_forget_strengths_and_measure_correlation() -> None:
    predicted, observed = gathers(4)
    strengths = torch.linspace(0.1, 1e4, 10).reshape(2, 5, 1)
    ours, theirs = equal_traces(predicted.detach(), 3.0), equal_traces(observed, 3.0)
    assert ours.square().mean(dim=-1) == pytest.approx(torch.full((2, 5), 9.0), rel=1e-6)
    assert equal_traces(observed * strengths, 3.0) == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    correlation = torch.nn.functional.cosine_similarity(predicted.detach().double(), observed.double(), dim=-1)
    assert float(l2(ours, theirs)) == pytest.approx(9.0 * 40 * float((1 - correlation).sum()), rel=1e-6)


def test_the_gradient_through_equal_traces_is_exact_and_silent_traces_pass_none() -> None:
    predicted, observed = gathers(5)
    double = predicted.detach().double().requires_grad_()
    target = equal_traces(observed.double(), 1.0)
    assert torch.autograd.gradcheck(lambda traces: l2(equal_traces(traces, 1.0), target), double)
    silent = torch.zeros(1, 2, 8, requires_grad=True)
    value = l2(equal_traces(silent, 1.0), torch.ones(1, 2, 8))
    value.backward()
    assert float(value.detach()) == 8.0
    assert silent.grad is not None
    assert not silent.grad.any()
