#!/usr/bin/env python3
"""Writes values_adafactor.inc: weights after steps of Adafactor in float64.   /usr/bin/python3 make_adafactor.py > values_adafactor.inc

Adafactor is written here a second time, with means over the axes of an array as trax has it (2111.12763 trains with it):
vectors, matrices, and the tensors of rank 3 of the paper's sparse feed-forward, C2 (r, D1, N), W1 (d, D1, N) and
W2 (N, D1, d), in small.  Element e of tensor i is fill(i, e), its gradient of step s another fill; tests/test_adafactor.c
has the same.  Of long tensors every seventh element is stored.
"""
import math

import numpy as np

STEPS = 8
SHAPES = [(7,), (5, 9), (3, 4, 6), (5, 4, 6), (6, 4, 5), (150, 5), (1, 1)]
CASES = {       # name: rate, weight decay, its steps, scale of parameters, threshold, momentum, eps1, size of gradients
    'plain': (1e-2, 0, 0, True, 1, 0, 1e-16, 1),
    'decay': (1e-2, 1e-3, 6, True, 0.5, 0, 1e-16, 1),
    'momentum': (1e-3, 1e-4, 0, False, 0, 0.9, 1e-16, 100),
    'small': (1e-2, 0, 0, True, 1, 0, 1e-16, 1e-8),
}


def fill(i, n):
    h = (i * 1000003 + np.arange(n, dtype=np.uint64)) * np.uint64(2654435761) % np.uint64(2**32)
    h = (h ^ h >> np.uint64(15)) * np.uint64(2246822519) % np.uint64(2**32)
    return ((h >> np.uint64(16)).astype(np.float64) / 65536 - 0.5) * 0.5


class Adafactor:
    def __init__(self, w, rate, decay, decay_steps, relative, threshold, momentum, eps1):
        self.w, self.rate, self.decay, self.decay_steps = w, rate, decay, decay_steps
        self.relative, self.threshold, self.momentum, self.eps1 = relative, threshold, momentum, eps1
        self.rows, self.cols = np.zeros(w.shape[:-1]), np.zeros(w.shape[:-2] + w.shape[-1:])
        self.all, self.mean = np.zeros(w.shape), np.zeros(w.shape)

    def step(self, t, g):
        mix = (t + 1.0) ** -0.8
        moved = lambda v, square: (1 - mix) * v + mix * square      # noqa: E731
        if g.ndim >= 2:
            self.rows = moved(self.rows, (g * g).mean(-1))
            self.cols = moved(self.cols, (g * g).mean(-2))
            by_row = np.sqrt(self.rows.mean(-1, keepdims=True) / (self.rows + self.eps1))
            y = g * by_row[..., :, None] * ((self.cols + self.eps1) ** -0.5)[..., None, :]
        else:
            self.all = moved(self.all, g * g)
            y = g * (self.all + self.eps1) ** -0.5
        if self.threshold:
            y /= max(1.0, math.sqrt((y * y).mean()) / self.threshold)
        rate = self.rate * (max(math.sqrt((self.w * self.w).mean()), 1e-3) if self.relative else 1)
        self.mean = self.momentum * self.mean + (1 - self.momentum) * rate * y
        decay = self.decay * (max(self.decay_steps - t, 0) / self.decay_steps if self.decay_steps else 1)
        self.w = (1 - decay) * self.w - self.mean


print('/* values_adafactor.inc -- written by make_adafactor.py (NumPy, float64).  Do not edit. */')
for name, (rate, decay, decay_steps, relative, threshold, momentum, eps1, size) in CASES.items():
    out = []
    for i, shape in enumerate(SHAPES):
        n = math.prod(shape)
        a = Adafactor(fill(i, n).reshape(shape), rate, decay, decay_steps, relative, threshold, momentum, eps1)
        for t in range(STEPS):
            a.step(t, size * fill(100 * (t + 1) + i, n).reshape(shape))
        out += list(a.w.reshape(-1)[::7 if n > 200 else 1])
    print(f'static const double {name}_weights[] = {{')
    for k in range(0, len(out), 4):
        print('    ' + ' '.join(f'{float(x).hex()},' for x in out[k:k + 4]))
    print('};')
