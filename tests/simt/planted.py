#!/usr/bin/env python3
"""Plants faults, one at a time, in the kernels of autograd/cuda: the tests on the CPU must find each.
planted.py ROOT BUILD [WORD]

BUILD: a build folder whose tests are built.  WORD: only the faults whose name has it.  A fault says which builds must
find it: p, plain in five orders of threads; a, AddressSanitizer and UndefinedBehaviorSanitizer; t, ThreadSanitizer.
Prints which did, then `N passed, N failed`.  A fault that no longer applies, or does not compile, has failed.
"""
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

# what is wrong, file, text, text instead, files to compile, test and its arguments, builds that must find it
FAULTS = [
    ('team: the parts are written while others read them', 'team.cuh',
     '/* [warps] */\n    __syncthreads();', '/* [warps] */', 'rows', 'simt_ops cross_entropy', 't'),
    ('team: the parts are read before they are written', 'team.cuh',
     '= v;\n    __syncthreads();', '= v;', 'rows', 'simt_ops cross_entropy', 'pt'),
    ('team: one lane does not take part in the last step', 'team.cuh',
     'v = f(v, __shfl_xor_sync(AG_WARP, v, d));', 'if (d > 1 || threadIdx.x != 5) v = f(v, __shfl_xor_sync(AG_WARP, v, d));',
     'rows', 'simt_ops cross_entropy', 'pat'),
    ('group: counts are cleared while others count', 'group.cu', 'count[t] = 0;\n    __syncthreads();', 'count[t] = 0;',
     'group', 'simt_ops embedding', 't'),
    ('group: a count is not atomic', 'group.cu', 'atomicAdd(count + digit_of(p, key), 1);', 'count[digit_of(p, key)]++;',
     'group', 'simt_ops embedding', 't'),
    ('group: a warp counts while others of it read', 'group.cu',
     ': -1;\n        __syncwarp();', ': -1;', 'group', 'simt_ops embedding', 't'),
    ('group: no barrier before all digits are read', 'group.cu',
     'shared[warp] = upto;\n    __syncthreads();', 'shared[warp] = upto;', 'group', 'simt_ops embedding', 't'),
    ('draw: sums by digit are read before they are written', 'draw.cu',
     '        });\n        __syncthreads();', '        });', 'draw', 'simt_draw', 'pt'),
    ('draw: a digit is chosen before the totals are written', 'draw.cu',
     '= sum;\n        }\n        __syncthreads();', '= sum;\n        }', 'draw', 'simt_draw', 'pt'),
    ('draw: sums are cleared while others read the largest', 'draw.cu', 'v = team_fold(v, f);\n    __syncthreads();',
     'v = team_fold(v, f);', 'draw', 'simt_draw', 't'),
    ('draw: less shared memory than the sums take', 'draw.cu', '(DRAW_DIGITS * DRAW_THREADS + DRAW_DIGITS) *',
     '(DRAW_DIGITS * DRAW_THREADS) *', 'draw', 'simt_draw', 'pat'),
    ('draw: of equal numbers the last is the larger', 'draw.cu', '- 1 - (uint64_t)i)', '- 1 - (uint64_t)(f.n - 1 - i))', 'draw',
     'simt_draw', 'p'),
    ('live: no barrier before the sums of warps are read', 'live.cu',
     'at + n] = s[n];\n    __syncthreads();', 'at + n] = s[n];', 'live', 'simt_live agrees*', 'pt'),
    ('live: no barrier before the sums of a long row are read', 'live.cu',
     '/ 32] = s;\n    __syncthreads();', '/ 32] = s;', 'live', 'simt_live agrees*', 'pt'),
    ('live: threads without a column return before the barrier', 'live.cu',
     '    __syncthreads();\n    const int i = (int)threadIdx.x;\n    if (i >= COLS || first + i >= l.d) return;',
     '    const int i = (int)threadIdx.x;\n    if (i >= COLS || first + i >= l.d) return;\n    __syncthreads();', 'live',
     'simt_live agrees*', 'pat'),
    ('live: one lane of a warp waits for the block', 'live.cu',
     'if (lane == 0) part[WARPS * COLS + warp] = hs;\n    __syncthreads();',
     'if (lane == 0) {\n        part[WARPS * COLS + warp] = hs;\n        __syncthreads();\n    }\n    __syncwarp();', 'live',
     'simt_live agrees*', 'pat'),
    ('live: less shared memory than the sums take', 'live.cu', '(WARPS * COLS + WARPS) * sizeof(float)',
     'WARPS * COLS * sizeof(float)', 'live', 'simt_live agrees*', 'pat'),
    ('live: blocks write to the columns of others', 'live.cu', 'first = blockIdx.x / l.rows * COLS;', 'first = 0;', 'live',
     'simt_live agrees*', 'pt'),
    ('live: weights are read before the others have them', 'live_tile.cu',
     'copies.wait();\n    __syncthreads();', 'copies.wait();', 'live_tile', 'simt_live tiles*', 'pt'),
    ('live: shared memory of a row of weights too few', 'live_tile.cu', '(size_t)t.held, l, t,',
     '(size_t)t.held - 128 * (size_t)t.packs, l, t,', 'live_tile', 'simt_live tiles*', 'pat'),
    ('choose: factors are read before the others have them', 'choose.cu',
     'copies.wait();\n        __syncthreads();', 'copies.wait();', 'choose', 'simt_live agrees*', 'pt'),
    ('choose: factors are overwritten while others read them', 'choose.cu', 'if (k0) __syncthreads();', '', 'choose',
     'simt_live agrees*', 't'),
    ('experts: tiles are read before the others have them', 'live_group.cu',
     'copies.wait();\n        __syncthreads();', 'copies.wait();', 'live_group', 'simt_live experts*', 'pt'),
    ('experts: results take the place of tiles that others read', 'live_group.cu',
     '    __syncthreads();\n    float *const out', '    float *const out', 'live_group', 'simt_live experts*', 'pt'),
    ('experts: a tile has an entry of the next choice', 'live_group.cu', 'first[k + 1] - ret->from);',
     'first[k + 1] - ret->from + 1);', 'live_group', 'simt_live experts*', 'p'),
    ('attention: a tile is loaded while others read the one before', 'attention_fma.cu',
     'j0 += TILE) {\n        __syncthreads();', 'j0 += TILE) {', 'attention_fma', 'simt_attention', 'pt'),
    ('attention: a tile is read while others load it', 'attention_fma.cu',
     'a.vectors);\n        __syncthreads();\n        nt<D>(q, k', 'a.vectors);\n        nt<D>(q, k', 'attention_fma',
     'simt_attention', 'pt'),
    ('attention: weights are read before the warp wrote them', 'attention_fma.cu',
     'weights_store(w, x);\n        __syncwarp();', 'weights_store(w, x);', 'attention_fma', 'simt_attention', 't'),
    ('attention: one key too many is seen', 'attention_fma.cu', 'j + 16 * c < see ?', 'j + 16 * c <= see ?', 'attention_fma',
     'simt_attention', 'p'),
    ('attention: shared memory of one tile too few', 'attention_fma.cu', 'room<D>(3)', 'room<D>(2)', 'attention_fma',
     'simt_attention', 'pat'),
    ('blocks: the mask is that of the row beside', 'blocks.cuh', 's.mask * TILE + row]', 's.mask * TILE + (row ^ 1)]',
     'blocks_fma', 'simt_blocks local_and_strided', 'p'),
    ('blocks: the last step of a tile is left out', 'tiles.cu', 't.end = (int32_t)m->y->n_step;',
     't.end = (int32_t)m->y->n_step - (m->y->n_step > t.begin + 1);', 'tiles', 'simt_blocks local_and_strided', 'p'),
    ('blocks: a step is read while others load it', 'blocks_fma.cu',
     'a.vectors);\n        __syncthreads();\n        nt<D>(q, k', 'a.vectors);\n        nt<D>(q, k', 'blocks_fma',
     'simt_blocks local_and_strided', 'pt'),
    ('blocks: a buffer is filled while others read it', 'blocks_mma.cu',
     'copies.wait();\n        __syncthreads();             /* it', 'copies.wait();\n        __syncwarp();             /* it',
     'blocks_mma', 'simt_blocks local_and_strided', 'pt'),
    ('blocks: sums go on from a part that does not exist', 'blocks_fma.cu', 'if (b.first || query[r] < 0)',
     'if (query[r] < 0)', 'blocks_fma', 'simt_blocks local_and_strided', 'pat'),
    ('controller: noise comes while others load', 'controller.cuh', 'tile_fill(t, s, z);\n    __syncthreads();',
     'tile_fill(t, s, z);', 'controller',
     'simt_ops control', 't'),
    ('controller: the last column of a tile is not loaded', 'controller.cuh', 'c < s.cols; c += t.row_threads',
     'c + 1 < s.cols; c += t.row_threads', 'controller', 'simt_ops control', 'p'),
    ('adafactor: a sum begins while the one before is read', 'factored.cu',
     'v = block_sum(v, s);\n        __syncthreads();\n        p2', 'v = block_sum(v, s);\n        p2', 'factored', 'simt_optim same_bits*', 't'),
    ('adafactor: rows are measured before their factors are there', 'factored.cu',
     '(float)by;\n        }\n        __syncthreads();', '(float)by;\n        }', 'factored', 'simt_optim same_bits*', 'pt'),
    ('adafactor: the last part of a matrix is left out of its columns', 'factored.cu',
     'k < m.n_parts; k++) sum +=', 'k + 1 < m.n_parts; k++) sum +=', 'factored', 'simt_optim agrees*', 'p'),
    ('adafactor: less shared memory than the factors of rows take', 'factored.cu', 'sums + ROWS * sizeof(float)', 'sums',
     'factored', 'simt_optim same_bits*', 'pat'),
    ('scan: a step takes the positions of the next', 'scan.cu', 'const int64_t i = last - k;\n            const float *row',
     'const int64_t i = last - k + (k == 7);\n            const float *row', 'scan', 'simt_ops sru', 'p'),
    ('scan: a thread too many has a channel', 'scan.cu', 'if (id >= channels) return;', 'if (id > channels) return;', 'scan',
     'simt_ops sru', 'pat'),
    ('lsh: positions of a bucket are sorted the other way round', 'group.cu', 'before = same & ((1u << lane) - 1);',
     'before = same & ~((2u << lane) - 1);', 'group', 'simt_lsh small*', 'p'),
    ('lsh: the ring ends a chunk late', 'lsh.cuh', 'g >= a.all ?', 'g > a.all ?', 'lsh lsh_tiles lsh_any', 'simt_lsh small*', 'p'),
    ('lsh: rows of a tile are put while others look at those before', 'lsh_tiles.cu', '__syncthreads();\n        keys_put', 'keys_put',
     'lsh_tiles', 'simt_lsh small*', 't'),
    ('lsh: rows are gathered before it is known which', 'lsh_tiles.cu', 'queries_put(a, e, qs, u0);\n        __syncthreads();',
     'queries_put(a, e, qs, u0);', 'lsh_tiles', 'simt_lsh small*', 'pt'),
    ('lsh: a lane writes what others read of the rounds before', 'lsh_tiles.cu', '    __syncwarp();\n    if (!is) return;',
     '    if (!is) return;', 'lsh_tiles', 'simt_lsh small*', 't'),
    ('lsh: less shared memory than the sides take', 'lsh_tiles.cu', '2 * side_bytes(a)', 'side_bytes(a)', 'lsh_tiles',
     'simt_lsh small*', 'pat'),
    ('lsh: of equal numbers the last is the bucket', 'lsh_hash.cu', 'at < b->at', 'at > b->at', 'lsh_hash', 'simt_lsh ties*', 'p'),
    ('lsh: counts are read before all warps have them', 'lsh_decode.cu', '    __syncthreads();\n    int before', '    int before',
     'lsh_decode', 'simt_lsh decodes', 't'),
    ('graph: the noise is that of the step that was captured', 'noise.cu', 'z = ag_noise_now(z);', '', 'noise', 'simt_graph bits*', 'pa'),
    ('graph: the noise of attention is that of the step that was captured', 'attention.cuh',
     'const ag_noise z = ag_noise_now(a.noise);', 'const ag_noise z = a.noise;', 'attention_fma', 'simt_graph bits*', 'pa'),
    ('graph: the choice is that of the step that was captured', 'controller.cuh', 'ag_noise_now(t.noise)', 't.noise',
     'controller choose', 'simt_graph *', 'pa'),
    ('graph: what the host reads in the middle is taken for read', 'device.cu', 'if (bytes && is_captured("reads numbers")) {',
     'if (bytes && ag_cuda_captures()) {', 'device', 'simt_graph bits*', 'pa'),
    ('optimizer: a sum goes on before the step before is done', 'flat.cuh',
     '        __syncthreads();\n        if (threadIdx.x < half)', '        if (threadIdx.x < half)', 'flat', 'simt_optim', 't'),
]
BUILDS = {'p': '', 'a': '_asan', 't': '_tsan'}
SEEDS = {'p': '01234', 'a': '1', 't': '1'}


