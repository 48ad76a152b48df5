#!/usr/bin/python3
"""The peer of the GPT benchmarks: the same training step in PyTorch, as a nanoGPT user would write it.

Prints one JSON line like `tulle bench --json`.  --bf16 runs under autocast; --best uses the additive mask;
huge pages and oneDNN come from the environment that steps.py sets.  --cuda runs on the GPU with flash attention and
torch.compile (gpu.py).
"""
import argparse, json, math, resource, statistics, time
import torch, torch.nn as nn, torch.nn.functional as F

p = argparse.ArgumentParser()
for name, value in dict(layers=6, heads=6, width=384, context=256, vocab=65, batch=64, threads=2, steps=3, warm=1).items():
    p.add_argument('--' + name, type=int, default=value)
p.add_argument('--dropout', type=float, default=0.0)
p.add_argument('--best', action='store_true')
p.add_argument('--bf16', action='store_true')
p.add_argument('--cuda', action='store_true')
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(a.width, 3 * a.width, bias=False)
        self.proj = nn.Linear(a.width, a.width, bias=False)
        self.drop_p, self.drop_y = nn.Dropout(a.dropout), nn.Dropout(a.dropout)
        ok = torch.tril(torch.ones(a.context, a.context)).bool()
        self.register_buffer('hidden', ~ok)
        self.register_buffer('minus', torch.zeros(a.context, a.context).masked_fill(~ok, float('-inf')))

    def forward(self, x):
        B, T, C = x.shape
        d = C // a.heads
        q, k, v = (u.view(B, T, a.heads, d).transpose(1, 2) for u in self.qkv(x).split(C, 2))
        if a.cuda:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=a.dropout if self.training else 0.0, is_causal=True)
            y = self.proj(y.transpose(1, 2).reshape(B, T, C))
            return self.drop_y(y) if a.dropout else y
        if a.best:
            w = (q * (1 / math.sqrt(d))) @ k.transpose(-2, -1) + self.minus
        else:
            w = ((q @ k.transpose(-2, -1)) * (1 / math.sqrt(d))).masked_fill(self.hidden, float('-inf'))
        w = F.softmax(w, -1)
        if a.dropout:
            w = self.drop_p(w)
        y = self.proj((w @ v).transpose(1, 2).reshape(B, T, C))
        return self.drop_y(y) if a.dropout else y


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2, self.attention = nn.LayerNorm(a.width), nn.LayerNorm(a.width), Attention()
        self.up = nn.Linear(a.width, 4 * a.width, bias=False)
        self.down = nn.Linear(4 * a.width, a.width, bias=False)
        self.drop = nn.Dropout(a.dropout)

    def forward(self, x):
        x = x + self.attention(self.n1(x))
        y = self.down(F.gelu(self.up(self.n2(x))))
        return x + (self.drop(y) if a.dropout else y)


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(a.vocab, a.width), nn.Embedding(a.context, a.width)
        self.blocks = nn.ModuleList(Block() for _ in range(a.layers))
        self.norm, self.drop = nn.LayerNorm(a.width), nn.Dropout(a.dropout)
        self.head = nn.Linear(a.width, a.vocab, bias=False)
        for w in self.parameters():
            if w.dim() == 2:
                nn.init.normal_(w, 0, 0.02)
        self.head.weight = self.token.weight

    def forward(self, x, y):
        h = self.token(x) + self.position(torch.arange(x.shape[1], device=x.device))
        if a.dropout:
            h = self.drop(h)
        for b in self.blocks:
            h = b(h)
        return F.cross_entropy(self.head(self.norm(h)).view(-1, a.vocab), y.view(-1))


device = 'cuda' if a.cuda else 'cpu'
model = GPT().to(device)
fast = dict(fused=True) if a.cuda else dict(foreach=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, **fast)
text = torch.randint(0, a.vocab, (200000,))
run = torch.compile(model) if a.cuda else model


def step():
    at = torch.randint(0, len(text) - a.context - 1, (a.batch,))
    x = torch.stack([text[i:i + a.context] for i in at])
    y = torch.stack([text[i + 1:i + 1 + a.context] for i in at])
    x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=a.bf16):
        loss = run(x, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()               # a run shows its loss; on a GPU this waits for the step


for _ in range(a.warm):
    step()
times = []
for _ in range(a.steps):
    begin = time.perf_counter()
    step()
    times.append(time.perf_counter() - begin)
n = a.batch * a.context
print(json.dumps(dict(unit='tokens', per_second=n / statistics.median(times), per_second_best=n / min(times),
                      per_second_worst=n / max(times), step_ms=1e3 * statistics.median(times),
                      peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)))
