#!/usr/bin/env python3
"""Writes values_pattern.inc: attention under patterns in float64, by PyTorch.   /usr/bin/python3 make_pattern.py > values_pattern.inc

Every pattern is a mask of 0 and 1 written from the words of 1904.10509, section 4.1, head by head; a query that sees no key
gives 0.  Inputs and the cotangent are formulas; tests/test_pattern_op.c has the same.
"""
import math

import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

B, N, HEADS, D_QK, D_V = 2, 23, 4, 2, 3


def fill(i, e):
    h = (i * 1000003 + e) * 2654435761 % 2**32
    h = (h ^ h >> 15) * 2246822519 % 2**32
    return ((h >> 16) / 65536 - 0.5) * 4


def tensor(i, width):
    x = torch.tensor([fill(i, e) for e in range(B * N * width)])
    return x.reshape(B, N, width).requires_grad_()


def local(l):
    return lambda h, i, j: j in range(max(0, i - l + 1), i + 1)


def strided(l):
    return lambda h, i, j: j in range(i % l, i + 1, l)


def fixed(l, c, k):
    def sees(h, i, j):
        first = l - c * (h % k + 1)
        return i // l == j // l or j % l in range(first, first + c)
    return sees


def summary(l, c):
    return lambda h, i, j: j % l in range(l - c, l)


CASES = {
    'local': local(5),
    'strided': strided(6),
    'merged': lambda h, i, j: local(7)(h, i, j) or strided(7)(h, i, j),
    'by_head': lambda h, i, j: (local(4), strided(9))[h % 2](h, i, j),
    'fixed': fixed(8, 2, 4),
    'fixed_same': fixed(10, 3, 1),
    'summary': summary(12, 4),
}


def heads(x):
    return x.reshape(B, N, HEADS, -1).transpose(1, 2)


def attend(q, k, v, sees):
    mask = torch.tensor([[[float(j <= i and sees(h, i, j)) for j in range(N)] for i in range(N)] for h in range(HEADS)])
    s = heads(q) @ heads(k).transpose(2, 3) / math.sqrt(D_QK)
    p = s.masked_fill(mask == 0, -1e300).softmax(-1) * mask
    return (p @ heads(v)).transpose(1, 2).flatten(2)


def numbers(name, x):
    body = ', '.join(float(v).hex() for v in x.flatten())
    print(f'static const double {name}[] = {{ {body} }};')


print('/* values_pattern.inc -- written by make_pattern.py */')
for case, sees in CASES.items():
    q, k, v = tensor(1, HEADS * D_QK), tensor(2, HEADS * D_QK), tensor(3, HEADS * D_V)
    y = attend(q, k, v, sees)
    (y * tensor(4, HEADS * D_V).detach()).sum().backward()
    for name, x in ('y', y), ('dq', q.grad), ('dk', k.grad), ('dv', v.grad):
        weights = torch.tensor([fill(5, e) for e in range(x.numel())]).reshape(x.shape)
        numbers(f'{case}_{name}', (x * weights).reshape(B, N, HEADS, -1).sum(3))
print('#define GOLDEN(CASE) ' + ' '.join(f'CASE({c})' for c in CASES))
