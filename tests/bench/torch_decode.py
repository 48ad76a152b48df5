#!/usr/bin/env python3
"""Tokens per second of decoding with PyTorch, batch 1, greedy, random weights: the peer of `tulle bench decode`.

torch.mv is PyTorch's best way to multiply a matrix with one vector.  Prints one line of JSON.
"""
import argparse, json, math, resource, statistics, time

import torch

p = argparse.ArgumentParser()
for name, default in (('layers', 6), ('heads', 6), ('width', 384), ('context', 256), ('vocab', 65), ('threads', 1),
                      ('prompt', 32), ('tokens', 100)):
    p.add_argument('--' + name, type=int, default=default)
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.set_grad_enabled(False)
torch.manual_seed(0)
d, size = a.width, a.width // a.heads


def weight(*shape):
    return torch.empty(shape).normal_(0, 0.02)


blocks = [dict(qkv=weight(3 * d, d), out=weight(d, d), up=weight(4 * d, d), down=weight(d, 4 * d))
          for _ in range(a.layers)]
token, position, head, ones, zeros = (weight(a.vocab, d), weight(a.context, d), weight(a.vocab, d), torch.ones(d),
                                      torch.zeros(d))
keys = [torch.zeros(a.heads, a.context, size) for _ in blocks]
values = [torch.zeros(a.heads, a.context, size) for _ in blocks]


def norm(x):
    return torch.nn.functional.layer_norm(x, (d,), ones, zeros)


def step(t, now):
    x = token[now] + position[t]
    for b, k_all, v_all in zip(blocks, keys, values):
        q, k, v = torch.mv(b['qkv'], norm(x)).view(3, a.heads, size)
        k_all[:, t], v_all[:, t] = k, v
        s = torch.softmax(torch.bmm(k_all[:, :t + 1], q.unsqueeze(-1)).squeeze(-1) / math.sqrt(size), -1)
        x = x + torch.mv(b['out'], torch.bmm(s.unsqueeze(1), v_all[:, :t + 1]).reshape(d))
        x = x + torch.mv(b['down'], torch.nn.functional.gelu(torch.mv(b['up'], norm(x))))
    return int(torch.mv(head, norm(x)).argmax())


now, seconds = 1, []
for t in range(a.prompt + a.tokens):
    began = time.perf_counter()
    now = step(t, now)
    if t >= a.prompt:
        seconds.append(time.perf_counter() - began)
print(json.dumps({'ms_per_token': 1e3 * statistics.median(seconds), 'fastest': 1e3 * min(seconds),
                  'slowest': 1e3 * max(seconds), 'threads': a.threads,
                  'peak_memory': 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
