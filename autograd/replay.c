#include "replay.h"

#include "device.h"
#include "tape_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHAPES = 16 };                /* that are kept */

/* What was decided, and must be decided so again. */
typedef struct decision {
    ag_decision *f;                  /* NULL: indices were in range */
    const void  *arg;
    bool         was;
    int          input;              /* whose indices: 0 of x, 1 of targets */
    int64_t      lo, hi;
} decision;

typedef struct ag_decided {
    const ag_replay_in *in;
    decision *at;
    int  n, cap;
    bool incomplete;
} ag_decided;

typedef struct key {                 /* with the decisions: what a part looks like to a device */
    ag_shape x, targets;
    ag_dtype dtype;
    uint64_t seed;
    int64_t  n_samples;
    bool     verify;
    ag_loss *f;
    const void *arg;
    const ag_kv_cache *cache;
} key;

typedef struct places { const void *x, *targets, *weights; } places;

typedef struct shape {
    key        key;
    ag_decided decided;
    places     places;
    long       changes;              /* of the device's memory, when it last ran */
    long       used;                 /* when that was: the oldest gives way */
    bool       refused;              /* it cannot be captured */
    ag_graph  *graph;                /* NULL: it was not captured, or addresses changed */
    ag_noise_key noise;              /* of the part that was captured */
    ag_tensor  loss;
    ag_inverse inverse;
    size_t     bytes;                /* of the tape that were in use, when it was captured */
    int64_t    length;               /* of the cache then */
} shape;

struct ag_replay {
    ag_tape *t;
    const ag_device *device;
    ag_turn *turn;                   /* on the device */
    shape  shapes[SHAPES];
    int    n;
    long   now;
    bool   off;                      /* graphs fail here: no more of them */
    ag_tensor loss;
    ag_replay_counts counts;
    char   note[1100];               /* longer than a message */
    bool   noted, told;
};

/* --- decisions -------------------------------------------------------------------------------- */

static void decided_add(ag_decided *d, const decision *x)
{
    for (int i = 0; i < d->n; i++)
        if (!memcmp(&d->at[i], x, sizeof *x)) return;
    if (d->n == d->cap) {
        const int cap = d->cap ? 2 * d->cap : 16;
        decision *at = ag_fault_now() ? NULL : realloc(d->at, (size_t)cap * sizeof *at);
        d->incomplete = d->incomplete || !at;
        if (!at) return;
        d->at = at;
        d->cap = cap;
    }
    d->at[d->n++] = *x;
}

bool ag_decide(ag_tape *t, ag_decision *f, const void *arg)
{
    const bool yes = f(arg, &t->noise);
    decision x;
    memset(&x, 0, sizeof x);         /* they are compared as bytes */
    x.f = f, x.arg = arg, x.was = yes;
    if (t->decided) decided_add(t->decided, &x);
    return yes;
}

void ag_decided_index(ag_tape *t, const int32_t *idx, int64_t n, int64_t lo, int64_t hi)
{
    ag_decided *d = t->decided;
    if (!d) return;
    const ag_tensor *in[] = { d->in->x, d->in->targets ? d->in->targets : d->in->x };
    decision x;
    memset(&x, 0, sizeof x);
    x.lo = lo, x.hi = hi;
    for (x.input = 0; x.input < 2; x.input++)
        if (in[x.input]->host == idx && in[x.input]->size == n) {
            decided_add(d, &x);
            return;
        }
    d->incomplete = true;            /* the host made them on the way */
}

const ag_turn *ag_token_turn(const ag_tape *t) { return t->token; }

static bool in_range(const ag_tensor *x, int64_t lo, int64_t hi)
{
    bool all = x->host;
    for (int64_t i = 0; all && i < x->size; i++) all = x->host[i] >= lo && x->host[i] < hi;
    return all;
}

/* Would all be decided as before?  Indices, which are many, come last. */
static bool decides_so(const ag_decided *d, const ag_noise_key *noise, const ag_replay_in *in)
{
    for (int i = 0; i < d->n; i++)
        if (d->at[i].f && d->at[i].f(d->at[i].arg, noise) != d->at[i].was) return false;
    for (int i = 0; i < d->n; i++)
        if (!d->at[i].f &&
            !in_range(d->at[i].input ? in->targets : in->x, d->at[i].lo, d->at[i].hi))
            return false;
    return true;
}

