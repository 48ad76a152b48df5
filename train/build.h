/*
 * build.h -- the model that a configuration describes.
 */
#ifndef TRAIN_BUILD_H
#define TRAIN_BUILD_H

#include "layers/layers.h"
#include "train/config.h"

/* A model with its initial weights, for a vocabulary, or for images of d_in features; files: those
 * of its attention pattern (nn_patterns_new).  AG_ECONFIG, AG_ENOMEM, AG_EINPUT, AG_EIO. */
int train_build_tokens(const train_config *c, int64_t vocab, nn_pattern_files *files,
                       nn_model **ret_model, ag_err *err);
/* Without initial weights: for its sizes. */
int train_plan_tokens(const train_config *c, int64_t vocab, nn_pattern_files *files,
                      nn_model **ret_model, ag_err *err);
int train_build_mlp(const train_config *c, int64_t d_in, int64_t classes, nn_model **ret_model,
                    ag_err *err);

#endif
