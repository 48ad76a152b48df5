/*
 * dice.h -- the random numbers of one generated sample, taken in order: a function of (seed, site,
 * index of the sample).
 */
#ifndef DATA_DICE_H
#define DATA_DICE_H

#include "autograd/base/rng.h"

typedef struct data_dice {
    uint64_t seed, next;
    uint32_t site, sample, word[4];
} data_dice;

static inline uint32_t data_roll(data_dice *r)
{
    if (r->next % 4 == 0)
        ag_philox(r->seed, r->sample, r->site, r->next / 4, r->word);
    return r->word[r->next++ % 4];
}

/* Even in 0 .. n-1. */
static inline int64_t data_below(data_dice *r, int64_t n)
{
    return (int64_t)((uint64_t)data_roll(r) * (uint64_t)n >> 32);
}

/* Puts k different numbers of 0 .. n-1, in random order, in front of list[n]. */
static inline void data_draw_some(data_dice *r, int32_t *list, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < n; i++)
        list[i] = (int32_t)i;
    for (int64_t i = 0; i < k; i++) {
        const int64_t j = i + data_below(r, n - i);
        const int32_t v = list[j];
        list[j] = list[i];
        list[i] = v;
    }
}

#endif
