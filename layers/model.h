/*
 * model.h -- what the trainer sees of a network: parameters, logits, loss, and its size.
 */
#ifndef NN_MODEL_H
#define NN_MODEL_H

#include "layers/ff.h"
#include "layers/recompute.h"

typedef struct nn_cost {
    int64_t params;                  /* of the whole model */
    int64_t ff_params;               /* of all feed-forward layers */
    int64_t ff_touched;              /* of these, read for one token or image */
    double  flops;                   /* forward, per token (mean over the context) or image */
    int64_t touched;                 /* weights of the whole model read for one token or image */
    int64_t attention_params;        /* of all attention layers; 0: it has none */
    int64_t head_params;             /* of the output layer; 0: shared with the embedding */
    int64_t d_ff;                    /* inner width of a feed-forward layer */
    size_t  pattern_bytes;           /* of the attention patterns */
} nn_cost;

typedef struct nn_model nn_model;
struct nn_model {
    const char *kind;                /* "gpt", "transformer" or "mlp" */
    nn_params  *params;
    int64_t     classes;             /* width of the logits */
    bool        start;               /* sequences begin with the token `classes` */
    int64_t     source;              /* columns of x that are the source (S); 0: it reads none */
    nn_cost     cost;
    nn_blocks   stack[NN_STACKS];    /* that can keep less and run again */
    nn_recompute *recompute;         /* of these when it trains, owned; NULL: all is kept */
    /* x -> [..,classes].  gpt: x int32 [b,t], mlp: x [b,d_in], with a source: x int32 [b,S+t] ->
     * [b,t,classes].  cache: see nn_model_decode. */
    ag_tensor *(*logits)(const nn_model *m, ag_tape *t, ag_tensor *x, nn_mode mode,
                         ag_kv_cache *cache);
    ag_kv_cache *(*cache_new)(const nn_model *m, int64_t batch); /* NULL: the model has none */
    nn_ff *(*ff_layer)(const nn_model *m, int i);    /* the i-th feed-forward; NULL: no more */
    void (*release)(nn_model *m);    /* frees what the model has besides params and itself */
};

void nn_model_free(nn_model *m);     /* NULL is fine */

/* The end of making a model, whose parameters are named: gives them memory and initial values, or,
 * to plan with, untouched zeros.  On an error the model is freed.  AG_ENOMEM. */
int nn_model_fill(nn_model *m, uint64_t seed, nn_model **ret_model, ag_err *err);
int nn_model_lay_out(nn_model *m, nn_model **ret_model, ag_err *err);

ag_tensor *nn_model_logits(const nn_model *m, ag_tape *t, ag_tensor *x, nn_mode mode);
/* Mean cross-entropy in nats of int32 targets, one per row of the logits; negative ones do not
 * count. */
ag_tensor *nn_model_loss(const nn_model *m, ag_tape *t, ag_tensor *x, ag_tensor *targets,
                         nn_mode mode);

/* A cache for `batch` sequences of up to the model's context; free it with ag_kv_cache_free.
 * AG_ENOMEM; AG_ECONFIG for a model that does not decode. */
int nn_model_cache(const nn_model *m, int64_t batch, ag_kv_cache **ret_cache, ag_err *err);
/* Logits [b,t,classes] of ids int32 [b,t], the positions that follow those in the cache, which then
 * holds them too (unless the tape has an error); where the model reads a source, the first call
 * gets ids [b,S+t].  No gradient: call it with ag_tape_no_grad on. */
ag_tensor *nn_model_decode(const nn_model *m, ag_tape *t, ag_tensor *ids, ag_kv_cache *cache);
/* The same, by a graph of r where it can be; r may be NULL. */
ag_tensor *nn_model_decode_by(ag_replay *r, const nn_model *m, ag_tape *t, ag_tensor *ids,
                              ag_kv_cache *cache);

#endif
