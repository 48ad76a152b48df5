/*
 * resume.h -- what a run goes on with: its checkpoint, and the configuration in it with new
 * settings on top.
 *
 * The checkpoint's configuration counts, not config.yaml: that may be newer than the checkpoint
 * where the run was killed in between, in keys that may change.  In the other keys both agree, or
 * the checkpoint is not of this run and nothing may be written over it.  A directory without
 * config.yaml is taken for what its checkpoint says.
 */
#ifndef TRAIN_RESUME_H
#define TRAIN_RESUME_H

#include "train/config.h"
#include "train/rundir.h"

typedef struct train_resumed {
    train_ckpt_file *file;           /* NULL: the run was killed before its first checkpoint, and
                                      * begins anew from config.yaml */
    train_config was, now;           /* without the new settings, with them */
    char warning[1024];              /* why last.h5 could not be used, "" where it was */
    char note[512];                  /* what config.yaml says in vain, "" for nothing */
} train_resumed;

/* Reads all of this; writes nothing.  AG_ECONFIG: a setting is wrong or may not change, or
 * config.yaml cannot be read; AG_EINPUT: no usable checkpoint, or one of another run, and the
 * message names the first key that tells; AG_EIO, AG_ENOMEM.  The caller closes ret->file, on
 * errors too. */
int train_resumed_read(train_rundir *dir, char *const *settings, int n, train_resumed *ret,
                       ag_err *err);

#endif
