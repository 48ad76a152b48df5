#!/usr/bin/env python3
"""Writes values.inc: losses and gradients of whole models in float64, by PyTorch.   /usr/bin/python3 make.py > values.inc

The models are written here a second time, from the formulas, with nothing of tulle's: parameters in the order in which
layers/ asks for them, the noise of autograd/base/rng.h, AdamW from its paper.  Nothing random: element e of parameter i
is fill(i, e), one more for the gain of a norm; the inputs are formulas too.  tests/test_golden.c has the same.
"""
import math

import numpy as np
import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

STEPS, SEED = 10, 1234567890123
LR, BETA1, BETA2, EPS, DECAY, CLIP = 1e-2, 0.9, 0.95, 1e-6, 0.1, 0.5
VOCAB, CONTEXT, LAYERS, HEADS, D, DQK, DV, FF = 13, 8, 2, 2, 12, 5, 7, 24
BLOCK, RANK = 4, 3                      # of the sparse feed-forward
B, T = 3, 6
D_IN, HIDDEN, CLASSES, IMAGES = 9, 8, 5, 7


def fill(i, e):
    h = (i * 1000003 + e) * 2654435761 % 2**32
    h = (h ^ h >> 15) * 2246822519 % 2**32
    return ((h >> 16) / 65536 - 0.5) * 0.5


# --- noise ------------------------------------------------------------------------------------------------

