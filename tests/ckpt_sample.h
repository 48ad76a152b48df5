/*
 * ckpt_sample.h -- a checkpoint with contents that follow from its step, to test checkpoints with.
 */
#ifndef TESTS_CKPT_SAMPLE_H
#define TESTS_CKPT_SAMPLE_H

#include "autograd/base/io.h"
#include "train/checkpoint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROWS = 20, COLS = 30, N_TENSORS = 14 };
static char dir[] = "/tmp/tulle-ckpt-XXXXXX";
static float weights[N_TENSORS][ROWS * COLS];
static char names[N_TENSORS][32];
static train_ckpt_tensor tensors[N_TENSORS];
static const char yaml[] = "model:\n  name: \"große Maus\"\n";
static const unsigned char merges[] = { 0, 255, 10, 0, 7 };
static const train_ckpt_blob blobs[] = {
    { "config", "yaml", yaml, sizeof yaml - 1, true },
    { "tokenizer", "merges", merges, sizeof merges, false },
    { "tokenizer", "none", "", 0, false },
};
static const train_ckpt_attr attrs[] = {
    { "train/scaler", "scale", TRAIN_CKPT_F64, { .f = 65536.0 } },
    { "train/sampler", "cursor", TRAIN_CKPT_I64, { .i = -5 } },
    { "train/sampler", "seed", TRAIN_CKPT_U64, { .u = UINT64_MAX } },
    { "model", "arch", TRAIN_CKPT_TEXT, { .s = "gpt-ü" } },
    { "model/w0", "init", TRAIN_CKPT_TEXT, { .s = "normal" } },
};

/* The contents of a checkpoint as a function of the step; names run backwards, so that file order
 * is not alphabetical. */
static inline train_ckpt contents(int64_t step)
{
    uint32_t x = (uint32_t)step * 2654435761u + 1;
    for (int t = 0; t < N_TENSORS; t++) {
        for (int i = 0; i < ROWS * COLS; i++) {
            x = x * 1664525u + 1013904223u;
            weights[t][i] = (float)((int32_t)x >> 8) * 0x1p-20f;
        }
        snprintf(names[t], sizeof names[t], "w%d", (N_TENSORS - 1 - t) / 2);
        tensors[t] = (train_ckpt_tensor){ t % 2 ? "optimizer/adamw/m" : "model", names[t], 2,
                                          { ROWS, COLS }, weights[t] };
    }
    tensors[0].ndim = 0;
    tensors[2] = (train_ckpt_tensor){ "model", names[2], 3, { 4, 0, 2 }, weights[2] };
    weights[4][0] = -0.0f;
    weights[4][1] = 0x1p-149f;
    return (train_ckpt){
        .head = { .step = step, .tokens_seen = 1000 * step, .seed = UINT64_MAX, .best_metric = NAN,
                  .best_step = -1 },
        .framework_version = "0.1.0", .tensor = tensors, .attr = attrs, .blob = blobs,
        .n_tensors = N_TENSORS, .n_attrs = 5, .n_blobs = 3,
    };
}

static inline const char *in_dir(const char *name)
{
    static char path[4][PATH_MAX];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], PATH_MAX, "%s/%s", dir, name);
    return path[turn];
}

static inline int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static inline int clean(void **state)
{
    (void)state;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) unlinkat(dirfd(d), e->d_name, 0);
    if (d) closedir(d);
    return 0;
}

static inline int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

static inline void save(const char *path, const train_ckpt *c)
{
    ag_err err = { 0 };
    if (train_ckpt_save(path, NULL, c, &err)) fail_msg("%s", err.msg);
}

/* Whether path holds the whole contents of its step; the step, or -1. */
static inline int64_t whole_step(const char *path)
{
    static float x[ROWS * COLS];
    train_ckpt_file *f;
    if (train_ckpt_open(path, &f, NULL)) return -1;
    int64_t step = train_ckpt_file_head(f)->step;
    const train_ckpt c = contents(step);
    for (int t = 0; t < N_TENSORS && step >= 0; t++) {
        const train_ckpt_tensor *w = &c.tensor[t];
        size_t n = 1;
        for (int i = 0; i < w->ndim; i++) n *= (size_t)w->dim[i];
        if (train_ckpt_read(f, w->group, w->name, w->ndim, w->dim, false, x, NULL) ||
            memcmp(x, w->data, n * sizeof *x))
            step = -1;
    }
    train_ckpt_close(f);
    return step;
}

#endif
