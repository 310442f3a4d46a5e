#include "filtration.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <vector>

#include "../checks.h"
#include "rows.h"

namespace srtod {
namespace {

// How one axis is resized: output k is the sum of weight * input over a run of neighbouring inputs, divided by
// total[k]. Nearest, area and bilinear are all of this kind; their maps are the product of two axes.
template <class A>
struct Axis {
  struct Tap {
    int64_t index;
    A weight;
  };
  std::vector<Tap> taps;
  std::vector<int64_t> first;  // taps of output k: first[k] .. first[k + 1]
  std::vector<A> total;        // of output k; dividing last keeps uniform maps uniform

  Axis(Resize resize, int64_t input_size, int64_t output_size) {
    first.push_back(0);
    const float scale = static_cast<float>(input_size) / static_cast<float>(output_size);
    for (int64_t k = 0; k < output_size; ++k) {
      if (resize == Resize::nearest) {
        taps.push_back({nearest_index(k, scale, input_size), A(1)});
      } else if (resize == Resize::area) {
        const auto [begin, end] = pooling_window(k, input_size, output_size);
        for (int64_t i = begin; i < end; ++i) taps.push_back({i, A(1)});
      } else {
        const auto [low, high, fraction] = bilinear_mixture<A>(k, input_size, output_size);
        if (fraction < A(1)) taps.push_back({low, A(1) - fraction});
        if (fraction > A(0)) taps.push_back({high, fraction});  // what counts nothing is not looked at
      }
      const int64_t count = static_cast<int64_t>(taps.size()) - first.back();
      total.push_back(resize == Resize::area ? static_cast<A>(count) : A(1));
      first.push_back(first.back() + count);
    }
  }
};

template <class T>
struct Map {  // [N, 1, H, W] with any strides
  const T* data;
  int64_t count, height, width, stride_n, stride_h, stride_w;

  explicit Map(const Tensor& t)
      : data(t.const_data_ptr<T>()),
        count(t.size(0)),
        height(t.size(2)),
        width(t.size(3)),
        stride_n(t.stride(0)),
        stride_h(t.stride(2)),
        stride_w(t.stride(3)) {}

  compute_t<T> at(int64_t n, int64_t y, int64_t x) const {
    return widen(data[n * stride_n + y * stride_h + x * stride_w]);
  }
};

struct Position {
  int64_t y, x;
};

// First position of the greatest value in the pooling window of output (i, j); a NaN counts as the greatest.
template <class T>
Position window_argmax(const Map<T>& d, int64_t n, int64_t i, int64_t j, const FiltrationOptions& o) {
  using A = compute_t<T>;
  const auto [y_begin, y_end] = pooling_window(i, d.height, o.height);
  const auto [x_begin, x_end] = pooling_window(j, d.width, o.width);
  Position best{y_begin, x_begin};
  A greatest = -std::numeric_limits<A>::infinity();
  for (int64_t y = y_begin; y < y_end; ++y)
    for (int64_t x = x_begin; x < x_end; ++x) {
      const A value = d.at(n, y, x);
      if (value > greatest || value != value) {
        greatest = value;
        best = {y, x};
      }
    }
  return best;
}

template <class T, class A = compute_t<T>>
void values(const Map<T>& d, A t, const FiltrationOptions& o, A* filter) {
  const bool is_max = o.resize == Resize::max;
  if (d.count == 0) return;
  const Axis<A> rows(is_max ? Resize::nearest : o.resize, d.height, o.height);
  const Axis<A> columns(is_max ? Resize::nearest : o.resize, d.width, o.width);
  torch::stable::parallel_for(0, d.count * o.height, std::max<int64_t>(1, 8192 / o.width),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t row = begin; row < end; ++row) {
                                  const int64_t n = row / o.height, i = row % o.height;
                                  A* out = filter + row * o.width;
                                  for (int64_t j = 0; j < o.width; ++j) {
                                    if (is_max) {
                                      const Position p = window_argmax(d, n, i, j, o);
                                      out[j] = A(1) + step(d.at(n, p.y, p.x) - t);
                                      continue;
                                    }
                                    A sum = 0;
                                    for (int64_t r = rows.first[i]; r < rows.first[i + 1]; ++r)
                                      for (int64_t c = columns.first[j]; c < columns.first[j + 1]; ++c)
                                        sum += rows.taps[r].weight * columns.taps[c].weight *
                                               step(d.at(n, rows.taps[r].index, columns.taps[c].index) - t);
                                    out[j] = A(1) + sum / (rows.total[i] * columns.total[j]);
                                  }
                                }
                              });
}

