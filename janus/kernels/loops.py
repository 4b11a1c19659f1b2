"""Compiled loops (numba) behind the fused operators on a CPU: one pass over the rows each, no temporaries.

They own arithmetic on arrays; the autograd rules are in ``fused``, the definitions in ``reference``.
Legend: R rows, C channels, n segments. Every loop is single-threaded: processes, not threads, share a CPU.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types
from numba.extending import overload

from janus.kernels.reference import LAYER_NORM_EPSILON, LOGIT_CAP

# everything of "fast" but the assumptions that no NaN and no infinity occur: a NaN must stay one
_FLAGS = {"reassoc", "contract", "arcp", "nsz", "afn"}
_OPTIONS = {"nogil": True, "fastmath": _FLAGS, "error_model": "numpy"}


def _compiled(function):
    """Compile on first use; the result is kept beside this file or in the user's cache folder.

    Where neither can be written (an installation by root, a home that is not there) each process compiles anew.
    """
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(**_OPTIONS)(function)


def exponential(x: float) -> float:
    """exp(x); in float32 by range reduction and a polynomial, which the compiler can vectorise."""
    return math.exp(x)


@overload(exponential)
def _exponential(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    # Cephes expf (Moshier): |relative error| < 2e-7 for |x| < 87
    log2e, ln2_high, ln2_low = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
    c0, c1, c2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
    c3, c4, c5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
    half, one, low, high = np.float32(0.5), np.float32(1.0), np.float32(-87.0), np.float32(88.0)

    def exponential32(x):
        bounded = low if x < low else (high if x > high else x)  # a NaN passes both comparisons
        power = np.floor(bounded * log2e + half)
        rest = bounded - power * ln2_high - power * ln2_low
        series = ((((c0 * rest + c1) * rest + c2) * rest + c3) * rest + c4) * rest + c5
        scale = np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)
        return (series * rest * rest + rest + one) * scale

    return exponential32


@_compiled
def gathered_sum(total, table, index):
    """total [R,C] += table[index]."""
    for r in range(total.shape[0]):
        i = index[r]
        for c in range(total.shape[1]):
            total[r, c] += table[i, c]


@_compiled
def segment_sum(total, rows, index):
    """total [n,C] gets rows [R,C] added by index [R]."""
    for r in range(rows.shape[0]):
        i = index[r]
        for c in range(rows.shape[1]):
            total[i, c] += rows[r, c]


@_compiled
def product_gather(out, first, first_index, second, second_index):
    """out [R,C] = first[first_index] * second[second_index]."""
    for r in range(out.shape[0]):
        i, j = first_index[r], second_index[r]
        for c in range(out.shape[1]):
            out[r, c] = first[i, c] * second[j, c]


@_compiled
def weighted_segment_sum(total, rows, scale, scale_index, index):
    """total [n,C] gets rows * scale[scale_index] added by index."""
    for r in range(rows.shape[0]):
        i, j = index[r], scale_index[r]
        for c in range(rows.shape[1]):
            total[i, c] += rows[r, c] * scale[j, c]


@_compiled
def column_products(total, rows, other):
    """total [C] gets rows * other [R,C] added over the rows."""
    for r in range(rows.shape[0]):
        for c in range(rows.shape[1]):
            total[c] += rows[r, c] * other[r, c]


@_compiled
def silu(out, x):
    """out = x sigmoid(x)."""
    one = x.dtype.type(1)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            out[r, c] = x[r, c] / (one + exponential(-x[r, c]))


@_compiled
def silu_backward(out, x, cotangent):
    """out = cotangent silu'(x)."""
    one = x.dtype.type(1)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            s = one / (one + exponential(-x[r, c]))
            out[r, c] = cotangent[r, c] * s * (one + x[r, c] * (one - s))


@_compiled
def silu_double_backward(grad_x, grad_cotangent, x, cotangent, seed):
    """grad_x = seed cotangent silu''(x), grad_cotangent = seed silu'(x)."""
    one, two = x.dtype.type(1), x.dtype.type(2)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            v = x[r, c]
            s = one / (one + exponential(-v))
            slope = s * (one - s)
            grad_cotangent[r, c] = seed[r, c] * (s + v * slope)
            grad_x[r, c] = seed[r, c] * cotangent[r, c] * slope * (two + v * (one - two * s))


@_compiled
def _standardise(out, x):
    """out = (x - mean) / sigma over the channels of one row; returns 1 / sigma."""
    count = x.dtype.type(x.shape[0])
    mean = x.dtype.type(0)
    for c in range(x.shape[0]):
        mean += x[c]
    mean /= count
    variance = x.dtype.type(0)
    for c in range(x.shape[0]):
        variance += (x[c] - mean) * (x[c] - mean)
    inverse = x.dtype.type(1) / np.sqrt(variance / count + x.dtype.type(LAYER_NORM_EPSILON))
    for c in range(x.shape[0]):
        out[c] = (x[c] - mean) * inverse
    return inverse


