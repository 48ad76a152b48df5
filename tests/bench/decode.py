#!/usr/bin/env python3
"""A token of tulle, dense and with its sparse parts, beside PyTorch's torch.mv, in turns.

    tests/bench/decode.py BUILD [ROUNDS [THREADS ...]]

Each round runs `tulle bench decode` and PyTorch once; a row shows the median of the rounds, the ratio to the dense row
and to PyTorch as the medians of the ratios within a round, and the bytes per second beside what the machine reads.
"""
import json, os, pathlib, statistics, subprocess, sys

root = pathlib.Path(__file__).resolve().parents[2]
build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'build').resolve()
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
threads = [int(x) for x in sys.argv[3:]] or [1, 2]
clean = {k: v for k, v in os.environ.items() if k not in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE')}
sizes = [('6 x 384', dict(layers=6, heads=6, width=384)), ('12 x 1024', dict(layers=12, heads=16, width=1024))]


def run(command, threads):
    env = dict(clean, OPENBLAS_NUM_THREADS=str(threads))       # torch.set_num_threads does not reach it
    out = subprocess.run([str(c) for c in command], env=env, cwd=root, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f'{command}: {out.stderr}')
    return [json.loads(line) for line in out.stdout.splitlines()]


for title, s in sizes:
    for n in threads:
        seen, torch = {}, []
        for _ in range(rounds):
            for row in run([build / 'train/tulle', 'bench', 'decode', 'configs/shakespeare-sparse.yaml',
                            f'model.n_layers={s["layers"]}', f'model.n_heads={s["heads"]}',
                            f'model.d_model={s["width"]}', 'model.d_ff=0', 'model.context=256', 'model.ff.block=64',
                            f'model.attention.modules={max(16, s["width"] // 32)}', f'train.threads={n}', '--json'], n):
                seen.setdefault(row['model'], []).append(row)
            torch += run(['/usr/bin/python3', root / 'tests/bench/torch_decode.py', '--threads', n,
                          *[x for k, v in s.items() for x in (f'--{k}', v)]], n)
        print(f'\n{title}, {n} threads, {rounds} rounds')
        peer = [r['ms_per_token'] for r in torch]
        dense = [r['ms_per_token'] for r in seen['dense']]
        print(f'  {"PyTorch, torch.mv":18s} {statistics.median(peer):9.3f} ms')
        for name, rows in seen.items():
            mine = [r['ms_per_token'] for r in rows]

            def ratio(other):
                return statistics.median(o / m for o, m in zip(other, mine))
            share = statistics.median(r['gb_per_second'] / r['read_gb_per_second'] for r in rows)
            print(f'  {name:18s} {statistics.median(mine):9.3f} ms ({min(mine):.3f} to {max(mine):.3f})  '
                  f'{ratio(dense):5.2f} x dense  {ratio(peer):5.2f} x PyTorch  {rows[0]["touched"] / 1e6:7.2f} M of '
                  f'{rows[0]["params"] / 1e6:7.2f} M weights  {100 * share:3.0f} % of '
                  f'{statistics.median(r["read_gb_per_second"] for r in rows):.1f} GB/s', flush=True)
