// Pooling and the channel MLP on the CPU, for channel reweighting and for DGFE.
#pragma once
#include "../tensors.h"

namespace srtod {

struct Pooled {  // each [N, C]; average and maximum in the type of arithmetic, argmax = index of the first maximum in h
                 // * w
  Tensor average, maximum, argmax;
};

struct Mlp {  // shared by both pools: weight2 relu(weight1 v + bias1) + bias2
  Tensor weight1, bias1, weight2, bias2;
};

// Average, maximum and first arg-max over the pixels of `features` [N, C, h, w], which is laid out in `format`.
Pooled pool(const Tensor& features, MemoryFormat format);

// sigmoid(MLP(average) + MLP(maximum)), [N, C] in the type of arithmetic.
Tensor channel_weights(const Pooled& pooled, const Mlp& mlp);

// Gradients of `channel_weights`. `grad_average` and `grad_maximum` [N, C] are written; `mlp.bias2` is not read.
template <class A>
Mlp channel_weights_backward(const A* grad_weights, const Tensor& weights, const Pooled& pooled, const Mlp& mlp,
                             A* grad_average, A* grad_maximum);

}  // namespace srtod
