// config.json: what is read, written and read again is the same.
#include "megalodon/config.h"
#include "tests/fuzz/fuzz.h"

using namespace megalodon;

FUZZ(input) {
  fuzz::read_input([&] {
    const ModelConfig config = config_from_json(std::string(input), "config.json");
    config.validate();
    fuzz::require(config_from_json(config_to_json(config), "again") == config, "config.json changes when it is written again");
  });
}
