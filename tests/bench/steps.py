#!/usr/bin/env python3
"""Training steps of tulle beside PyTorch's, in turns, so that both see the same machine.

    tests/bench/steps.py BUILD [ROUNDS] [NAME ...]

Names: gpt gpt-dropout gpt-bf16 cpu mnist, and sparse, sparse-mnist: hard steps of the sparse feed-forward layer beside the
other ways to train it and beside the dense one, all tulle's (default: all).  Each round runs every program once; a row shows the median of the
rounds, their spread, and the ratio of tulle to the peer as the median of the ratios within a round.  The peak of the
machine (register-only multiply-adds) is measured in the same rounds.  PyTorch is that of /usr/bin/python3.
"""
import json, os, pathlib, statistics, subprocess, sys, tempfile

root = pathlib.Path(__file__).resolve().parents[2]
build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'build').resolve()
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
only = sys.argv[3:]
clean = {k: v for k, v in os.environ.items() if k not in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE')}
malloc = dict(clean, GLIBC_TUNABLES='glibc.malloc.hugetlb=1', MALLOC_MMAP_THRESHOLD_='4294967296',
              MALLOC_TRIM_THRESHOLD_='1099511627776', MALLOC_TOP_PAD_='268435456', OMP_PROC_BIND='true')

GPT = ['configs/shakespeare-dense.yaml', 'model.bias=false', 'model.activation=gelu', 'model.tied_embeddings=true',
       'optim.type=adamw', 'optim.weight_decay=0.1', 'optim.clip_norm=0']
SPARSE = [GPT[0].replace('dense', 'sparse'), *GPT[1:], 'model.dropout=0', 'model.ff.type=sparse', 'model.ff.block=64']
AFTER, SOFT = 'model.ff.mask_order=after_relu', 'model.ff.quant_prob=0'
CPU = dict(layers=4, heads=4, width=128, context=64, batch=12, steps=100, warm=10)


def shim():
    out = pathlib.Path(tempfile.gettempdir()) / f'tulle-shim-{os.getuid()}.so'
    done = subprocess.run(['cc', '-O2', '-shared', '-fPIC', root / 'tests/bench/shim_dnnl.c', '-o', out, '-ldnnl'],
                          capture_output=True)
    return dict(malloc, LD_PRELOAD=str(out)) if done.returncode == 0 else malloc


def tulle(config, steps, warm):
    return [build / 'train/tulle', 'bench', *config, '--json', '--steps', str(steps), '--warm', str(warm)], clean


def torch(script, env, **flags):
    args = [x for k, v in flags.items() for x in ([f'--{k}'] if v is True else [f'--{k}', str(v)])]
    return ['/usr/bin/python3', root / 'tests/bench' / script, *args], env


best = shim()
tables = {
    'gpt': ('GPT 6 x 384, 6 heads, context 256, batch 64, AdamW', {
        'tulle': tulle(GPT + ['model.dropout=0'], 3, 1),
        'PyTorch as installed': torch('torch_gpt.py', clean, steps=2),
        'PyTorch, best settings': torch('torch_gpt.py', best, best=True, steps=2)}),
    'gpt-dropout': ('the same with dropout 0.2', {
        'tulle': tulle(GPT, 3, 1),
        'PyTorch as installed': torch('torch_gpt.py', clean, dropout=0.2, steps=2),
        'PyTorch, best settings': torch('torch_gpt.py', best, best=True, dropout=0.2, steps=2)}),
    'gpt-bf16': ('the first in bfloat16', {
        'tulle': tulle(GPT + ['model.dropout=0', 'train.precision=bf16'], 3, 1),
        'tulle in fp32': tulle(GPT + ['model.dropout=0'], 3, 1),
        'PyTorch as installed': torch('torch_gpt.py', clean, bf16=True, steps=2),
        'PyTorch, best settings': torch('torch_gpt.py', malloc, best=True, bf16=True, steps=2)}),
    'cpu': ('configs/shakespeare-cpu.yaml', {
        'tulle': tulle(['configs/shakespeare-cpu.yaml'], 200, 20),
        'PyTorch as installed': torch('torch_gpt.py', clean, **CPU),
        'PyTorch, best settings': torch('torch_gpt.py', best, best=True, **CPU)}),
    'sparse': ('GPT 6 x 384, batch 64, AdamW, 1 unit of 64: tulle = hard steps, mask before the ReLU', {
        'tulle': tulle(SPARSE + ['model.ff.quant_prob=1'], 3, 1),
        'dense': tulle(GPT + ['model.dropout=0'], 3, 1),
        'hard, mask after': tulle(SPARSE + ['model.ff.quant_prob=1', AFTER], 3, 1),
        'soft': tulle(SPARSE + [SOFT], 3, 1)}),
    'sparse-mnist': ('configs/mnist-sparse.yaml', {
        'tulle': tulle(['configs/mnist-sparse.yaml'], 2000, 100),
        'mask before the ReLU': tulle(['configs/mnist-sparse.yaml', 'model.ff.mask_order=before_relu'], 2000, 100),
        'dense': tulle(['configs/mnist-dense.yaml'], 2000, 100)}),
    'mnist': ('configs/mnist-dense.yaml', {
        'tulle': tulle(['configs/mnist-dense.yaml'], 2000, 100),
        'PyTorch as installed': torch('torch_mnist.py', clean)}),
}


def run(command, env):
    out = subprocess.run([str(c) for c in command], env=env, cwd=root, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f'{command}: {out.stderr}')
    return json.loads(out.stdout.strip().splitlines()[-1])


def peak():
    """GFLOP/s of all cores, from `bench_gemm --peak`; None where it was not built."""
    tool = build / 'tests/bench_gemm'
    if not tool.exists():
        return None
    out = subprocess.run([tool, '--peak'], env=dict(clean, OMP_PROC_BIND='true'), capture_output=True, text=True)
    return float(out.stdout.split()[0]) if out.returncode == 0 else None


for key, (title, rows) in tables.items():
    if only and key not in only:
        continue
    seen = {name: [] for name in rows}
    peaks = []
    for _ in range(rounds):
        for name, (command, env) in rows.items():
            seen[name].append(run(command, env))
            if name == 'tulle':
                peaks.append(peak())
    print(f'\n{title}: {rounds} rounds')
    mine = [r['per_second'] for r in seen['tulle']]
    for name, results in seen.items():
        rate = [r['per_second'] for r in results]
        ratio = statistics.median(a / b for a, b in zip(mine, rate))
        memory = max(r['peak_memory'] for r in results) / 1e6
        print(f'  {name:24s} {statistics.median(rate):10.0f} {results[0]["unit"]}/s ({min(rate):.0f} to {max(rate):.0f})'
              f'  {memory:6.0f} MB' + (f'  tulle is {ratio:.2f} x as fast' if name != 'tulle' else ''), flush=True)
    if all(peaks):
        share = statistics.median(r['gflop_per_second'] / p for r, p in zip(seen['tulle'], peaks))
        print(f'  tulle: {statistics.median(r["gflop_per_second"] for r in seen["tulle"]):.0f} GFLOP/s counted, '
              f'{100 * share:.0f} % of the peak of {statistics.median(peaks):.0f} GFLOP/s; start to first step '
              f'{statistics.median(r["start_seconds"] for r in seen["tulle"]):.2f} s')
