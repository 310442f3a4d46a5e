// What was built, with what, and why: for `python -m srtod.info` and the messages about a library that does not load.
// setup.py passes the values; nothing here depends on torch, so that the module loads under any torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

PYBIND11_MODULE(_build_info, module) {
  module.def("info", [] {
    return std::map<std::string, std::string>{
        {"version", SRTOD_BUILT_VERSION},
        {"compiler", __VERSION__},
        {"torch", SRTOD_BUILT_TORCH},
        {"cuda", SRTOD_BUILT_CUDA},
        {"architectures", SRTOD_BUILT_ARCHITECTURES},
        {"decision", SRTOD_BUILT_DECISION},
        {"reason", SRTOD_BUILT_REASON},
    };
  });
}
