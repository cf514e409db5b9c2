// What this machine is and which instructions the vector code and oneDNN chose on it.
#pragma once

#include <cstdint>
#include <string>

namespace megalodon::cpu {

struct Machine {
  std::string processor;                                  // the model's name as the system gives it, empty if it does not
  int processors = 1;                                     // that this process may run on
  std::int64_t memory = 0;                                // bytes of main memory
  std::int64_t l1_cache = 0, l2_cache = 0, l3_cache = 0;  // bytes, data, as one processor sees them; 0 if unknown
  std::string highway_target;                             // "AVX3", "AVX2", ...: what our vector code runs
  std::string onednn_isa;                                 // "AVX512_CORE", ...: the most that products may use
  std::string highway_version, onednn_version;
};

Machine this_machine();

}  // namespace megalodon::cpu
