// Runs a detector that `srtod export CHECKPOINT OUT.pt2` wrote, on one image, and prints what it finds.
//
//   run_package OUT.pt2 IMAGE HEIGHT WIDTH LIBRARY...
//
// IMAGE holds 3 x HEIGHT x WIDTH float32 values in [0, 1]: the red plane, the green and the blue one. The libraries
// have the ops that the package calls: srtod's (srtod/_cpu*.so or libsrtod_cpu.so) and torchvision's (docs/export.md).
// Each line of the output is a detection: label, score, x1, y1, x2 and y2, in pixels.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

at::Tensor read_image(const std::string& path, int64_t height, int64_t width) {
  at::Tensor image = at::empty({1, 3, height, width}, at::kFloat);
  std::ifstream file(path, std::ios::binary);
  file.read(static_cast<char*>(image.mutable_data_ptr()), static_cast<std::streamsize>(image.nbytes()));
  if (!file || file.peek() != std::ifstream::traits_type::eof())
    throw std::runtime_error(path + " does not hold 3 x HEIGHT x WIDTH float32 values");
  return image;
}

void detect(char** arguments, int count) {
  for (int i = 4; i < count; ++i)  // for the whole process, since torchvision's finds libpython's functions there
    if (dlopen(arguments[i], RTLD_LAZY | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader package(arguments[0]);
  std::printf("classes: %s\n", package.get_metadata().at("class_names").c_str());
  const auto outputs = package.run({read_image(arguments[1], std::stoll(arguments[2]), std::stoll(arguments[3]))});
  const auto boxes = outputs[0].accessor<float, 3>();     // [1, D, 4]
  const auto labels = outputs[1].accessor<int64_t, 2>();  // [1, D], 0 behind the last detection
  const auto scores = outputs[2].accessor<float, 2>();    // [1, D]
  for (int64_t i = 0; i < labels.size(1) && labels[0][i] > 0; ++i)
    std::printf("%lld %.9g %.9g %.9g %.9g %.9g\n", static_cast<long long>(labels[0][i]), scores[0][i], boxes[0][i][0],
                boxes[0][i][1], boxes[0][i][2], boxes[0][i][3]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: run_package OUT.pt2 IMAGE HEIGHT WIDTH LIBRARY...\n");
    return 2;
  }
  try {
    detect(argv + 1, argc - 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
