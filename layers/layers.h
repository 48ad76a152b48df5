/* layers.h -- what the rest of the program uses of this folder. */
#ifndef NN_LAYERS_H
#define NN_LAYERS_H

#include "layers/gpt.h"
#include "layers/match.h"
#include "layers/mlp.h"
#include "layers/terraformer.h"
#include "layers/transformer.h"

#endif
