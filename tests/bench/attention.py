#!/usr/bin/env python3
"""Dense causal attention of tulle beside PyTorch's matmul, softmax, matmul, forward and backward, in turns.

    tests/bench/attention.py BUILD [ROUNDS [LENGTH ...]]

One sequence, 8 heads of width 64, f32, two threads.  PyTorch (that of /usr/bin/python3, as installed) keeps n x n
scores of each head: its lengths end where memory does.
"""
import os, pathlib, re, statistics, subprocess, sys

build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'build').resolve()
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
lengths = [int(x) for x in sys.argv[3:]] or [1024, 2048, 4096]
clean = {k: v for k, v in os.environ.items() if k not in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE')}
PEER = '''
import math, sys, time, torch
torch.set_num_threads(2)
n, best = int(sys.argv[1]), 1e9
q, k, v = (torch.randn(1, 8, n, 64, requires_grad=True) for _ in range(3))
hidden, g = ~torch.tril(torch.ones(n, n)).bool(), torch.randn(1, 8, n, 64)
for i in range(3):
    t = time.perf_counter()
    w = ((q @ k.transpose(-2, -1)) * (1 / math.sqrt(64))).masked_fill(hidden, float('-inf'))
    (torch.softmax(w, -1) @ v).backward(g)
    best = min(best, time.perf_counter() - t)
print(best * 1e3)
'''


def run(*command):
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'{command[0]} failed: {done.stderr.strip()[-400:]}')
    return done.stdout


for n in lengths:
    rows = []
    for _ in range(rounds):
        ours = run(build / 'tests/bench_pattern', str(n), str(n), 'none')
        peer = run('/usr/bin/python3', '-c', PEER, str(n))
        rows.append((float(re.search(r'dense +([0-9.]+) ms', ours)[1]), float(peer)))
    ratio = [b / a for a, b in rows]
    print(f'n {n:5}: tulle {statistics.median(a for a, _ in rows):8.1f} ms, PyTorch '
          f'{statistics.median(b for _, b in rows):8.1f} ms, {statistics.median(ratio):.2f} times as fast '
          f'({min(ratio):.2f} to {max(ratio):.2f})', flush=True)
