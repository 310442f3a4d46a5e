// Calls every op from C++ through torch's dispatcher, on inputs whose results are known exactly.
//
//   test_ops [cuda]
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;

constexpr int64_t kBatch = 2, kChannels = 4, kHidden = 2, kHeight = 3, kWidth = 5;
constexpr int64_t kNearest = 0, kStraightThrough = 1;  // resize and surrogate: the enums of csrc/scalar_math.h
constexpr double kAlpha = 1.0;

torch::stable::Device device(torch::headeronly::DeviceType::CPU);  // where the ops run: the program's argument

int failures = 0;

void expect(bool condition, const std::string& what) {
  std::printf("%s: %s\n", condition ? "ok" : "FAILED", what.c_str());
  failures += !condition;
}

Tensor make(std::initializer_list<int64_t> sizes, const std::function<float(int64_t)>& value) {
  Tensor t = torch::stable::empty({sizes.begin(), sizes.size()}, ScalarType::Float);
  for (int64_t i = 0; i < t.numel(); ++i) t.mutable_data_ptr<float>()[i] = value(i);
  return torch::stable::to(t, device);
}

Tensor zeros(std::initializer_list<int64_t> sizes) {
  return make(sizes, [](int64_t) { return 0.0f; });
}

Tensor on_cpu(const Tensor& t) {
  return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

bool equals(const Tensor& result, const std::function<float(int64_t)>& value) {
  const Tensor t = on_cpu(result);
  for (int64_t i = 0; i < t.numel(); ++i)
    if (t.const_data_ptr<float>()[i] != value(i)) return false;
  return true;
}

// Calls an op that returns `results` tensors; the dispatcher puts them where the arguments were.
template <class... Arguments>
std::vector<Tensor> call(const std::string& op, size_t results, const Arguments&... arguments) {
  std::vector<StableIValue> stack{from(arguments)...};
  stack.resize(std::max(stack.size(), results));
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(("srtod::" + op).c_str(), "", stack.data(), TORCH_ABI_VERSION));
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < results; ++i) tensors.push_back(to<Tensor>(stack[i]));  // owns it from here on
  return tensors;
}

void test_difference() {
  const Tensor reconstruction = make({kBatch, 3, kHeight, kWidth}, [](int64_t) { return 0.75f; });
  const Tensor image = make({kBatch, 3, kHeight, kWidth}, [](int64_t) { return 0.25f; });
  const std::optional<Tensor> everywhere, no_gradient;

  const Tensor difference = call("difference_map", 1, reconstruction, image, false)[0];
  expect(difference.size(1) == 1 && equals(difference, [](int64_t) { return 0.5f; }), "difference_map");

  const auto both = call("reconstruction_difference", 2, reconstruction, image, false, everywhere);
  expect(equals(both[0], [](int64_t) { return 0.5f; }), "reconstruction_difference: difference");
  expect(equals(both[1], [](int64_t) { return 0.25f; }), "reconstruction_difference: mse");

  const std::optional<Tensor> grad_mse = make({}, [](int64_t) { return 90.0f; });  // 90 = number of elements
  const Tensor grad = call("_reconstruction_difference_backward", 1, no_gradient, grad_mse, reconstruction, image,
                           false, everywhere)[0];
  expect(equals(grad, [](int64_t) { return 1.0f; }), "_reconstruction_difference_backward");
}

void test_filtration() {
  const auto difference_at = [](int64_t i) { return static_cast<float>(i % 3) * 0.25f; };  // below, at, above
  const Tensor difference = make({kBatch, 1, kHeight, kWidth}, difference_at);
  const Tensor threshold = make({}, [](int64_t) { return 0.25f; });
  const Tensor mask =
      call("filtration", 1, difference, threshold, kHeight, kWidth, kNearest, kStraightThrough, kAlpha)[0];
  expect(equals(mask, [](int64_t i) { return 1.0f + 0.5f * static_cast<float>(i % 3); }), "filtration");

  const Tensor grad = make({kBatch, 1, kHeight, kWidth}, [](int64_t) { return 1.0f; });
  const auto grads =
      call("_filtration_backward", 2, grad, difference, threshold, kNearest, kStraightThrough, kAlpha, true);
  expect(equals(grads[0], [](int64_t) { return 1.0f; }), "_filtration_backward: difference");
  expect(equals(grads[1], [](int64_t) { return -30.0f; }), "_filtration_backward: threshold");
  const auto without =
      call("_filtration_backward", 2, grad, difference, threshold, kNearest, kStraightThrough, kAlpha, false);
  expect(without[0].numel() == 0 && equals(without[1], [](int64_t) { return -30.0f; }),
         "_filtration_backward: no gradient where none is asked for");
}

