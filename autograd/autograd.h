/* autograd.h -- what the rest of the program uses of this folder. */
#ifndef AG_AUTOGRAD_H
#define AG_AUTOGRAD_H

#include "kernels.h"
#include "ops.h"
#include "replay.h"
#include "segment.h"
#include "tape.h"
#include "tensor.h"

#endif