@_compiled
def _project(out, n, v, inverse):
    """out = (v - mean(v) - n mean(n v)) / sigma: the derivative of standardising along v, its own transpose."""
    mean, mean_n = v.dtype.type(0), v.dtype.type(0)
    for c in range(v.shape[0]):
        mean += v[c]
        mean_n += n[c] * v[c]
    mean /= v.dtype.type(v.shape[0])
    mean_n /= v.dtype.type(v.shape[0])
    for c in range(v.shape[0]):
        out[c] = (v[c] - mean - n[c] * mean_n) * inverse


@_compiled
def _project_curvature(out, n, g, h, inverse, work):
    """out += gradient by x of g . (derivative of standardising x along h)."""
    count = n.dtype.type(n.shape[0])
    mean_g, mean_h, mean_gn, mean_hn, mean_gh = (
        n.dtype.type(0), n.dtype.type(0), n.dtype.type(0), n.dtype.type(0), n.dtype.type(0),
    )  # fmt: skip
    for c in range(n.shape[0]):
        mean_g += g[c]
        mean_h += h[c]
        mean_gn += g[c] * n[c]
        mean_hn += h[c] * n[c]
        mean_gh += g[c] * h[c]
    mean_g, mean_h, mean_gn = mean_g / count, mean_h / count, mean_gn / count
    mean_hn, mean_gh = mean_hn / count, mean_gh / count
    along = (mean_gh - mean_g * mean_h - mean_gn * mean_hn) * inverse * inverse
    for c in range(n.shape[0]):
        work[c] = -(g[c] * mean_hn + h[c] * mean_gn) * inverse
    mean_w, mean_wn = n.dtype.type(0), n.dtype.type(0)
    for c in range(n.shape[0]):
        mean_w += work[c]
        mean_wn += work[c] * n[c]
    mean_w, mean_wn = mean_w / count, mean_wn / count
    for c in range(n.shape[0]):
        out[c] += (work[c] - mean_w - n[c] * mean_wn) * inverse - along * n[c]


@_compiled
def gated_norm(out, core, gate, affine):
    """out = silu(LN(core)) sigmoid(LN(gate)); affine [4,C]."""
    one = core.dtype.type(1)
    channels = core.shape[1]
    n, m = np.empty(channels, core.dtype), np.empty(channels, core.dtype)
    for r in range(core.shape[0]):
        _standardise(n, core[r])
        _standardise(m, gate[r])
        for c in range(channels):
            t = n[c] * affine[0, c] + affine[1, c]
            u = m[c] * affine[2, c] + affine[3, c]
            out[r, c] = t / ((one + exponential(-t)) * (one + exponential(-u)))


@_compiled
def gated_norm_backward(grad_core, grad_gate, grad_affine, core, gate, affine, cotangent):
    """Gradients of gated_norm; grad_affine [4,C] is added to."""
    one = core.dtype.type(1)
    channels = core.shape[1]
    n, m = np.empty(channels, core.dtype), np.empty(channels, core.dtype)
    g, h = np.empty(channels, core.dtype), np.empty(channels, core.dtype)
    for r in range(core.shape[0]):
        inverse_n = _standardise(n, core[r])
        inverse_m = _standardise(m, gate[r])
        for c in range(channels):
            t = n[c] * affine[0, c] + affine[1, c]
            s = one / (one + exponential(-t))
            q = one / (one + exponential(-(m[c] * affine[2, c] + affine[3, c])))
            by_t = cotangent[r, c] * q * s * (one + t * (one - s))
            by_u = cotangent[r, c] * t * s * q * (one - q)
            grad_affine[0, c] += by_t * n[c]
            grad_affine[1, c] += by_t
            grad_affine[2, c] += by_u * m[c]
            grad_affine[3, c] += by_u
            g[c] = by_t * affine[0, c]
            h[c] = by_u * affine[2, c]
        _project(grad_core[r], n, g, inverse_n)
        _project(grad_gate[r], m, h, inverse_m)