void test_dgfe() {
  const auto feature_at = [](int64_t i) { return static_cast<float>(i); };
  Tensor features = make({kBatch, kChannels, kHeight, kWidth}, feature_at);
  const Tensor difference = make({kBatch, 1, 2 * kHeight, 2 * kWidth}, [](int64_t) { return 1.0f; });
  const Tensor threshold = make({}, [](int64_t) { return 0.25f; });
  // An MLP of zeros weighs every channel by sigmoid(0) = 0.5, and the mask doubles everything: the identity.
  const Tensor weight1 = zeros({kHidden, kChannels}), bias1 = zeros({kHidden});
  const Tensor weight2 = zeros({kChannels, kHidden}), bias2 = zeros({kChannels});
  const Tensor ones = make({kBatch, kChannels, kHeight, kWidth}, [](int64_t) { return 1.0f; });
  const auto one = [](int64_t) { return 1.0f; };

  const auto reweighted = call("channel_reweighting", 5, features, weight1, bias1, weight2, bias2);
  const Tensor weight = reweighted[0], average = reweighted[1];
  const Tensor maximum = reweighted[2], argmax = reweighted[3], hidden = reweighted[4];
  expect(equals(weight, [](int64_t) { return 0.5f; }), "channel_reweighting");
  expect(equals(maximum, [](int64_t i) { return static_cast<float>((i + 1) * kHeight * kWidth - 1); }),
         "channel_reweighting: maximum");

  const Tensor grad_weight = make({kBatch, kChannels, 1, 1}, one);
  const auto reweighting_grads = call("_channel_reweighting_backward", 5, grad_weight, features, weight, average,
                                      maximum, argmax, hidden, weight1, weight2);
  for (size_t i = 0; i < 4; ++i)
    expect(equals(reweighting_grads[i], [](int64_t) { return 0.0f; }), "_channel_reweighting_backward");
  // d sigmoid(0) = 0.25, for both pooled vectors and both images.
  expect(equals(reweighting_grads[4], one), "_channel_reweighting_backward: bias2");

  const auto enhanced = call("dgfe", 7, features, difference, threshold, weight1, bias1, weight2, bias2, kNearest,
                             kStraightThrough, kAlpha);
  expect(equals(enhanced[0], feature_at), "dgfe");
  expect(equals(enhanced[1], [](int64_t) { return 2.0f; }), "dgfe: filter");

  const auto grads =
      call("_dgfe_backward", 7, ones, features, difference, threshold, enhanced[1], enhanced[2], enhanced[3],
           enhanced[4], enhanced[5], enhanced[6], weight1, weight2, kNearest, kStraightThrough, kAlpha, true);
  expect(equals(grads[0], one), "_dgfe_backward: features");
  expect(grads[2].numel() == 1 && on_cpu(grads[2]).const_data_ptr<float>()[0] < 0,
         "_dgfe_backward: a higher threshold lets less through");

  call("dgfe_", 0, features, difference, threshold, weight1, bias1, weight2, bias2, kNearest);
  expect(equals(features, feature_at), "dgfe_");
}

void test_bad_input() {
  const Tensor flat = zeros({7});
  bool raised = false;
  try {
    call("filtration", 1, flat, flat, kHeight, kWidth, kNearest, kStraightThrough, kAlpha);
  } catch (const std::exception&) {
    raised = true;
  }
  expect(raised, "bad input raises");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "cuda") {
    device = torch::stable::Device(torch::headeronly::DeviceType::CUDA, 0);
    try {
      make({1}, [](int64_t) { return 0.0f; });
    } catch (const std::exception& error) {
      std::printf("skipped, no GPU can be used: %s\n", error.what());
      return 77;  // CTest's SKIP_RETURN_CODE, see CMakeLists.txt
    }
  }
  test_difference();
  test_filtration();
  test_dgfe();
  test_bad_input();
  std::printf("%d failed\n", failures);
  return failures != 0;
}