/* --- shapes ----------------------------------------------------------------------------------- */

static key key_of(const ag_replay *r, const ag_replay_in *in, ag_loss *f, const void *arg)
{
    const ag_tensor *y = in->targets ? in->targets : in->x;
    return (key){ .x = in->x->shape, .targets = y->shape, .dtype = in->x->dtype,
                  .cache = in->cache,
                  .seed = r->t->noise.seed, .n_samples = r->t->noise.n_samples,
                  .verify = r->t->verify, .f = f, .arg = arg };
}

static bool same_key(const key *a, const key *b)
{
    return ag_shape_equal(&a->x, &b->x) && ag_shape_equal(&a->targets, &b->targets) &&
           a->dtype == b->dtype && a->seed == b->seed && a->n_samples == b->n_samples &&
           a->verify == b->verify && a->f == b->f && a->arg == b->arg && a->cache == b->cache;
}

static places places_of(const ag_replay_in *in)
{
    return (places){ in->x->data, in->targets ? in->targets->data : NULL, in->weights };
}

static bool same_places(const places *a, const places *b)
{
    return a->x == b->x && a->targets == b->targets && a->weights == b->weights;
}

static void forget_graph(const ag_replay *r, shape *s)
{
    if (s->graph) r->device->graph_free(s->graph);
    s->graph = NULL;
}

static shape *find(ag_replay *r, const key *k, const ag_replay_in *in)
{
    for (int i = 0; i < r->n; i++)
        if (same_key(&r->shapes[i].key, k) &&
            decides_so(&r->shapes[i].decided, &r->t->noise, in))
            return &r->shapes[i];
    return NULL;
}

/* A place for another shape: a free one, or that of the one that was not used for longest. */
static shape *shape_new(ag_replay *r, const key *k)
{
    shape *s = &r->shapes[0];
    if (r->n < SHAPES) s = &r->shapes[r->n++];
    for (int i = 0; i < r->n; i++)
        if (r->shapes[i].used < s->used) s = &r->shapes[i];
    forget_graph(r, s);
    const ag_decided had = s->decided;
    *s = (shape){ .key = *k, .decided = { .at = had.at, .cap = had.cap } };
    return s;
}

/* --- running ---------------------------------------------------------------------------------- */

static ag_tensor *run(ag_replay *r, const ag_replay_in *in, ag_loss *f, const void *arg,
                      double scale)
{
    ag_tensor *loss = f(arg, r->t, in);
    if (!in->cache) ag_backward(r->t, loss, scale);
    return loss;
}

/* Keeps the first reason: the rest are mostly the same. */
static void note(ag_replay *r, const char *why)
{
    if (!r->noted) snprintf(r->note, sizeof r->note, "no CUDA graph of a step: %s", why);
    r->noted = true;
}

static ag_tensor *run_eagerly(ag_replay *r, shape *s, const ag_replay_in *in, ag_loss *f,
                              const void *arg, double scale)
{
    r->counts.eager++;
    if (s) {
        s->decided.n = 0;
        s->decided.in = in;
        s->decided.incomplete = false;
        r->t->decided = &s->decided;
    }
    ag_tensor *loss = run(r, in, f, arg, scale);
    r->t->decided = NULL;
    if (!s) return loss;
    s->places = places_of(in);
    s->changes = r->device->changes();
    if (s->decided.incomplete) {
        note(r, "the host makes indices in the middle");
        s->refused = true;
    }
    return loss;
}

/* Forgets what was captured, and the error. */
static void refuse(ag_replay *r, shape *s, const ag_tape_mark *m, const char *why)
{
    ag_tape *t = r->t;
    note(r, t->error ? t->message : why ? why : "nothing was captured");
    s->refused = true;
    forget_graph(r, s);
    t->error = AG_OK;
    t->message[0] = '\0';
    ag_tape_rewind(t, m);
    t->inverse = (ag_inverse){ 0 };
}

