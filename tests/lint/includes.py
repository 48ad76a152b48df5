#!/usr/bin/env python3
"""Includes point one way: includes.py ROOT

train -> layers, optim, data -> autograd -> autograd/base; kernels know neither tape nor op; a library that few files
may know stays in those; only train/main.c prints or exits.
"""
import pathlib
import re
import sys

MAY = {
    'autograd/base': {'autograd/base'},
    'autograd/cpu': {'autograd/cpu', 'autograd/base'},
    'autograd/cuda': {'autograd/cuda', 'autograd/base'},
    'autograd': {'autograd', 'autograd/base'},
    'autograd/ops': {'autograd', 'autograd/ops', 'autograd/base'},
    'layers': {'layers', 'autograd', 'autograd/base'},
    'optim': {'optim', 'autograd/base'},
    'data': {'data', 'autograd/base'},
    'train': {'train', 'layers', 'optim', 'data', 'autograd', 'autograd/base'},
}
KERNELS = {'autograd/kernels.h', 'autograd/tensor.h', 'autograd/unary.def', 'autograd/binary.def'}
DEVICE = {'autograd/device.h', 'autograd/flat.h'}
KNOWS = {'autograd/cpu': KERNELS, 'autograd/cuda': KERNELS | DEVICE, 'optim': DEVICE,
         'train': {'autograd/cuda/cuda.h'}}      # files of other folders
LIBRARIES = {
    r'H5|hdf5': r'data/hdf5\w*\.c|train/(h5|checkpoint)\.[ch]',
    r'libfyaml': r'train/config\w*\.c',
    r'curl/': r'data/download\.c',
    r'zlib': r'data/\w+\.c|train/h5\.c',
    r'cuda|cublas': r'autograd/cuda/.*',
}
OUTPUT = re.compile(r'\b(printf|puts|putchar|vprintf|exit|_exit|perror)\s*\(|\bfprintf\s*\(\s*std|\bstdout\b|\bstderr\b')
# The program talks in its commands and its status line; a guarded child process may only leave by _exit.
MAY_TALK = re.compile(r'train/(main|cmd_\w+|command|status)\.c')
MAY_LEAVE = re.compile(r'(data/guard|train/seal|train/h5)\.c')

root = pathlib.Path(sys.argv[1])
bad, seen = [], 0


def resolve(path, name):
    """The file that an include in quotes names, from the root."""
    for base in (root, path.parent):
        if (base / name).is_file():
            return (base / name).resolve().relative_to(root.resolve())
    return None


def strip(text):
    text = re.sub(r'/\*.*?\*/', lambda m: re.sub(r'[^\n]', ' ', m.group()), text, flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text)


for folder, allowed in MAY.items():
    for path in sorted((root / folder).glob('*')):
        if path.suffix not in ('.c', '.h', '.def', '.cu', '.cuh'):
            continue
        seen += 1
        here = path.relative_to(root).as_posix()
        text = path.read_text()
        for n, line in enumerate(text.splitlines(), 1):
            m = re.match(r'\s*#\s*include\s*(["<])([^">]+)', line)
            if not m:
                continue
            if m[1] == '<':
                for library, files in LIBRARIES.items():
                    if re.match(library, m[2]) and not re.fullmatch(files, here):
                        bad.append(f'{here}:{n}: includes <{m[2]}>, which is for {files}')
                continue
            target = resolve(path, m[2])
            if target is None:
                bad.append(f'{here}:{n}: there is no "{m[2]}"')
            elif target.parent.as_posix() not in allowed and target.as_posix() not in KNOWS.get(folder, ()):
                bad.append(f'{here}:{n}: {folder} may not include {target}')
        if path.suffix == '.c' and not MAY_TALK.fullmatch(here):
            for n, line in enumerate(strip(text).splitlines(), 1):
                m = OUTPUT.search(line)
                if m and not (MAY_LEAVE.fullmatch(here) and m[0].startswith('_exit')):
                    bad.append(f'{here}:{n}: prints or exits: {line.strip()}')

print(*bad, sep='\n', end='\n' if bad else '')
print(f'{seen} files, {len(bad)} wrong')
sys.exit(1 if bad or seen < 40 else 0)
