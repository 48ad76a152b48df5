/*
 * params.h -- the parameters of a model: named while it is built, then one flat array of weights
 * and, where it trains, one of gradients.
 *
 * Layers ask for their parameters one by one and keep the tensors; nn_params_alloc() then lays all
 * of them out in one block, 64-byte aligned, with zeros between, and points the tensors into it. So
 * the optimizer, clipping, the clearing of gradients and the checkpoint are loops over flat arrays
 * and this list, and know no layers.
 *
 * A model that only decodes or is evaluated has no gradients: its parameters are constants, until
 * nn_params_grads() gives them memory for some.
 *
 * Building has no error handling: the first error is kept, and nn_params_alloc() returns it.
 */
#ifndef NN_PARAMS_H
#define NN_PARAMS_H

#include "autograd/base/arena.h"
#include "autograd/base/error.h"
#include "autograd/device.h"
#include "autograd/kernels.h"
#include "autograd/tensor.h"
#include "layers/init.h"

typedef struct nn_item {             /* one parameter */
    const char *name;                /* "blocks/0/attn/qkv/weight": its path in a checkpoint */
    ag_tensor  *tensor;
    int64_t     offset, count;       /* elements, in the flat arrays */
    bool        decay;               /* weight decay applies: it has two dimensions or more */
    nn_init     init;
} nn_item;

enum { NN_NAME_MAX = 256 };          /* bytes of a name, with the NUL */

typedef struct nn_params {
    ag_dtype dtype;                  /* AG_F32; AG_F64 for gradient checks */
    int      n_items, cap_items;
    nn_item *items;                  /* in the order they were asked for */
    int64_t  n;                      /* elements of the flat arrays, padding included */
    int64_t  n_used;                 /* the same without padding: the number of parameters */
    const ag_device *device;         /* where the next three are; NULL: the host */
    void    *weights;                /* [n]; NULL until nn_params_alloc */
    void    *grads;                  /* [n]; NULL until nn_params_grads */
    uint16_t *narrow;                /* [n], weights rounded to 16 bits (nn_params_round), or
                                      * NULL */
    ag_arena memory;                 /* names and tensors */
    uint32_t n_sites;
    char     path[NN_NAME_MAX];      /* put in front of names while building: "blocks/0/" */
    ag_err   err;                    /* the first one */
} nn_params;

nn_params *nn_params_new(ag_dtype dtype);                /* NULL: out of memory */
void       nn_params_free(nn_params *p);                 /* NULL is fine */

/* A parameter named path + name.  The tensor has its shape at once and its numbers after
 * nn_params_alloc; NULL after an error. */
ag_tensor *nn_param(nn_params *p, const char *name, ag_shape shape, nn_init init);
/* Names start with the formatted text and a slash until nn_pop(p, what nn_push returned). */
size_t nn_push(nn_params *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void   nn_pop(nn_params *p, size_t at);
/* A number for a place in the model that draws noise, from 0 upwards (autograd/base/rng.h). */
uint32_t nn_site(nn_params *p);

/* Lays out and initialises all parameters.  AG_ENOMEM, or the first error of building. */
int nn_params_alloc(nn_params *p, uint64_t seed, ag_err *err);
/* The same without initial values: all is zero, and large parts are not touched. */
int nn_params_layout(nn_params *p, ag_err *err);
/* Weights go to the memory of a device, where its tapes want them; before there are gradients.
 * AG_ENOMEM. */
int nn_params_place(nn_params *p, const ag_device *d, ag_err *err);
/* Gradients where the weights are, zero; from now on the parameters need them.  AG_ENOMEM. */
int nn_params_grads(nn_params *p, ag_err *err);
/* The tensors have these weights from now on, [n] in the same memory; returns what they had. */
void *nn_params_swap(nn_params *p, void *weights);
void nn_params_zero_grad(nn_params *p);
/* Room for a copy of f32 weights in 16 bits, which tapes of that type then read.  AG_ENOMEM. */
int  nn_params_narrow(nn_params *p, ag_err *err);
/* Rounds the weights to the copy, where there is one: after they changed, before a 16-bit tape of
 * table k reads them. */
void nn_params_round(nn_params *p, const ag_kernels *k);
const nn_item *nn_params_find(const nn_params *p, const char *name); /* NULL: none of that name */
/* Numbers in the parameters whose names begin so. */
int64_t nn_params_below(const nn_params *p, const char *prefix);

#endif
