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

struct ChannelWeights {  // in the type of arithmetic
  Tensor weights,
      hidden;  // sigmoid(MLP(average) + MLP(maximum)) [N, C], and both hidden layers before the ReLU [N, 2, R]
};

ChannelWeights channel_weights(const Pooled& pooled, const Mlp& mlp);

// Gradients of the weights. `grad_average` and `grad_maximum` [N, C] are written.
template <class A>
Mlp channel_weights_backward(const A* grad_weights, const ChannelWeights& kept, const Pooled& pooled,
                             const Tensor& weight1, const Tensor& weight2, A* grad_average, A* grad_maximum);

}  // namespace srtod