@_compiled
def gated_norm_double_backward(
    grad_core, grad_gate, grad_affine, grad_cotangent, core, gate, affine, cotangent, seed_core, seed_gate
):
    """Gradients of seed_core . grad_core + seed_gate . grad_gate of the backward; grad_affine is added to."""
    one, two = core.dtype.type(1), core.dtype.type(2)
    channels = core.shape[1]
    n, m = np.empty(channels, core.dtype), np.empty(channels, core.dtype)
    dn, dm = np.empty(channels, core.dtype), np.empty(channels, core.dtype)
    g, h = np.empty(channels, core.dtype), np.empty(channels, core.dtype)
    a, b = np.empty(channels, core.dtype), np.empty(channels, core.dtype)
    work = np.empty(channels, core.dtype)
    for r in range(core.shape[0]):
        inverse_n = _standardise(n, core[r])
        inverse_m = _standardise(m, gate[r])
        _project(dn, n, seed_core[r], inverse_n)
        _project(dm, m, seed_gate[r], inverse_m)
        for c in range(channels):
            t = n[c] * affine[0, c] + affine[1, c]
            s = one / (one + exponential(-t))
            q = one / (one + exponential(-(m[c] * affine[2, c] + affine[3, c])))
            ds, dq = s * (one - s), q * (one - q)
            f, f1, f2 = t * s, s + t * ds, ds * (two + t * (one - two * s))
            q2 = dq * (one - two * q)
            dt, du = dn[c] * affine[0, c], dm[c] * affine[2, c]
            y = cotangent[r, c]
            grad_cotangent[r, c] = f1 * q * dt + f * dq * du
            by_t, by_u = y * f1 * q, y * f * dq  # by t and u in the first backward
            by_t2 = y * (f2 * q * dt + f1 * dq * du)
            by_u2 = y * (f1 * dq * dt + f * q2 * du)
            grad_affine[0, c] += by_t2 * n[c] + by_t * dn[c]
            grad_affine[1, c] += by_t2
            grad_affine[2, c] += by_u2 * m[c] + by_u * dm[c]
            grad_affine[3, c] += by_u2
            g[c], h[c] = by_t * affine[0, c], by_u * affine[2, c]
            a[c], b[c] = by_t2 * affine[0, c], by_u2 * affine[2, c]
        _project(grad_core[r], n, a, inverse_n)
        _project_curvature(grad_core[r], n, g, seed_core[r], inverse_n, work)
        _project(grad_gate[r], m, b, inverse_m)
        _project_curvature(grad_gate[r], m, h, seed_gate[r], inverse_m, work)


@_compiled
def attention_sums(total, logits, envelope, values, index):
    """total [n,2C] gets [w v, w] added by index, w = envelope exp(capped(logits))."""
    one, cap = logits.dtype.type(1), logits.dtype.type(1 / LOGIT_CAP)
    channels = logits.shape[1]
    for r in range(logits.shape[0]):
        i, u = index[r], envelope[r]
        for c in range(channels):
            x = logits[r, c] * cap
            w = u * exponential(logits[r, c] / np.sqrt(one + x * x))
            total[i, c] += w * values[r, c]
            total[i, channels + c] += w


@_compiled
def attention_sums_backward(grad_logits, grad_envelope, grad_values, logits, envelope, values, index, cotangent):
    """Gradients of attention_sums; cotangent [n,2C]."""
    one, cap = logits.dtype.type(1), logits.dtype.type(1 / LOGIT_CAP)
    channels = logits.shape[1]
    for r in range(logits.shape[0]):
        i, u = index[r], envelope[r]
        by_u = logits.dtype.type(0)
        for c in range(channels):
            x = logits[r, c] * cap
            q = one / (one + x * x)
            root = np.sqrt(q)
            e = exponential(logits[r, c] * root)
            by_w = cotangent[i, c] * values[r, c] + cotangent[i, channels + c]
            grad_values[r, c] = u * e * cotangent[i, c]
            grad_logits[r, c] = by_w * u * e * q * root
            by_u += by_w * e
        grad_envelope[r] = by_u


@_compiled
def attention_sums_double_backward(
    grad_logits, grad_envelope, grad_values, grad_cotangent,
    logits, envelope, values, index, cotangent, seed_logits, seed_envelope, seed_values,
):  # fmt: skip
    """Gradients of the seeds . (gradients of the backward); grad_cotangent [n,2C] is added to."""
    one, three = logits.dtype.type(1), logits.dtype.type(3)
    cap = logits.dtype.type(1 / LOGIT_CAP)
    channels = logits.shape[1]
    for r in range(logits.shape[0]):
        i, u, su = index[r], envelope[r], seed_envelope[r]
        by_u = logits.dtype.type(0)
        for c in range(channels):
            x = logits[r, c] * cap
            q = one / (one + x * x)
            root = np.sqrt(q)
            e = exponential(logits[r, c] * root)
            k = q * root  # first derivative of capped
            k2 = -three * x * cap * q * k  # second
            w = u * e
            v, gn = values[r, c], cotangent[i, c]
            sl, sv = seed_logits[r, c], seed_values[r, c]
            by_w = gn * v + cotangent[i, channels + c]
            weight = sl * k * w + su * e
            grad_values[r, c] = weight * gn
            grad_cotangent[i, c] += weight * v + sv * w
            grad_cotangent[i, channels + c] += weight
            grad_logits[r, c] = by_w * (sl * w * (k2 + k * k) + su * e * k) + sv * gn * w * k
            by_u += (by_w * sl * k + sv * gn) * e
        grad_envelope[r] = by_u
