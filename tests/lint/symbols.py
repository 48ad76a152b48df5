#!/usr/bin/env python3
"""Symbols that a library exports start with the prefix of its folder: symbols.py PREFIX LIBRARY..."""
import subprocess
import sys

prefix, libraries = sys.argv[1], sys.argv[2:]
bad, seen = [], 0
for library in libraries:
    out = subprocess.run(['nm', '--defined-only', '--extern-only', '--format=posix', library],
                         capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        fields = line.split()
        # sanitizers add symbols of their own, which begin with underscores
        if len(fields) >= 3 and not fields[0].startswith('_'):
            seen += 1
            if not fields[0].startswith(prefix):
                bad.append(f'{library}: {fields[0]} does not start with {prefix}')
print(*bad, sep='\n', end='\n' if bad else '')
print(f'{seen} symbols, {len(bad)} wrong')
sys.exit(1 if bad or not seen else 0)
