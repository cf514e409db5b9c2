// How much memory the program holds.
#pragma once

#include <unistd.h>

#include <fstream>

namespace megalodon::apps {

// Resident memory of this process in bytes; 0 where the system does not tell.
inline double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0;
  double resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace megalodon::apps