def commands(build, target):
    """The commands that make a target, as lists of words."""
    text = subprocess.run(['ninja', '-C', build, '-t', 'commands', target], capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in text.splitlines()]


def run(words, folder):
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, errors='replace')


def compile_kernel(build, variant, source, to):
    """The object of a changed kernel file, or what the compiler said."""
    library = f'tests/simt/libautograd_simt{variant}.a'
    for words in commands(build, library):
        if '-c' in words and words[words.index('-c') + 1].endswith('/' + source.name):
            words = list(words)
            words[words.index('-c') + 1] = str(source)
            words[words.index('-o') + 1] = str(to)
            words[words.index('-MF') + 1] = str(to) + '.d'
            done = run(words, build)
            return '' if done.returncode == 0 else done.stderr[-1500:]
    return f'nothing compiles {source.name}'


def link_test(build, test, objects, to):
    """The test with these objects before those of its libraries."""
    words = list(commands(build, test)[-1])
    if words[:2] == [':', '&&']:
        words = words[2:]
    words = words[:words.index('&&')] if '&&' in words else words
    at = words.index('-o')
    words[at + 1] = str(to)
    done = run(words[:at] + ['-o', str(to)] + [str(o) for o in objects] + words[at + 2:], build)
    return '' if done.returncode == 0 else done.stderr[-1500:]


