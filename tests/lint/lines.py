#!/usr/bin/env python3
"""Size and form of the C files: lines.py ROOT

Files of at most 500 lines, lines of at most 100 columns, functions of at most 80 lines outside the kernels (90 in 100 of
them of at most 40), no tabs, no blanks at the end, comments only as /* */, and a first line that says what the file is.
"""
import pathlib
import re
import sys

FOLDERS = ['autograd', 'layers', 'optim', 'data', 'train', 'tests']
MAX_LINES, MAX_COLUMNS, MAX_FUNCTION, USUAL_FUNCTION = 500, 100, 80, 40

root = pathlib.Path(sys.argv[1])
bad, seen, lengths = [], 0, []


def without_text(line):
    return re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'', '""', line)


def check_functions(here, lines):
    """A function begins at a `{` in column 0 and ends at the next `}` there."""
    start = None
    for n, line in enumerate(lines, 1):
        if line.startswith('{'):
            start = n
        elif line.startswith('}') and start:
            lengths.append(n - start + 1)
            if n - start + 1 > MAX_FUNCTION and '/cpu/' not in here:
                bad.append(f'{here}:{start}: a function of {n - start + 1} lines')
            start = None


for folder in FOLDERS:
    for path in sorted((root / folder).rglob('*')):
        if path.suffix not in ('.c', '.h', '.def') or not path.is_file():
            continue
        seen += 1
        here = path.relative_to(root).as_posix()
        text = path.read_text()
        lines = text.split('\n')[:-1]
        if not text.endswith('\n'):
            bad.append(f'{here}: no newline at the end')
        if len(lines) > MAX_LINES:
            bad.append(f'{here}: {len(lines)} lines')
        head = '\n'.join(lines[:3])
        if f'{path.name} -- ' not in head and path.with_suffix('.h').name == path.name:
            bad.append(f'{here}: does not open with "{path.name} -- what it is"')
        code = re.sub(r'/\*.*?\*/', lambda m: re.sub(r'[^\n]', ' ', m.group()), text, flags=re.S).split('\n')
        for n, line in enumerate(lines, 1):
            if len(line) > MAX_COLUMNS:
                bad.append(f'{here}:{n}: {len(line)} columns')
            if '\t' in line:
                bad.append(f'{here}:{n}: a tab')
            if line != line.rstrip():
                bad.append(f'{here}:{n}: blanks at the end')
            if '//' in without_text(code[n - 1]):
                bad.append(f'{here}:{n}: a // comment')
        check_functions(here, lines)

lengths.sort()
usual = lengths[len(lengths) * 9 // 10] if lengths else 0
if usual > USUAL_FUNCTION:
    bad.append(f'one function in ten has more than {usual} lines, wanted {USUAL_FUNCTION}')
print(*bad, sep='\n', end='\n' if bad else '')
print(f'{seen} files, {len(lengths)} functions, 9 in 10 of at most {usual} lines, {len(bad)} wrong')
sys.exit(1 if bad or seen < 60 else 0)
