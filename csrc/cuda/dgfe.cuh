// What the files of DGFE share.
//
// Forward in one cooperative launch (dgfe_one_launch.cu), or in two: pool, with the MLP (channel_reweighting.cu), and
// scale (dgfe.cu). Backward in two: sums over channels and pixels, with the MLP's backward down to the pools, then the
// gradients, also the MLP's own (dgfe_backward.cu).
//
//   dL/df[n,p] = sum_c g x s      dL/ds[n,c] = sum_p g x f      dL/dx = g s f + dL/davg / (h w) + [p = argmax] dL/dmax
//
// The filter f [N, h * w] is computed once, beside the pooling, and read by all channels: 4 bytes a pixel against 512
// of P2 in half precision, where every group of channels would else gather D again, of which a sector of 32 bytes holds
// two values that count. The backward pass reads it too.
#pragma once
#include "scaling.cuh"

namespace srtod {

struct DgfeForward {  // all that a forward pass reads and writes
  const char* op;
  MemoryFormat format;
  Tensor features;  // in `format`
  Tensor enhanced;  // may be `features`
  Filter filter;
  Tensor filter_values;  // [N, 1, h, w], in the type of arithmetic
  Mlp mlp;
  PooledTensors pooled;
};

// Returns false, with nothing done, where the GPU cannot hold all blocks at once.
bool dgfe_in_one_launch(DgfeForward& pass, const OnDevice& device);

}  // namespace srtod
