#!/usr/bin/env python3
"""How many single tests the last `meson test` ran: count.py BUILD

Adds up what the cmocka programs and the scripts say of themselves in meson's log, and names what was skipped.
"""
import json, pathlib, re, sys

passed = failed = skipped = 0
names = []
for line in (pathlib.Path(sys.argv[1]) / 'meson-logs/testlog.json').read_text().splitlines():
    test = json.loads(line)
    text = test.get('stdout', '') + test.get('stderr', '')
    cmocka = {k: sum(map(int, re.findall(rf'\[  {k} *\] (\d+) test', text))) for k in ('PASSED', 'FAILED', 'SKIPPED')}
    script = re.findall(r'^(\d+) passed, (\d+) failed$', text, re.M)
    if any(cmocka.values()):
        passed, failed, skipped = passed + cmocka['PASSED'], failed + cmocka['FAILED'], skipped + cmocka['SKIPPED']
        names += re.findall(r'^\[  SKIPPED \] (\w+)$', text, re.M)
    elif script:
        passed, failed = passed + sum(int(p) for p, _ in script), failed + sum(int(f) for _, f in script)
    else:
        passed, failed = passed + (test['result'] == 'OK'), failed + (test['result'] not in ('OK', 'SKIP'))
        skipped += test['result'] == 'SKIP'
if names:
    print('skipped: ' + ' '.join(names))
print(f'{passed} passed, {failed} failed, {skipped} skipped')
