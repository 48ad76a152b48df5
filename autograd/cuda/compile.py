#!/usr/bin/env python3
"""nvcc, and beside the object OUT a file OUT.usage of what each kernel takes: compile.py OUT NVCC ARGUMENTS..."""
import re, subprocess, sys

done = subprocess.run([*sys.argv[2:], '-Xptxas', '-v'], stderr=subprocess.PIPE, text=True)
with open(sys.argv[1] + '.usage', 'w') as f:
    for line in done.stderr.splitlines():
        if re.match(r'ptxas info|\s+\d+ bytes stack frame', line):
            f.write(line + '\n')
        else:
            print(line, file=sys.stderr)
sys.exit(done.returncode)
