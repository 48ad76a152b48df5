/*
 * device.h -- memory that is not the host's: what a tape, parameters and an optimizer ask of a GPU.
 *
 * A device runs what it is asked in order, most of it later: a call returns before its work is
 * done, read() waits for it.  Calls cannot fail; the first error is kept and check() tells it, as
 * the text of an error message.  A kernel table (kernels.h) points to the device that it computes
 * on; NULL there means the host, whose numbers lie in ordinary memory.
 */
#ifndef AG_DEVICE_H
#define AG_DEVICE_H

#include "base/arena.h"
#include "flat.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct ag_graph ag_graph;    /* what a device was asked, to be asked again at once */

typedef struct ag_device {
    const char *name;                /* "cuda" */
    ag_memory   memory;              /* blocks of it; their contents are garbage */
    /* The host's memory may change as soon as write() returns. */
    void (*write)(void *to, const void *host, size_t bytes);
    void (*read)(void *host, const void *from, size_t bytes);            /* waits */
    void (*copy)(void *to, const void *from, size_t bytes);
    void (*clear)(void *p, size_t bytes);                                /* to zero */
    void (*wait)(void);              /* until all is done */
    /* From begin to end nothing is done: what is asked is kept, with the addresses and numbers of
     * then, and done by each run.  To read, to write, to wait, to take memory and to give it back
     * is an error meanwhile.  begin, run: false, end: NULL: there is an error.  NULL, as the next
     * four: this device keeps nothing. */
    bool      (*graph_begin)(void);
    ag_graph *(*graph_end)(void);
    bool      (*graph_run)(ag_graph *g);
    void      (*graph_free)(ag_graph *g);
    /* copy of whole 32-bit numbers, *shift steps further on; shift is on the device. */
    void      (*copy_shifted)(void *to, size_t to_step, const void *from, size_t from_step,
                              size_t bytes, const int32_t *shift);
    long (*changes)(void);           /* how often memory was taken or given back */
    /* NULL, or the first error since the last call of this, which forgets it. */
    const char *(*check)(void);
    ag_flat     flat;                /* loops over flat arrays of weights */
    /* The name of the GPU, bytes of its memory and of what is free; for people to read. */
    void (*about)(char *buf, size_t size, size_t *ret_total, size_t *ret_free);
} ag_device;

/* The same for host memory, where device is NULL. */
void ag_device_write(const ag_device *d, void *to, const void *host, size_t bytes);
void ag_device_read(const ag_device *d, void *host, const void *from, size_t bytes);
void ag_device_copy(const ag_device *d, void *to, const void *from, size_t bytes);
void ag_device_clear(const ag_device *d, void *p, size_t bytes);
/* A block of zeros; NULL: out of memory. */
void *ag_device_alloc(const ag_device *d, size_t bytes);
void  ag_device_free(const ag_device *d, void *p, size_t bytes);         /* NULL is fine */

#endif
