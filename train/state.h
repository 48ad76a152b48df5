/*
 * state.h -- a session to and from a checkpoint: what is stored, and where in the file.
 *
 *   /                   step, tokens_seen, seed, best_metric, best_step
 *   /config/yaml        the effective configuration
 *   /patterns/0/...     the files of the attention pattern, counted from 0 in the order in which it
 *                       names them, as they were when the run began: path, and text, its bytes
 *   /tokenizer/table    the tokenizer in its flat form (data/tokenizer.h); absent for images
 *   /model/...          the weights by name; attributes classes, d_in
 *   /optimizer/TYPE/SLOT/...   the slots by name, each with the parameters that it has numbers of
 *                       (rows: all axes but the last, columns: all but the last but one); attribute
 *                       step of /optimizer/TYPE
 *   /train              attributes samples_seen, pending (train_pending)
 *   /train/scaler       attributes scale, finite_steps, skipped, skipped_in_row (opt_scaler);
 *                       absent where the loss is not scaled
 *   /data               attributes height, width, channels, rate (train_form); about and
 *                       fingerprint, which tell whether a resumed run sees the same data
 */
#ifndef TRAIN_STATE_H
#define TRAIN_STATE_H

#include "train/checkpoint.h"
#include "train/session.h"

/* Fills *ret_c from a session and calls save(arg, c): the description lives only during the call.
 * AG_ENOMEM and the codes of save. */
int train_state_save(const train_session *s,
                     int (*save)(void *arg, const train_ckpt *c, ag_err *err), void *arg,
                     ag_err *err);

/* The configuration stored in a checkpoint.  AG_EINPUT. */
int train_state_config(const train_ckpt_file *f, train_config *ret_c, ag_err *err);

/* The files of the attention pattern of that configuration; the caller releases *ret, on errors
 * too.  Files of earlier versions have none, then *ret is not closed and holds what is on disk.
 * AG_EINPUT. */
int train_state_patterns(const train_ckpt_file *f, const train_config *c, nn_pattern_files *ret,
                         ag_err *err);

/* A session with configuration c and the weights of a checkpoint; with what->optimizer its
 * optimizer state and counters too.  what->tokenizer, classes, d_in and patterns are taken from
 * the file.
 * For evaluation the averaged weights are read where there are some.  AG_EINPUT names what is
 * missing or does not fit; with what->optimizer also other data than those of the file, unless
 * data.changed is set. */
int train_state_load(const train_ckpt_file *f, const train_config *c, const train_open *what,
                     train_session **ret_s, ag_err *err);

#endif
