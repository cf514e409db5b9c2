// The run file: what is read, written and read again is the same.
#include "tests/fuzz/fuzz.h"
#include "train/run_config.h"

using namespace megalodon;

FUZZ(input) {
  static const fuzz::MemoryFile file;
  static const fuzz::MemoryFile again;
  file.fill(input);
  fuzz::read_input([&] {
    const RunConfig config = load_run_config(file.path());
    again.fill(run_config_to_toml(config));
    fuzz::require(run_config_values(load_run_config(again.path())) == run_config_values(config),
                  "the run file changes when it is written again");
  });
}