def philox(seed, step, site, block):
    c, k = [block % 2**32, block >> 32, site, step], [seed % 2**32, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 % 2**32, p0 >> 32 ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def bits(step, site, e):
    return philox(SEED, step, site, e // 64 * 16 + e % 16)[e % 64 // 16]


def uniform(b):
    u = np.float32(np.float32(b >> 8) + np.float32(0.5)) * np.float32(2.0**-24)
    return float(min(u, np.float32(1 - 2.0**-24)))


def gumbel(step, site, rows, cols):
    stride = (cols + 63) // 64 * 64
    u = [[min(max(uniform(bits(step, site, r * stride + c)), 1e-6), 1 - 1e-6) for c in range(cols)] for r in range(rows)]
    return -torch.log(-torch.log(torch.tensor(u)))


# --- layers -----------------------------------------------------------------------------------------------

class Store:
    """Parameters by name, in the order in which they are asked for."""

    def __init__(self):
        self.items, self.sites = {}, 0

    def get(self, name, *shape):
        i, n = len(self.items), math.prod(shape)
        more = 1.0 if name.endswith('/gain') else 0.0
        x = torch.tensor([fill(i, e) + more for e in range(n)]).reshape(shape)
        self.items[name] = x.requires_grad_()
        return x

    def site(self):
        self.sites += 1
        return self.sites - 1


class Linear:
    def __init__(self, p, name, d_in, d_out, bias=True, in_out=False):
        self.in_out = in_out
        self.w = p.get(name + '/weight', *((d_in, d_out) if in_out else (d_out, d_in)))
        self.b = p.get(name + '/bias', d_out) if bias else None

    def __call__(self, x):
        return x @ (self.w if self.in_out else self.w.T) + (0 if self.b is None else self.b)


class Norm:
    def __init__(self, p, name, d, eps=1e-5):
        self.eps = eps
        self.gain, self.bias = p.get(name + '/gain', d), p.get(name + '/bias', d)

    def __call__(self, x):
        xc = x - x.mean(-1, keepdim=True)
        return xc / torch.sqrt((xc * xc).mean(-1, keepdim=True) + self.eps) * self.gain + self.bias


class Attention:
    def __init__(self, p, name):
        p.site()                                # dropout of the weights
        self.qkv = Linear(p, name + '/qkv', D, HEADS * (2 * DQK + DV))
        self.out = Linear(p, name + '/out', HEADS * DV, D)
        p.site()                                # dropout of the end

    def __call__(self, x):
        q, k, v = torch.split(self.qkv(x), [HEADS * DQK, HEADS * DQK, HEADS * DV], -1)

        def heads(y):
            return y.reshape(B, T, HEADS, -1).transpose(1, 2)
        s = heads(q) @ heads(k).transpose(-1, -2) / math.sqrt(DQK)
        s = s.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        y = torch.softmax(s, -1) @ heads(v)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


class FeedForward:
    def __init__(self, p, name, d, d_ff, o):
        self.o, self.kind = o, o.get('kind', 'sparse')
        self.width = 1 if self.kind == 'sparse' else d_ff // BLOCK
        self.choices = d_ff // self.width
        if o['sparse']:
            if self.kind == 'sparse':
                self.c1 = Linear(p, name + '/c1', d, RANK, False)
            self.c2 = Linear(p, name + '/c2', RANK if self.kind == 'sparse' else d, self.choices, o['cbias'], True)
        self.inner = Linear(p, name + '/in', d, d_ff)
        self.outer = Linear(p, name + '/out', d_ff, d, True, o['sparse'])
        if o['sparse']:
            self.noise, self.coin = p.site(), p.site()
        p.site()                                # dropout

    def mask(self, x, step):
        low = self.c1(x) if self.kind == 'sparse' else x
        z = self.c2(torch.relu(low) if self.o['crelu'] else low)
        flat = z.reshape(-1, self.choices // BLOCK, BLOCK)
        g = gumbel(step, self.noise, flat.shape[0], self.choices).reshape(flat.shape)
        temperature = self.o['temperature']
        if self.o['relaxed']:
            p, score = torch.softmax((flat + g) / temperature, -1), flat + g
        else:
            p = torch.softmax(flat, -1)
            score = torch.log(p) + temperature * g
        if self.kind == 'switch' or uniform(bits(step, self.coin, 0)) < self.o['quant']:
            hard = torch.nn.functional.one_hot(score.argmax(-1), BLOCK).to(p.dtype)
            chosen = (hard * p).sum(-1, keepdim=True).detach()
            told = torch.ones_like(p)           # the units whose gradient reaches the controller
            if self.o.get('candidates'):
                told = torch.zeros_like(p).scatter(-1, (p + 2 * hard).topk(self.o['candidates'], -1).indices, 1.0)
            p = hard * p if self.kind == 'switch' else hard + told * (p - p.detach())   # straight-through
            if self.o.get('scaled'):
                p = p * chosen
        return p.reshape(z.shape).repeat_interleave(self.width, -1)

    def __call__(self, x, step):
        a = self.inner(x)
        if not self.o['sparse']:
            return self.outer(self.o['act'](a))
        m = self.mask(x, step)
        return self.outer(torch.relu(m * a) if self.o['before'] else m * torch.relu(a))


class Gpt:
    def __init__(self, o):
        p = self.p = Store()
        self.token, self.position = p.get('embedding/token', VOCAB, D), p.get('embedding/position', CONTEXT, D)
        p.site()
        self.blocks = []
        for i in range(LAYERS):
            at = f'blocks/{i}'
            self.blocks.append((Norm(p, at + '/norm1', D), Attention(p, at + '/attention'), Norm(p, at + '/norm2', D),
                                FeedForward(p, at + '/ff', D, FF, o)))
        self.norm = Norm(p, 'norm', D)
        self.head = self.token if o['tied'] else p.get('head/weight', VOCAB, D)

    def loss(self, step):
        ids = torch.tensor([(b * 7 + t * t * 5 + step * 3) % VOCAB for b in range(B) for t in range(T)])
        targets = torch.tensor([-1 if t == 2 and b == 1 else (b * 5 + t * 3 + step) % VOCAB
                                for b in range(B) for t in range(T)])
        x = self.token[ids].reshape(B, T, D) + self.position[:T]
        for norm1, attention, norm2, ff in self.blocks:
            x = x + attention(norm1(x))
            x = x + ff(norm2(x), step)
        logits = (self.norm(x) @ self.head.T).reshape(B * T, VOCAB)
        return torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1)


class SparseTransformer(Gpt):
    """1904.10509 sections 5.2 and 5.3, with dense attention: a start vector, two or three tables of positions, x sigmoid(1.702 x),
    an output of its own."""

    def __init__(self, o):
        p = self.p = Store()
        self.token = p.get('embedding/token', VOCAB, D)
        axes = [('row', 3), ('column', 1)] if o['stride'] else [('row', 4), ('column', 2), ('channel', 1)]
        sizes = [3, 3] if o['stride'] else [2, 2, 2]        # 8 positions: rows of 3, or 2 x 2 pixels of 2 bytes
        self.axes = [(p.get('embedding/' + name, n, D), step) for (name, step), n in zip(axes, sizes)]
        self.start = p.get('embedding/start', 1, D)
        p.site()
        self.blocks = []
        for i in range(LAYERS):
            at = f'blocks/{i}'
            self.blocks.append((Norm(p, at + '/norm1', D), Attention(p, at + '/attention'), Norm(p, at + '/norm2', D),
                                FeedForward(p, at + '/ff', D, FF, o)))
        self.norm = Norm(p, 'norm', D, 1e-3)
        self.head = p.get('head/weight', VOCAB, D)

    def loss(self, step):
        tokens = torch.tensor([[(b * 7 + t * t * 5 + step * 3) % VOCAB for t in range(T)] for b in range(B)])
        rows = []
        for b in range(B):
            row = [self.start[0]]                   # no position
            for i in range(T - 1):                  # what predicts i + 1 has seen the token and the position of i
                row.append(self.token[tokens[b, i]] + sum(table[i // step % len(table)] for table, step in self.axes))
            rows.append(torch.stack(row))
        x = torch.stack(rows)
        for norm1, attention, norm2, ff in self.blocks:
            x = x + attention(norm1(x))
            x = x + ff(norm2(x), step)
        logits = (self.norm(x) @ self.head.T).reshape(B * T, VOCAB)
        return torch.nn.functional.cross_entropy(logits, tokens.flatten())


class Mlp:
    def __init__(self, o):
        p = self.p = Store()
        self.inner = Linear(p, 'in', D_IN, HIDDEN)
        self.ff = [FeedForward(p, f'layers/{i}/ff', HIDDEN, FF, o) for i in range(LAYERS)]
        self.outer = Linear(p, 'out', HIDDEN, CLASSES)

    def loss(self, step):
        x = torch.tensor([[fill(1000 + step, b * D_IN + i) * 4 for i in range(D_IN)] for b in range(IMAGES)])
        y = self.inner(x)
        for ff in self.ff:
            y = ff(y, step)
        targets = torch.tensor([(b * 2 + step) % CLASSES for b in range(IMAGES)])
        return torch.nn.functional.cross_entropy(self.outer(y), targets)


# --- training ----------------------------------------------------------------------------------------------

def train(model, full):
    """What test_golden.c compares."""
    params = list(model.p.items.values())
    m, v = [torch.zeros_like(x) for x in params], [torch.zeros_like(x) for x in params]
    r = {'loss': [], 'norm': []}
    for step in range(STEPS):
        loss = model.loss(step)
        g = torch.autograd.grad(loss, params, allow_unused=True)
        g = [torch.zeros_like(x) if d is None else d for x, d in zip(params, g)]
        norm = math.sqrt(sum(float((d * d).sum()) for d in g))
        r['loss'].append(float(loss))
        r['norm'].append(norm)
        if step == 0:
            r['part'] = [float(d.norm()) for d in g]
            r['full'] = g[list(model.p.items).index(full)].flatten().tolist()
        clip, t = min(1.0, CLIP / norm), step + 1
        with torch.no_grad():
            for x, d, mi, vi in zip(params, g, m, v):
                d = d * clip
                if x.dim() >= 2:
                    x *= 1 - LR * DECAY
                mi.mul_(BETA1).add_((1 - BETA1) * d)
                vi.mul_(BETA2).add_((1 - BETA2) * d * d)
                x -= LR * (mi / (1 - BETA1**t)) / (torch.sqrt(vi / (1 - BETA2**t)) + EPS)
    weight = [torch.tensor([fill(500 + i, e) for e in range(x.numel())]) for i, x in enumerate(params)]
    r['sum'] = [float((x.detach().flatten() * w).sum()) for x, w in zip(params, weight)]
    return r


GELU = torch.nn.functional.gelu
DENSE = {'sparse': False, 'act': GELU, 'tied': True}
SPARSE = {'sparse': True, 'tied': False, 'before': True, 'relaxed': False, 'temperature': 0.1, 'cbias': True,
          'crelu': False}
QUICK = {'sparse': False, 'act': lambda x: x * torch.sigmoid(1.702 * x)}
GPT_FULL, MLP_FULL = 'blocks/0/ff/c1/weight', 'layers/0/ff/c1/weight'
CASES = [
    ('gpt_dense', Gpt, DENSE, 'blocks/0/attention/out/weight'),
    ('gpt_soft_before', Gpt, {**SPARSE, 'quant': 0}, GPT_FULL),
    ('gpt_hard_before', Gpt, {**SPARSE, 'quant': 1}, GPT_FULL),
    ('gpt_soft_after', Gpt, {**SPARSE, 'quant': 0, 'before': False, 'crelu': True}, GPT_FULL),
    ('gpt_hard_after', Gpt, {**SPARSE, 'quant': 1, 'before': False, 'cbias': False}, GPT_FULL),
    ('gpt_relaxed', Gpt, {**SPARSE, 'quant': 0.5, 'before': False, 'relaxed': True, 'temperature': 0.7}, GPT_FULL),
    ('mlp_dense', Mlp, {**DENSE, 'act': torch.relu}, 'layers/0/ff/in/weight'),
    ('mlp_sparse', Mlp, {**SPARSE, 'quant': 0.4}, MLP_FULL),
    ('gpt_hard_candidates', Gpt, {**SPARSE, 'quant': 1, 'before': False, 'candidates': 2}, GPT_FULL),
    ('gpt_hard_scaled_after', Gpt, {**SPARSE, 'quant': 1, 'before': False, 'scaled': True}, GPT_FULL),
    ('gpt_block', Gpt, {**SPARSE, 'kind': 'block', 'quant': 0.5, 'temperature': 0.7}, 'blocks/0/ff/c2/weight'),
    ('sparse_transformer_grid', SparseTransformer, {**QUICK, 'stride': 3}, 'embedding/row'),
    ('sparse_transformer_image', SparseTransformer, {**QUICK, 'stride': 0}, 'embedding/start'),
    ('mlp_switch', Mlp, {**SPARSE, 'kind': 'switch', 'quant': 0}, 'layers/0/ff/c2/weight'),
]

print('/* values.inc -- written by make.py (PyTorch, float64).  Do not edit. */')
for name, model, options, full in CASES:
    result = train(model(options), full)
    for key, values in result.items():
        print(f'static const double {name}_{key}[] = {{')
        for i in range(0, len(values), 4):
            print('    ' + ' '.join(x.hex() + ',' for x in values[i:i + 4]))
        print('};')
print('#define GOLDEN(X) ' + ' '.join(f'X({c[0]}, "{c[3]}")' for c in CASES))
