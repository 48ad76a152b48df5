#!/usr/bin/env python3
"""Kills a training run at random times and resumes it: kill_resume.py TULLE CONFIG N [SEED]

The state at the end must have the same hash, and metrics.jsonl the same lines apart from clock times, as
those of a run that nobody interrupted.  Prints `N passed, N failed`.
"""
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

STEPS, EVERY = 200, 10
SETTINGS = ["train.steps=%d" % STEPS, "checkpoint.every=%d" % EVERY]
RUN_DIR = "run.dir="
STATE = re.compile(r"state sha256 ([0-9a-f]{64})")
CLOCK_KEYS = re.compile(r"time|seconds|_s$|per_s|_ms$|eta|rss|memory")
STOPPED = 75                     # exit code: stopped by a signal, resumable


class Case:
    def __init__(self, tulle, config, top):
        self.tulle, self.config, self.top = os.path.abspath(tulle), config, top

    def train(self, folder):
        return [self.tulle, "train", self.config, RUN_DIR + folder] + SETTINGS

    def command(self, folder):
        """To start the run, or to go on with it once there is something to go on with."""
        begun = os.path.exists(os.path.join(folder, "config.yaml"))
        return [self.tulle, "resume", folder] if begun else self.train(folder)


def finish(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = STATE.findall(done.stdout)
    if done.returncode != 0 or not found:
        raise RuntimeError("exit %d, %s state line\n%s" % (done.returncode, len(found) or "no",
                                                           done.stdout[-2000:]))
    return found[-1]


def metrics(folder):
    lines = []
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        for line in f:
            record = json.loads(line)
            lines.append({k: v for k, v in record.items() if not CLOCK_KEYS.search(k)})
    return [r for r in lines if "state" not in r]


def kill_once(command, after, how):
    """Starts a command and sends a signal after that time; its exit status, None if it was killed."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        out, _ = child.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        child.send_signal(how)
        out, _ = child.communicate()
    return child.returncode, out


def one_run(case, folder, kills, length, rng):
    """The hash of a run that is interrupted up to `kills` times; the number of interruptions."""
    hits = 0
    for _ in range(kills):
        how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        code, out = kill_once(case.command(folder), rng.uniform(0, length), how)
        if code == 0:
            return STATE.findall(out)[-1], hits
        hits += 1
        if code not in (-signal.SIGKILL, -signal.SIGTERM, STOPPED):
            raise RuntimeError("exit %d after signal %d\n%s" % (code, how, out[-2000:]))
    return finish(case.command(folder)), hits


def main():
    tulle, config, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else random.randrange(1 << 30)
    rng = random.Random(seed)
    passed = failed = done = run = 0
    with tempfile.TemporaryDirectory() as top:
        case = Case(tulle, config, top)
        whole = os.path.join(top, "whole")
        begin = time.monotonic()
        want = finish(case.train(whole))
        length = time.monotonic() - begin
        lines = metrics(whole)
        while done < n and run < 20 * n:
            folder = os.path.join(top, "run%d" % run)
            run += 1
            try:
                got, hits = one_run(case, folder, min(8, n - done), length / 2, rng)
                wrong = "state %s, not %s" % (got, want) if got != want else \
                    "other metrics" if metrics(folder) != lines else None
            except (RuntimeError, IndexError, ValueError) as e:
                wrong, hits = str(e), 1
            done += hits
            passed += wrong is None
            failed += wrong is not None
            if wrong:
                print("FAILED run %d (seed %d): %s" % (run, seed, wrong))
        print("%d runs, %d interruptions, seed %d" % (run, done, seed))
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed or not passed or done < n else 0)


main()
