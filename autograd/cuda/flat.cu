/* flat.cu -- one step of an optimizer over flat arrays (autograd/flat.h). */
#include "autograd/flat.h"
#include "launch.cuh"

ag_flat flat_table(void) { return ag_flat(); }