template <class A>
A ordered_sum(const std::vector<A>& parts) {
  A sum = 0;
  for (A part : parts) sum += part;
  return sum;
}

// Max: windows may overlap, so each image is one task.
template <class T, class A = compute_t<T>>
A gradients_of_max(const A* grad_filter, const Map<T>& d, A t, const FiltrationOptions& o, T* grad_difference) {
  std::vector<A> grad_threshold(d.count, A(0));
  torch::stable::parallel_for(0, d.count, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> map(grad_difference ? d.height * d.width : 0);
    for (int64_t n = begin; n < end; ++n) {
      std::fill(map.begin(), map.end(), A(0));
      for (int64_t i = 0; i < o.height; ++i) {
        A row_sum = 0;
        for (int64_t j = 0; j < o.width; ++j) {
          const Position p = window_argmax(d, n, i, j, o);
          const A slope = surrogate_derivative(d.at(n, p.y, p.x) - t, o.surrogate, A(o.alpha));
          const A grad = grad_filter[(n * o.height + i) * o.width + j] * slope;
          row_sum += grad;
          if (grad_difference) map[p.y * d.width + p.x] += grad;
        }
        grad_threshold[n] -= row_sum;
      }
      if (grad_difference) {
        T* out = grad_difference + n * d.height * d.width;
        for (int64_t k = 0; k < d.height * d.width; ++k) narrow(map[k], out[k]);
      }
    }
  });
  return ordered_sum(grad_threshold);
}

// Nearest, area, bilinear: each row of the difference map gathers from the rows of the filter that it went into.
template <class T, class A = compute_t<T>>
A gradients_of_weighted(const A* grad_filter, const Map<T>& d, A t, const FiltrationOptions& o, T* grad_difference) {
  const Axis<A> rows(o.resize, d.height, o.height), columns(o.resize, d.width, o.width);
  struct Use {
    int64_t output;
    A weight;
  };
  std::vector<std::vector<Use>> uses(d.height);  // of each row of the difference map
  for (int64_t i = 0; i < o.height; ++i)
    for (int64_t r = rows.first[i]; r < rows.first[i + 1]; ++r)
      uses[rows.taps[r].index].push_back({i, rows.taps[r].weight / rows.total[i]});

  std::vector<A> grad_threshold(d.count * d.height, A(0));
  torch::stable::parallel_for(0, d.count * d.height, std::max<int64_t>(1, 16384 / d.width),
                              [&](int64_t begin, int64_t end) {
                                std::vector<A> gathered(o.width), row(d.width);
                                for (int64_t k = begin; k < end; ++k) {
                                  const int64_t n = k / d.height, y = k % d.height;
                                  if (uses[y].empty()) {
                                    if (grad_difference)
                                      std::memset(grad_difference + k * d.width, 0, d.width * sizeof(T));
                                    continue;
                                  }
                                  std::fill(gathered.begin(), gathered.end(), A(0));
                                  for (const Use& use : uses[y]) {
                                    const A* source = grad_filter + (n * o.height + use.output) * o.width;
                                    for (int64_t j = 0; j < o.width; ++j) gathered[j] += use.weight * source[j];
                                  }
                                  std::fill(row.begin(), row.end(), A(0));
                                  A sum = 0;
                                  for (int64_t j = 0; j < o.width; ++j)
                                    for (int64_t c = columns.first[j]; c < columns.first[j + 1]; ++c) {
                                      const int64_t x = columns.taps[c].index;
                                      const A slope = surrogate_derivative(d.at(n, y, x) - t, o.surrogate, A(o.alpha));
                                      const A grad = gathered[j] * (columns.taps[c].weight / columns.total[j]) * slope;
                                      row[x] += grad;
                                      sum += grad;
                                    }
                                  grad_threshold[k] = -sum;
                                  if (grad_difference)
                                    for (int64_t x = 0; x < d.width; ++x)
                                      narrow(row[x], grad_difference[k * d.width + x]);
                                }
                              });
  return ordered_sum(grad_threshold);
}

}  // namespace