def finds(program, args, build, kind):
    """Does a run of the test, in one of the orders, end badly?"""
    for seed in SEEDS[kind]:
        env = dict(os.environ, TULLE_SIMT_SEED=seed, OMP_NUM_THREADS='1', TSAN_OPTIONS='halt_on_error=1',
                   ASAN_OPTIONS='detect_leaks=0')
        try:
            done = subprocess.run([program] + args, cwd=build, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  timeout=900)
        except subprocess.TimeoutExpired:
            return True
        if done.returncode != 0:
            return True
    return False


def try_fault(folder, build, fault):
    """Builds that find the fault, and what went wrong, '' if nothing did."""
    name, file, old, new, sources, test, must = fault
    path = folder / 'cuda' / file
    text = path.read_text()
    if old not in text:
        return '', 'no longer applies'
    path.write_text(text.replace(old, new, 1))
    found, (exe, *args) = '', test.split()
    try:
        for kind, variant in BUILDS.items():
            objects = [folder / f'{s}.o' for s in sources.split()]
            for s, o in zip(sources.split(), objects):
                wrong = compile_kernel(build, variant, folder / 'cuda' / f'{s}.cu', o)
                if wrong:
                    return found, 'does not compile: ' + wrong
            wrong = link_test(build, f'tests/test_{exe}{variant}', objects, folder / 'test')
            if wrong:
                return found, 'does not link: ' + wrong
            if finds(folder / 'test', args, build, kind):
                found += kind
    finally:
        path.write_text(text)
    missed = [k for k in must if k not in found]
    return found, f'not found by {" ".join(missed)}' if missed else ''


def main():
    root, build = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    word = sys.argv[3] if len(sys.argv) > 3 else ''
    faults = [f for f in FAULTS if word in f[0]]
    for exe, *args in sorted({tuple(f[5].split()) for f in faults}):
        for kind, variant in BUILDS.items():
            if finds(build / f'tests/test_{exe}{variant}', args, build, kind):
                sys.exit(f'test_{exe}{variant} {" ".join(args)} fails without a fault')
    failed = 0
    print(f'{"plain":>6} {"asan":>6} {"tsan":>6}')
    with tempfile.TemporaryDirectory() as temp:
        folder = pathlib.Path(temp)
        shutil.copytree(root / 'autograd/cuda', folder / 'cuda')
        for fault in faults:
            found, wrong = try_fault(folder, build, fault)
            print(*(f'{"found" if k in found else "-":>6}' for k in BUILDS), '', fault[0], flush=True)
            if wrong:
                failed += 1
                print(f'FAILED: {fault[0]}: {wrong}', flush=True)
    print(f'{len(faults) - failed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