/* False: it was not, and nothing was done. */
static bool capture(ag_replay *r, shape *s, const ag_replay_in *in, ag_loss *f, const void *arg,
                    double scale)
{
    ag_tape *t = r->t;
    const ag_tape_mark *m = ag_tape_mark_here(t);
    if (!m || !r->device->graph_begin()) {
        refuse(r, s, m, r->device->check());
        return false;
    }
    t->turn = r->turn;
    t->token = in->cache ? r->turn : NULL;
    const ag_tensor *loss = run(r, in, f, arg, scale);
    t->turn = t->token = NULL;
    s->graph = r->device->graph_end();
    const char *why = r->device->check();
    if (t->error || why || !s->graph) {
        refuse(r, s, m, why);
        return false;
    }
    s->noise = t->noise;
    s->loss = *loss;
    s->inverse = t->inverse;
    s->bytes = t->data.used;
    s->length = in->cache ? ag_kv_cache_length(in->cache) : 0;
    r->counts.captured++;
    return true;
}

/* NULL: it could not be, and nothing was done. */
static ag_tensor *launch(ag_replay *r, shape *s, const ag_replay_in *in, double scale)
{
    ag_tape *t = r->t;
    const int64_t length = in->cache ? ag_kv_cache_length(in->cache) : 0;
    const ag_turn turn = { .scale = (float)scale, .steps = t->noise.step - s->noise.step,
                           .samples = t->noise.sample0 - s->noise.sample0,
                           .positions = (int32_t)(length - s->length),
                           .keys = (int32_t)length + 1 };
    r->device->write(r->turn, &turn, sizeof turn);
    if (!r->device->graph_run(s->graph)) {
        const char *why = r->device->check();
        note(r, why ? why : "it was not launched");
        r->off = true;
        return NULL;
    }
    r->counts.launched++;
    if (s->bytes > t->data.used)     /* the numbers of the graph are in use */
        ag_arena_alloc(&t->data, 1, s->bytes - t->data.used);
    t->inverse = s->inverse;
    r->loss = (ag_tensor){ .shape = s->loss.shape, .size = s->loss.size, .dtype = s->loss.dtype,
                           .data = s->loss.data };
    return &r->loss;
}

/* What decodes is one token. */
static bool may_be_replayed(const ag_replay_in *in)
{
    return !in->cache || (in->x->size == 1 && ag_kv_cache_takes_token(in->cache));
}

ag_tensor *ag_replay_loss(ag_replay *r, const ag_replay_in *in, ag_loss *f, const void *arg,
                          double scale)
{
    ag_tape *t = r->t;
    ag_tape_check(t, NULL);          /* of what came before: from here on errors cost the graph */
    if (t->error || t->watch || t->plan || r->off || !may_be_replayed(in))
        return run_eagerly(r, NULL, in, f, arg, scale);
    const key k = key_of(r, in, f, arg);
    const places at = places_of(in);
    shape *s = find(r, &k, in);
    const bool stays = s && s->changes == r->device->changes() && same_places(&s->places, &at);
    if (!s) s = shape_new(r, &k);
    s->used = ++r->now;
    if (!stays) forget_graph(r, s);
    const bool ready = stays && !s->refused;
    ag_tensor *loss = NULL;
    if (ready && (s->graph || capture(r, s, in, f, arg, scale))) loss = launch(r, s, in, scale);
    return loss ? loss : run_eagerly(r, s, in, f, arg, scale);
}

/* --- the rest --------------------------------------------------------------------------------- */

ag_replay *ag_replay_new(ag_tape *t)
{
    const ag_device *d = t->k->device;
    if (!d || !d->graph_begin) return NULL;
    ag_replay *r = ag_fault_now() ? NULL : calloc(1, sizeof *r);
    if (!r) return NULL;
    *r = (ag_replay){ .t = t, .device = d, .turn = ag_device_alloc(d, sizeof *r->turn) };
    if (r->turn) return r;
    free(r);
    return NULL;
}

void ag_replay_free(ag_replay *r)
{
    if (!r) return;
    for (int i = 0; i < r->n; i++) {
        forget_graph(r, &r->shapes[i]);
        free(r->shapes[i].decided.at);
    }
    ag_device_free(r->device, r->turn, sizeof *r->turn);
    free(r);
}

const char *ag_replay_note(ag_replay *r)
{
    const bool fresh = r->noted && !r->told;
    r->told = r->noted;
    return fresh ? r->note : NULL;
}

ag_replay_counts ag_replay_count(const ag_replay *r) { return r->counts; }
