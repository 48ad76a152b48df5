#!/usr/bin/env python3
"""Writes values_transformer.inc: the loss and every gradient of an encoder-decoder transformer in float64, by PyTorch.

/usr/bin/python3 make_transformer.py > values_transformer.inc

The model is written here a second time, from the formulas of layers/transformer.h: parameters in the order in which
layers/ asks for them, element e of parameter i is fill(i, e), one more for the gain of a norm.  Sources of 6, 2 and no
tokens in a batch; tests/test_transformer.c has the same ids.
"""
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

VOCAB, S, T, CONTEXT, D, HEADS, DQK, DV, FF, ENCODER, DECODER = 11, 6, 5, 7, 8, 2, 3, 5, 12, 2, 2
LENGTHS = [6, 2, 0]


def fill(i, e):
    h = (i * 1000003 + e) * 2654435761 % 2**32
    h = (h ^ h >> 15) * 2246822519 % 2**32
    return ((h >> 16) / 65536 - 0.5) * 0.5


params = {}


def get(name, *shape):
    i, more = len(params), 1.0 if name.endswith('/gain') else 0.0
    x = torch.tensor([fill(i, e) + more for e in range(math.prod(shape))]).reshape(shape)
    params[name] = x.requires_grad_()
    return x


def linear(name, d_in, d_out):
    w, b = get(name + '/weight', d_out, d_in), get(name + '/bias', d_out)
    return lambda x: x @ w.T + b


def norm(name):
    g, b = get(name + '/gain', D), get(name + '/bias', D)
    return lambda x: F.layer_norm(x, (D,), g, b, 1e-5)


def heads(x, d):
    return x.reshape(x.shape[0], x.shape[1], HEADS, d).transpose(1, 2)


def attend(q, k, v, seen):
    """seen [b,tq,tk]; a query without a key gives 0"""
    s = heads(q, DQK) @ heads(k, DQK).transpose(2, 3) / math.sqrt(DQK)
    e = torch.exp(s - s.max().detach()) * seen[:, None]
    total = e.sum(-1, keepdim=True)
    p = e / torch.where(total > 0, total, torch.ones_like(total))
    y = p @ heads(v, DV)
    return y.transpose(1, 2).reshape(q.shape[0], q.shape[1], HEADS * DV)


def self_attention(name):
    qkv, out = linear(name + '/qkv', D, HEADS * (2 * DQK + DV)), linear(name + '/out', HEADS * DV, D)
    sizes = [HEADS * DQK, HEADS * DQK, HEADS * DV]
    return lambda x, seen: out(attend(*qkv(x).split(sizes, -1), seen))


def cross_attention(name):
    q, k = linear(name + '/q', D, HEADS * DQK), linear(name + '/k', D, HEADS * DQK)
    v, out = linear(name + '/v', D, HEADS * DV), linear(name + '/out', HEADS * DV, D)
    return lambda x, e, seen: out(attend(q(x), k(e), v(e), seen))


def feed_forward(name):
    one, two = linear(name + '/in', D, FF), linear(name + '/out', FF, D)
    return lambda x: two(torch.relu(one(x)))


def block(name, cross):
    n1, a = norm(name + '/norm1'), self_attention(name + '/attention')
    nc, c = (norm(name + '/norm_cross'), cross_attention(name + '/cross')) if cross else (None, None)
    n2, f = norm(name + '/norm2'), feed_forward(name + '/ff')

    def run(x, seen, e=None, seen_e=None):
        x = x + a(n1(x), seen)
        if cross:
            x = x + c(nc(x), e, seen_e)
        return x + f(n2(x))
    return run


def row(b, i):
    return (b * 5 + i * 3) % (VOCAB - 1) + 1


source = torch.tensor([[row(b, i) if i < LENGTHS[b] else 0 for i in range(S)] for b in range(3)])
target = torch.tensor([[row(b + 7, i) if i < T - b else -1 for i in range(T)] for b in range(3)])
shifted = torch.tensor([[0 if i == 0 else max(int(target[b, i - 1]), 0) for i in range(T)] for b in range(3)])

token, position = get('embedding/token', VOCAB, D), get('embedding/position', CONTEXT, D)
position_source = get('source/position', S, D)
encoder = [block(f'encoder/{i}', False) for i in range(ENCODER)]
norm_source = norm('norm_source')
decoder = [block(f'decoder/{i}', True) for i in range(DECODER)]
norm_last, head = norm('norm'), get('head/weight', VOCAB, D)

keys = (torch.arange(S)[None, None] < torch.tensor(LENGTHS)[:, None, None]).double()
e = token[source] + position_source
for layer in encoder:
    e = layer(e, keys.expand(3, S, S))
e = norm_source(e)
y = token[shifted] + position[:T]
causal = torch.tril(torch.ones(T, T)).expand(3, T, T)
for layer in decoder:
    y = layer(y, causal, e, keys.expand(3, T, S))
loss = F.cross_entropy((norm_last(y) @ head.T).reshape(-1, VOCAB), target.reshape(-1), ignore_index=-1)
loss.backward()


def numbers(values):
    out, text = [], '   '
    for v in values:
        piece = ' ' + float(v).hex() + ','
        if len(text) + len(piece) > 100:
            out.append(text)
            text = '   '
        text += piece
    return '\n'.join(out + [text])


print('/* Written by make_transformer.py. */')
print(f'static const double golden_loss = {loss.item().hex()};')
print('static const struct golden_item { const char *name; int count; } golden_item[] = {')
for name, x in params.items():
    print(f'    {{ "{name}", {x.numel()} }},')
print('};')
print('static const double golden_grad[] = {')
for x in params.values():
    print(numbers((x.grad if x.grad is not None else torch.zeros_like(x)).reshape(-1).tolist()))
print('};')
