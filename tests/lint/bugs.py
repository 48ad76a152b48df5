#!/usr/bin/env python3
"""Every bug that tests/mutate.py and tests/simt/planted.py plant still has the text that it changes.  bugs.py ROOT"""
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
sys.dont_write_bytecode = True
sys.path[:0] = [str(root / 'tests'), str(root / 'tests/simt')]
import mutate                                            # noqa: E402
import planted                                           # noqa: E402

bugs = [(b[0], root / b[1], b[2]) for b in mutate.BUGS]
bugs += [(f[0], root / 'autograd/cuda' / f[1], f[2]) for f in planted.FAULTS]
stale = [f'{path.relative_to(root)}: {name}: has no {old!r}' for name, path, old in bugs if old not in path.read_text()]
for line in stale:
    print(line)
print(f'{len(bugs)} bugs, {len(stale)} wrong')
sys.exit(1 if stale else 0)