template <class A>
void filtration_values(const Tensor& difference, const Tensor& threshold, const FiltrationOptions& options, A* filter) {
  const A t = scalar_value<A>(threshold);
  dispatch_floating(difference.scalar_type(), "filtration", [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_same_v<compute_t<T>, A>) values(Map<T>(difference), t, options, filter);
  });
}

template <class A>
A filtration_gradients(const A* grad_filter, const Tensor& difference, const Tensor& threshold,
                       const FiltrationOptions& options, std::optional<Tensor>& grad_difference) {
  const A t = scalar_value<A>(threshold);
  A grad_threshold = 0;
  dispatch_floating(difference.scalar_type(), "filtration", [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_same_v<compute_t<T>, A>) {
      T* grad = grad_difference ? grad_difference->mutable_data_ptr<T>() : nullptr;
      if (options.surrogate == Surrogate::none) {  // a gradient of zero, whatever comes in
        if (grad) std::memset(grad, 0, grad_difference->numel() * sizeof(T));
        return;
      }
      const Map<T> d(difference);
      grad_threshold = options.resize == Resize::max ? gradients_of_max(grad_filter, d, t, options, grad)
                                                     : gradients_of_weighted(grad_filter, d, t, options, grad);
    }
  });
  return grad_threshold;
}

template void filtration_values(const Tensor&, const Tensor&, const FiltrationOptions&, float*);
template void filtration_values(const Tensor&, const Tensor&, const FiltrationOptions&, double*);
template float filtration_gradients(const float*, const Tensor&, const Tensor&, const FiltrationOptions&,
                                    std::optional<Tensor>&);
template double filtration_gradients(const double*, const Tensor&, const Tensor&, const FiltrationOptions&,
                                     std::optional<Tensor>&);

Tensor scalar_tensor(double value, const Tensor& like) {
  Tensor t = empty({}, like.scalar_type(), like);
  dispatch_floating(like.scalar_type(), "threshold",
                    [&](auto tag) { *t.mutable_data_ptr<decltype(tag)>() = static_cast<decltype(tag)>(value); });
  return t;
}

namespace {

Tensor filtration_cpu(const Tensor& difference, const Tensor& threshold, int64_t height, int64_t width, int64_t resize,
                      int64_t surrogate, double alpha) {
  const FiltrationOptions options{height, width, Resize(resize), Surrogate(surrogate), alpha};
  check_difference("filtration", difference, threshold, height, width);
  Tensor out = empty({difference.size(0), 1, height, width}, difference.scalar_type(), difference);
  dispatch_floating(difference.scalar_type(), "filtration", [&](auto tag) {
    using T = decltype(tag);
    T* result = out.mutable_data_ptr<T>();
    if constexpr (std::is_same_v<T, compute_t<T>>) {
      filtration_values(difference, threshold, options, result);
    } else {
      std::vector<compute_t<T>> filter(out.numel());
      filtration_values(difference, threshold, options, filter.data());
      narrow_row(filter.data(), out.numel(), result);
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> filtration_backward_cpu(const Tensor& grad, const Tensor& difference,
                                                   const Tensor& threshold, int64_t resize, int64_t surrogate,
                                                   double alpha, bool difference_grad) {
  check_filter_gradient("filtration", grad, difference);
  const FiltrationOptions options{grad.size(2), grad.size(3), Resize(resize), Surrogate(surrogate), alpha};
  check_difference("filtration", difference, threshold, grad.size(2), grad.size(3));
  const Tensor g = in_format(grad, MemoryFormat::Contiguous);
  std::optional<Tensor> grad_difference;
  if (difference_grad)
    grad_difference =
        empty({difference.size(0), 1, difference.size(2), difference.size(3)}, difference.scalar_type(), difference);
  double grad_threshold = 0;
  dispatch_floating(difference.scalar_type(), "filtration", [&](auto tag) {
    using T = decltype(tag);
    std::vector<compute_t<T>> scratch(std::is_same_v<T, compute_t<T>> ? 0 : g.numel());
    const auto* row = load_row(g.const_data_ptr<T>(), 1, g.numel(), scratch.data());
    grad_threshold = filtration_gradients(row, difference, threshold, options, grad_difference);
  });
  return {grad_difference ? *grad_difference : empty({0}, difference.scalar_type(), difference),
          scalar_tensor(grad_threshold, threshold)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, CPU, m) {
  m.impl("filtration", TORCH_BOX(&filtration_cpu));
  m.impl("_filtration_backward", TORCH_BOX(&filtration_backward_cpu));
}

}  // namespace srtod
