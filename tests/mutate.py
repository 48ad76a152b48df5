#!/usr/bin/env python3
"""Plants known bugs, one at a time, in a copy of the tree: each must be caught by a suite.  mutate.py ROOT [WORD]

WORD: only the bugs whose name has it.  Prints `N passed, N failed`.  A bug that no longer applies, or does not
compile, has failed.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

MESON = shutil.which('meson', path='/usr/bin') or 'meson'

# what is wrong, file, text, text instead, tests that may catch it
BUGS = [
    ('gelu slope 0.1 % too large', 'autograd/cpu/ref_map_tmpl.h',
     'return R(0.5 * (1 + th) +', 'return R(0.5005 * (1 + th) +', 'gradcheck'),
    ('sigmoid gradient 0.01 % too large', 'autograd/unary.def', 'y * (1 - y),', 'R(1.0001) * y * (1 - y),', 'gradcheck'),
    ('div: sign of db', 'autograd/binary.def', '-y / b', 'y / b', 'gradcheck'),
    ('layernorm backward forgets the mean of g', 'autograd/cpu/ref_tmpl.c', '(g - sg / (double)n - ', '(g - ',
     'gradcheck'),
    ('layernorm backward divides by n - 1', 'autograd/cpu/ref_tmpl.c', 'rs * sgx / (double)n',
     'rs * sgx / (double)(n > 1 ? n - 1 : 1)', 'gradcheck'),
    ('softmax backward writes = where it owes +=', 'autograd/cpu/ref_tmpl.c', 'put(dx + j, acc, was_log',
     'put(dx + j, false, was_log', 'gradcheck'),
    ('cross-entropy divides by all rows', 'autograd/cpu/ref_tmpl.c', 'count += target[i] >= 0;', 'count++;',
     'gradcheck layers rows'),
    ('dropout backward keeps other elements', 'autograd/ops/dropout.c',
     '    const ag_noise z = noise_of(c);\n    bool acc;', '    ag_noise z = noise_of(c);\n    z.step++;\n    bool acc;',
     'gradcheck'),
    ('matmul backward of b ignores ta', 'autograd/ops/matmul.c', 'product(c->k, !ta, false, s.k',
     'product(c->k, true, false, s.k', 'gradcheck'),
    ('linear hands its residual gradient on after changing it', 'autograd/ops/linear.c',
     'if (keeps_dy(c) && !(ds', 'if (!c->in[R] && !(ds', 'gradcheck tape'),
    ('linear takes y for the value before the activation', 'autograd/ops/linear.c', 'act != AG_ACT_NONE && (act',
     'act > AG_ACT_RELU && (act', 'gradcheck tape kernels'),
    ('hard mask has another gradient than the soft one', 'autograd/ops/control.c',
     'c->k->controller_fwd(&a, c->in[0]->data, c->out[0]->data, c->out[1]->data, c->saved)',
     'c->k->controller_fwd(&a, c->in[0]->data, c->out[0]->data, c->out[1]->data, a.hard ? c->out[0]->data : c->saved)',
     'gradcheck'),
    ('attention looks one key ahead', 'autograd/cpu/ref_attention_tmpl.h', 'e.j <= e.i + a->q_pos0',
     'e.j <= e.i + a->q_pos0 + 1', 'decode kernels'),
    ('the cache writes the new keys of sequence 0 only', 'autograd/ops/attend_cached.c', 'b < kv->batch; b++)',
     'b < 1; b++)', 'decode'),
    ('strided parts have again what others have', 'autograd/pattern.c', 'if (!is_earlier(m, i, j)) m->seen[j] |= bit;',
     'm->seen[j] |= bit;', 'pattern'),
    ('a summary lies one key too far left', 'autograd/pattern.c', 'l - (f->index + 1) * c, hi = lo + c',
     'l - (f->index + 1) * c - (c < l), hi = lo + c', 'pattern'),
    ('all heads have one summary', 'layers/pattern.c', 'return h / p->n_lists % k;', 'return 0 * h % k;', 'pattern_text'),
    ('heads of other lists take their turns too', 'layers/pattern.c', 'return h / p->n_lists % k;', 'return h % k;',
     'pattern_text'),
    ('entries of layers do not repeat', 'layers/pattern.c', 'p->of[layer % p->period]',
     'p->of[layer < p->period ? layer : 0]', 'pattern_text'),
    ('pairs of one head are for all', 'layers/pattern_file.c', 'r->head = (int32_t)key;', 'r->head = -1;', 'pattern_text'),
    ('decoding forgets the pattern', 'layers/attention.c', 'const ag_attention_options o = options(l, mode);',
     'ag_attention_options o = options(l, mode);\n    if (cache) o.pattern = NULL;', 'pattern_op'),
    ('a cache goes on beyond its pattern', 'autograd/ops/attend_cached.c', 'kv->length + x->dim[1] > p->n)',
     'x->dim[1] > p->n)', 'pattern_op'),
    ('starts of examples are those of their place in the part', 'layers/position.c', 'ag_noise_at(z, e, i, WORDS)',
     'ag_noise_at(z, e - z->row0, i, WORDS)', 'position'),
    ('evaluation starts anywhere', 'layers/position.c', 'return mode == NN_TRAIN && (l', 'return mode != NN_EVAL && (l',
     'position position_models'),
    ('all bases but the first are 13', 'layers/position.c', '{ 11, 13, 14, 15 }', '{ 11, 13, 13, 13 }', 'position'),
    ('cosine of a sum', 'layers/position.c', 'b[half + j] - a[j] * b[j]', 'b[half + j] + a[j] * b[j]', 'position'),
    ('a sequence begins at each call', 'layers/position.c', 'if (s->first > 0) return y;', '', 'position position_models'),
    ('the transformer embeds as in evaluation', 'layers/transformer.c', 'nn_embedding_forward(l, t, ids, column0, mode)',
     'nn_embedding_forward(l, t, ids, column0, NN_EVAL)', 'position_models'),
    ('so does the terraformer', 'layers/terraformer.c', 'nn_embedding_forward(l, t, ids, column0, mode)',
     'nn_embedding_forward(l, t, ids, column0, NN_EVAL)', 'position_models'),
    ('a checkpoint forgets the files of its pattern', 'train/state.c', 'w.patterns = &patterns;', 'w.patterns = NULL;',
     'pattern_state'),
    ('what is recomputed sees other keys', 'layers/attention.c', '    const attention_run *r = arg;',
     '    attention_run b = *(const attention_run *)arg, *r = &b;\n    if (ag_tape_is_no_grad(t)) b.o.pattern = NULL;', 'recompute'),
    ('reach forgets the residual stream', 'train/pattern_stats.c', 'if (residual) r->keys', 'if (residual && !i) r->keys',
     'pattern_stats'),
    ('convolution hears the next position', 'autograd/ops/module_conv.c', '? 0 : 1 - s->taps', '? 0 : 2 - s->taps',
     'module_ops qkv'),
    ('recall reads what it has just written', 'autograd/ops/recall.c', '*before = kv->past.side[kv->side]',
     '*before = kv->past.side[!kv->side]', 'module_ops'),
    ('a recurrent unit forgets its past when it walks back', 'autograd/cpu/ref_scan_tmpl.h', 'carry = f * g;', 'carry = 0;',
     'gradcheck'),
    ('attention by hashing sees itself', 'autograd/cpu/ref_lsh_tmpl.h', 'e->j >= e->i : e->j == e->i)', 'e->j > e->i : 0)',
     'lsh'),
    ('a key by hashing is not normalised in backward', 'autograd/cpu/ref_lsh_tmpl.h', 'scale * scale * along', '0 * along',
     'gradcheck'),
    ('decoding by hashing takes all items to be where the first is', 'autograd/ops/lsh_cached.c',
     'kv->source_in_row ? 1 :', 'kv->source_in_row ? c->in[Q]->shape.dim[0] :', 'terraformer_lsh'),
    ('buckets do not go along with their sequence', 'autograd/ops/kv_select.c', 'if (c->bucket) move', 'if (0) move',
     'terraformer_lsh'),
    ('a cache forgets that its longest source takes room', 'autograd/ops/kv_cache.c', 'behind ? kv->source_length : 0',
     '0', 'terraformer_lsh'),
    ('a recurrent unit goes on from the state of another layer', 'autograd/ops/sru.c', 'c->attr.state.layer * kv->state.slots +',
     '0 * kv->state.slots +', 'sru'),
    ('a sparse output layer is not always used in evaluation', 'layers/head.c', 'mode != NN_TRAIN || !has_beside',
     '!has_beside', 'qkv'),
    ('embedding forgets to check its ids', 'autograd/ops/embedding.c', 'ag_check_index(c, IDS, 0, table->shape.dim[0]) < 0',
     'false', 'errors'),
    ('reshape of any size', 'autograd/ops/reshape.c', '!= c->in[0]->size)', '< c->in[0]->size)', 'errors'),
    ('a gradient handed over is not taken from the output', 'autograd/backward.c',
     '        y->grad = NULL;\n        y->grad_written = false;\n        return;', '        return;', 'tape gradcheck'),
    ('ag_grad_of never adds', 'autograd/backward.c', '*ret_acc = x->grad_written;', '*ret_acc = false;', 'tape gradcheck'),
    ('gradients of outputs that nothing used are not cleared', 'autograd/backward.c', '->fill(y->size, 0, y->grad);', ';',
     'reversible'),
    ('spare memory of another size', 'autograd/backward.c', 'if (t->spares[i].bytes == bytes)',
     'if (t->spares[i].bytes != bytes)', 'tape gradcheck'),
    ('rewinding keeps the recorded calls', 'autograd/tape.c', '    t->n = at.n;\n', '', 'tape'),
    ('the last error wins', 'autograd/tape.c', 'if (t->error) return t->error;   /* keep the first', 'if (0) return 0;   /*',
     'errors'),
    ('noise of a part starts at row 0', 'autograd/tape.c', '.row0 = t->noise.sample0 * per_sample', '.row0 = 0', 'tape'),
    ('tensors forget to look for NULL', 'autograd/tape.c', 'if (!x || !tensor_data(t, x)) return NULL;',
     'if (!x || (!tensor_data(t, x), 0)) return NULL;', 'errors'),
    ('arena rewinds to the wrong place', 'autograd/base/arena.c', 'a->head == m.chunk ? m.chunk_used : 0', '0', 'tape'),
    ('arena hands out memory that overlaps', 'autograd/base/arena.c', 'a->head->used += want;',
     'a->head->used += want - (want > AG_ALIGN ? AG_ALIGN : 0);', 'tape gradcheck'),
    ('one bit of Philox', 'autograd/base/rng.h', '0xD2511F53u', '0xD2511F57u', 'rng golden'),
    ('replacing a file without rename', 'autograd/base/io.c', 'if (!failed && rename(p.temp, path)) failed = "rename";', '',
     'io'),
    ('fast act_bwd adds up rows without the slope', 'autograd/cpu/map_tmpl.c', 'if (act != AG_ACT_NONE)\n            d *=',
     'if (act > AG_ACT_RELU)\n            d *=', 'map kernels'),
    ('fast sum drops the last chunk', 'autograd/cpu/map_tmpl.c', 'for (int i = 0; i < SLOTS; i++)\n        s += part[i];',
     'for (int i = 0; i < SLOTS - 1; i++)\n        s += part[i];', 'map kernels'),
    ('fast softmax without the largest taken out', 'autograd/cpu/rows_tmpl.c', 'const float top = row_max(n, x), s =',
     'const float top = 0, s =', 'rows kernels'),
    ('fast argmax remembers the last value, not the largest', 'autograd/cpu/rows_tmpl.c',
     'b->value = vselect(b->value, v, v, b->value);', 'b->value = v;', 'rows kernels'),
    ('Adam without the correction of v', 'optim/optim.c', '1 / sqrt(1 - pow(c->beta2, t))', '1.0', 'optim'),
    ('Adam decays what must not decay', 'optim/optim.c', 'if (part->decay) adam.l2', 'if (1) adam.l2', 'optim'),
    ('clipping to the square of the norm', 'optim/optim.c', 'most / norm : 1', 'most / (norm * norm) : 1', 'optim'),
    ('Adafactor takes rows for columns', 'optim/adafactor.c', 'sum[i] / (double)m->cols', 'sum[i] / (double)m->rows', 'adafactor'),
    ('Adafactor without the mean of the rows', 'optim/adafactor.c', 'sqrt(mean / ((double)vr[i]', 'sqrt(1 / ((double)vr[i]',
     'adafactor'),
    ('Adafactor drops the last part of the columns', 'optim/adafactor.c', 'k < m->n_parts; k++)', 'k + 1 < m->n_parts; k++)',
     'adafactor'),
    ('the scale grows a step late', 'optim/scaler.c', '++s->finite_steps ==', 's->finite_steps++ ==', 'scaler'),
    ('a bad loss brings the scale down', 'optim/scaler.c', 'if (what == OPT_BAD_GRADIENT)', 'if (what != OPT_FINITE)',
     'scaler'),
    ('sparse layer masks after the ReLU in both orders', 'layers/sparse_ff.c', 'c->mask_order == NN_MASK_AFTER_RELU', 'true',
     'layers models golden'),
    ('controller noise in evaluation', 'layers/sparse_ff.c', '.temperature = train ? c->temperature : 0',
     '.temperature = c->temperature', 'layers models golden'),
    ('dropout in evaluation', 'layers/basic.c', 'mode == NN_TRAIN && l->p > 0', 'l->p > 0', 'layers models'),
]


def build(folder, tests):
    done = subprocess.run(['ninja', '-C', folder / 'build'] + [f'tests/test_{t}' for t in tests], capture_output=True,
                          text=True)
    return done.returncode == 0, done.stdout[-2000:]


def passes(folder, test):
    """Does the test pass?  One that hangs has noticed something."""
    try:
        env = dict(os.environ, TULLE_SOURCE=str(folder))
        return subprocess.run([folder / 'build/tests' / f'test_{test}'], cwd=folder, env=env, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, timeout=300).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def try_bug(folder, name, file, old, new, tests):
    """What went wrong, '' if the bug was caught."""
    path = folder / file
    text = path.read_text()
    if old not in text:
        return 'no longer applies'
    path.write_text(text.replace(old, new, 1))
    try:
        for t in tests:
            ok, log = build(folder, [t])
            if not ok:
                return f'does not compile: {log}'
            if not passes(folder, t):
                print(f'caught by {t:10} {name}', flush=True)
                return ''
        return f'not caught by {", ".join(tests)}'
    finally:
        path.write_text(text)


def main():
    root, word = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else ''
    bugs = [b for b in BUGS if word in b[0]]
    tests = sorted({t for b in bugs for t in b[4].split() if (root / 'tests' / f'test_{t}.c').exists()})
    failed = 0
    with tempfile.TemporaryDirectory() as temp:
        folder = pathlib.Path(temp)
        shutil.copytree(root, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('build', 'build-*', '.git', 'runs'))
        subprocess.run([MESON, 'setup', folder / 'build', folder, '-Dcuda=disabled', '-Doptimization=1'], check=True,
                       stdout=subprocess.DEVNULL)
        ok, log = build(folder, tests)
        if not ok:
            sys.exit(f'the tree does not build: {log}')
        broken = [t for t in tests if not passes(folder, t)]
        if broken:
            sys.exit(f'fails without a bug: {", ".join(broken)}')
        for name, file, old, new, catchers in bugs:
            wrong = try_bug(folder, name, file, old, new, [t for t in catchers.split() if t in tests])
            if wrong:
                failed += 1
                print(f'FAILED: {name}: {wrong}', flush=True)
    print(f'{len(bugs) - failed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
