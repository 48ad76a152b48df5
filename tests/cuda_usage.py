#!/usr/bin/env python3
"""What each kernel of the GPU takes, as ptxas told when it was built: cuda_usage.py BUILD [--all]

For each architecture: registers of a thread, bytes of stack, bytes of registers that were spilled.  The table has the kernels
that take the most registers (--all: every one), and those that spill or have a stack.  Fails where that is more than a few
words: the double sine of `normal` has a stack, two sizes of attention backward spill two to four registers.
"""
import pathlib, re, subprocess, sys

MOST_STACK, MOST_SPILL = 64, 32         # bytes; a spill is stored and loaded


def read(path, kernels):
    arch = name = stack = spill = None
    for line in path.read_text().splitlines():
        if m := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            name, arch, stack, spill = m[1], m[2], 0, 0
        elif m := re.search(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads', line):
            stack, spill = int(m[1]), int(m[2]) + int(m[3])
        elif (m := re.search(r'Used (\d+) registers', line)) and name:
            kernels.setdefault(arch, {})[name] = (int(m[1]), stack, spill)


kernels, bad = {}, []
logs = sorted(pathlib.Path(sys.argv[1]).glob('autograd/cuda/libautograd_cuda.a.p/*.usage'))
for log in logs:
    read(log, kernels)
assert len(logs) > 10 and len(kernels) == 2, f'{len(logs)} files, architectures {list(kernels)}'
for arch, all_of in sorted(kernels.items()):
    names = sorted(all_of, key=lambda k: -all_of[k][0])
    shown = names if '--all' in sys.argv else names[:12]
    plain = subprocess.run(['c++filt'], input='\n'.join(shown), capture_output=True, text=True).stdout.splitlines()
    print(f'{arch}: {len(names)} kernels in {len(logs)} files; registers, bytes of stack, of spills')
    for n, p in zip(shown, plain):
        print('  %4d %6d %6d  %s' % (*all_of[n], p[:110]))
    for n, (_, stack, spill) in all_of.items():
        if stack or spill:
            print(f'  {n}: stack {stack}, spilled {spill}')
        if stack > MOST_STACK or spill > MOST_SPILL:
            bad.append(f'{arch} {n}')
print(*(f'too much: {b}' for b in bad), sep='\n')
sys.exit(bool(bad))
