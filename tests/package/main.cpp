// Uses the installed API from outside: a preset there and back through JSON, a view of memory, and an error.
#include <cstdio>
#include <string>
#include <vector>

#include "megalodon/config.h"
#include "megalodon/error.h"
#include "megalodon/tensor.h"

namespace {

int fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  return 1;
}

}  // namespace

int main() {
  for (const std::string& name : megalodon::preset_names()) {
    const megalodon::ModelConfig config = megalodon::preset(name);
    if (!(megalodon::config_from_json(megalodon::config_to_json(config), name) == config)) return fail("JSON changes a preset");
  }

  std::vector<float> values(6);
  const megalodon::Tensor tensor(values.data(), {2, 3});
  if (tensor.rows() != 2 || tensor.cols() != 3) return fail("a tensor has another shape");

  try {
    megalodon::preset("7B");
  } catch (const megalodon::Error& error) {
    return error.kind() == megalodon::ErrorKind::NotFound ? 0 : fail("another kind of error");
  }
  return fail("an unknown preset is accepted");
}
