"""The compiled loops over channels: statistics, result, gradient. A channel stays in a core's cache between passes."""

import math

import numpy as np

from hpfwi_kernels.compiling import hot, hot_sum


@hot_sum
def _total(x, o, cells):
    total = x.dtype.type(0)
    for i in range(cells):
        total += x[o + i]
    return total


@hot_sum
def _spread(x, o, cells, mean):
    """Sum of squared distances to the mean."""
    total = x.dtype.type(0)
    for i in range(cells):
        distance = x[o + i] - mean
        total += distance * distance
    return total


@hot
def _activate(x, o, cells, scale, shift, slope, out):
    for i in range(cells):
        value = x[o + i] * scale + shift
        out[o + i] = value if value > 0 else slope * value


@hot
def forward_channels(x, weight, bias, slope, epsilon, first, end, samples, channels, cells, out, mean, variance):
    """Channels first to end - 1 of x [sample, channel, cell]; mean and variance are float64 [channel]."""
    one = x.dtype.type(1)
    count = np.float64(samples * cells)
    for channel in range(first, end):
        total = 0.0
        for sample in range(samples):
            total += _total(x, (sample * channels + channel) * cells, cells)
        mean[channel] = total / count
        middle = one * x.dtype.type(mean[channel])
        total = 0.0
        for sample in range(samples):
            total += _spread(x, (sample * channels + channel) * cells, cells, middle)
        variance[channel] = total / count
        scale = x.dtype.type(weight[channel] / math.sqrt(variance[channel] + epsilon))
        shift = x.dtype.type(bias[channel] - mean[channel] * scale)
        for sample in range(samples):
            _activate(x, (sample * channels + channel) * cells, cells, scale, shift, slope[channel], out)


@hot_sum
def _sums(x, gradient, o, cells, scale, shift, slope, mean):
    """Sums of the gradient behind the activation, of it times the distance to the mean, and of that of the slope."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    total = moment = below = zero
    for i in range(cells):
        value = x[o + i] * scale + shift
        inner = gradient[o + i] * (one if value > 0 else slope)
        total += inner
        moment += inner * (x[o + i] - mean)
        below += gradient[o + i] * (zero if value > 0 else value)
    return total, moment, below


@hot
def _spread_back(x, gradient, o, cells, scale, shift, slope, mean, factor, offset, out):
    one = x.dtype.type(1)
    for i in range(cells):
        value = x[o + i] * scale + shift
        out[o + i] = scale * (gradient[o + i] * (one if value > 0 else slope)) + (factor * (x[o + i] - mean) + offset)


@hot
def gradient_channels(
    x, gradient, weight, bias, slope, epsilon, mean, variance, first, end, samples, channels, cells,
    out, weight_gradient, bias_gradient, slope_gradient,
):  # fmt: skip
    """Channels first to end - 1 of the gradients; those of weight, bias and slope are float64 [channel]."""
    count = np.float64(samples * cells)
    for channel in range(first, end):
        inverse = 1.0 / math.sqrt(variance[channel] + epsilon)
        scale = x.dtype.type(weight[channel] * inverse)
        shift = x.dtype.type(bias[channel] - mean[channel] * scale)
        middle = x.dtype.type(mean[channel])
        total = moment = below = 0.0
        for sample in range(samples):
            o = (sample * channels + channel) * cells
            parts = _sums(x, gradient, o, cells, scale, shift, slope[channel], middle)
            total, moment, below = total + parts[0], moment + parts[1], below + parts[2]
        weight_gradient[channel], bias_gradient[channel] = moment * inverse, total
        slope_gradient[channel] = below
        factor = x.dtype.type(-scale * inverse * inverse * moment / count)
        offset = x.dtype.type(-scale * total / count)
        for sample in range(samples):
            o = (sample * channels + channel) * cells
            _spread_back(x, gradient, o, cells, scale, shift, slope[channel], middle, factor, offset, out)
