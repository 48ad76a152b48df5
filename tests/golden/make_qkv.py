#!/usr/bin/env python3
"""Writes values_qkv.inc: sparse attention and output layers in float64, by PyTorch.   /usr/bin/python3 make_qkv.py > values_qkv.inc

The layers are written here a second time, from the formulas of "Sparse is Enough in Scaling Transformers" (2111.12763,
section 3) with einsum and conv2d, and with nothing of tulle's: parameters in the order in which layers/ asks for them.
Element e of parameter i is fill(i, e), the input and the cotangent are formulas too.  tests/test_qkv.c has the same.
"""
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

B, T, D, HEADS, VOCAB = 2, 5, 12, 2, 11


def fill(i, e):
    h = (i * 1000003 + e) * 2654435761 % 2**32
    h = (h ^ h >> 15) * 2246822519 % 2**32
    return ((h >> 16) / 65536 - 0.5) * 0.5


class Store:
    def __init__(self):
        self.items = {}

    def get(self, name, *shape):
        i, n = len(self.items), math.prod(shape)
        x = torch.tensor([4 * fill(i, e) for e in range(n)]).reshape(shape)
        self.items[name] = x.requires_grad_()
        return x


def multiplicative(p, name, modules, d_out=D, bias=True):
    each = -(-d_out // modules)
    used = -(-d_out // each)
    gates, weight = p.get(name + '/gates', used, D), p.get(name + '/weight', each, D)
    b = p.get(name + '/bias', d_out) if bias else 0
    return lambda x: torch.einsum('bti,si,mi->btsm', x, gates, weight).flatten(2)[..., :d_out] + b


def convolution(p, name, modules, taps, span, d_in=D):
    each, out = d_in // modules, D // modules
    weight, bias = p.get(name + '/weight', out, taps * span * each), p.get(name + '/bias', out)

    def run(x):
        kernel = weight.reshape(out, taps, span, each).permute(0, 3, 1, 2)
        image = x.reshape(x.shape[0], x.shape[1], modules, each).permute(0, 3, 1, 2)
        image = F.pad(image, (span // 2, span // 2, taps - 1, 0))
        return F.conv2d(image, kernel, bias).permute(0, 2, 3, 1).flatten(2)
    return run


def modular(p, name, modules, span):
    each = D // modules
    weight, bias = p.get(name + '/weight', D, span * each), p.get(name + '/bias', D)

    def run(x):
        x = x.reshape(x.shape[0], x.shape[1], modules, each)
        seen = torch.cat([torch.roll(x, span // 2 - c, 2) for c in range(span)], 3)
        return torch.einsum('btsi,soi->btso', seen, weight.reshape(modules, each, -1)).flatten(2) + bias
    return run


def dense(p, name, d_in, d_out, bias=True):
    weight = p.get(name + '/weight', d_out, d_in)
    b = p.get(name + '/bias', d_out) if bias else None
    return lambda x: F.linear(x, weight, b)


def lowrank(p, name, rank, d_out=D):
    low, high = dense(p, name + '/low', D, rank), dense(p, name + '/high', rank, d_out)
    return lambda x: high(low(x))


def chain(*maps):
    def run(x):
        for f in maps:
            x = f(x)
        return x
    return run


def a_map(p, name, kind, o):
    s, f, k = o['modules'], o['taps'], o['span']
    if kind == 'none':
        return lambda x: x
    if kind == 'mult':
        return multiplicative(p, name + '/mult', s)
    if kind == 'conv':
        return convolution(p, name + '/conv', s, f, k)
    if kind == 'multconv':
        first = multiplicative(p, name + '/mult', s)
        return chain(first, convolution(p, name + '/conv', s, f, k))
    if kind == 'modular':
        return modular(p, name + '/modules', s, k)
    if kind == 'multmod':
        first = multiplicative(p, name + '/mult', s, bias=False)
        return chain(first, modular(p, name + '/modules', s, k))
    return lowrank(p, name, o['rank'])


def attend(q, k, v):
    q, k, v = (z.reshape(B, T, HEADS, D // HEADS).transpose(1, 2) for z in (q, k, v))
    s = q @ k.transpose(2, 3) / math.sqrt(D // HEADS)
    s = s.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    return (s.softmax(-1) @ v).transpose(1, 2).flatten(2)


def attention(p, kind, output=None, modules=3, taps=1, span=1, rank=4, share=False, concat='none'):
    o = dict(modules=modules, taps=taps, span=span, rank=rank)
    if kind == 'multconv':
        mult = multiplicative(p, 'a/mult', modules)
        q = convolution(p, 'a/q/conv', modules, taps, span)
        k = q if share else convolution(p, 'a/k/conv', modules, taps, span)
        v = convolution(p, 'a/v/conv', modules, taps, 1, D if concat == 'none' else 2 * D)
    else:
        mult = lambda x: x
        q = a_map(p, 'a/q', kind, o)
        k = q if share else a_map(p, 'a/k', kind, o)
        v = a_map(p, 'a/v', kind, o)
    own = 'none' if kind == 'multconv' else kind
    out = dense(p, 'a/out', D, D, False) if output == 'dense' else a_map(p, 'a/out', output or own, o)

    def run(x):
        u = w = mult(x)
        if concat == 'original':
            w = torch.cat([u, x], 2)
        elif concat == 'fixed':
            cut = (B, T, modules, D // modules)
            w = torch.cat([u.reshape(cut), x.reshape(cut)], 3).flatten(2)
        return out(attend(q(u), k(u), v(w)))
    return run


CASES = {
    'multconv': lambda p: attention(p, 'multconv', taps=3, span=3),
    'multconv_four': lambda p: attention(p, 'multconv', output='multconv', modules=4, taps=2, span=5),
    'multconv_shared': lambda p: attention(p, 'multconv', output='conv', taps=3, span=3, share=True, concat='fixed'),
    'multconv_original': lambda p: attention(p, 'multconv', output='dense', taps=3, span=3, concat='original'),
    'multconv_mult': lambda p: attention(p, 'multconv', output='mult', taps=1, span=1),
    'mult': lambda p: attention(p, 'mult'),
    'conv': lambda p: attention(p, 'conv', modules=4),
    'conv_wide': lambda p: attention(p, 'conv', taps=2, span=3),
    'modular': lambda p: attention(p, 'modular'),
    'modular_three': lambda p: attention(p, 'modular', modules=4, span=3),
    'multmod': lambda p: attention(p, 'multmod', modules=4),
    'lowrank': lambda p: attention(p, 'lowrank', share=True),
    'head_mult': lambda p: multiplicative(p, 'a/mult', 3, VOCAB),
    'head_seven': lambda p: multiplicative(p, 'a/mult', 7, VOCAB),
    'head_lowrank': lambda p: lowrank(p, 'a/lowrank', 3, VOCAB),
}


def numbers(name, x):
    body = ', '.join(float(v).hex() for v in x)
    print(f'static const double {name}[] = {{ {body} }};')


print('/* values_qkv.inc -- written by make_qkv.py */')
for case, build in CASES.items():
    p = Store()
    f = build(p)
    x = torch.tensor([4 * fill(1000, e) for e in range(B * T * D)]).reshape(B, T, D).requires_grad_()
    y = f(x)
    v = torch.tensor([4 * fill(1001, e) for e in range(y.numel())]).reshape(y.shape)
    (y * v).sum().backward()
    numbers(case + '_y', y.flatten())
    numbers(case + '_dx', x.grad.flatten())
    numbers(case + '_sum', [sum(float(g) * fill(500 + i, e) for e, g in enumerate(w.grad.flatten()))
                            for i, w in enumerate(p.items.values())])
    print(f'static const char *const {case}_names[] = {{ ' + ', '.join(f'"{n}"' for n in p.items) + ' };')
print('#define GOLDEN(CASE) ' + ' '.join(f'CASE({c})' for c in CASES))
