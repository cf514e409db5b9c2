#include "cpu/machine.h"

#include <hwy/highway.h>
#include <sched.h>
#include <unistd.h>

#include <dnnl.hpp>
#include <fstream>

namespace megalodon::cpu {

namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return {};
}

int allowed_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

std::int64_t known_or_zero(int name) { return std::max<std::int64_t>(0, sysconf(name)); }

// The best of the instruction sets that were compiled and that this processor has: what run-time dispatch chooses.
std::string highway_target() {
  const std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return targets == 0 ? "none" : hwy::TargetName(targets & -targets);
}

std::string onednn_isa() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41: return "SSE41";
    case dnnl::cpu_isa::avx: return "AVX";
    case dnnl::cpu_isa::avx2: return "AVX2";
    case dnnl::cpu_isa::avx2_vnni: return "AVX2_VNNI";
    case dnnl::cpu_isa::avx512_core: return "AVX512_CORE";
    case dnnl::cpu_isa::avx512_core_vnni: return "AVX512_CORE_VNNI";
    case dnnl::cpu_isa::avx512_core_bf16: return "AVX512_CORE_BF16";
    case dnnl::cpu_isa::avx512_core_amx: return "AVX512_CORE_AMX";
    default: return "all";
  }
}

std::string dotted(int major, int minor, int patch) {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

}  // namespace

Machine this_machine() {
  Machine machine;
  machine.processor = processor_name();
  machine.processors = allowed_processors();
  machine.memory = known_or_zero(_SC_PHYS_PAGES) * known_or_zero(_SC_PAGESIZE);
  machine.l1_cache = known_or_zero(_SC_LEVEL1_DCACHE_SIZE);
  machine.l2_cache = known_or_zero(_SC_LEVEL2_CACHE_SIZE);
  machine.l3_cache = known_or_zero(_SC_LEVEL3_CACHE_SIZE);
  machine.highway_target = highway_target();
  machine.onednn_isa = onednn_isa();
  machine.highway_version = dotted(HWY_MAJOR, HWY_MINOR, HWY_PATCH);
  const dnnl_version_t* onednn = dnnl_version();
  machine.onednn_version = dotted(onednn->major, onednn->minor, onednn->patch);
  return machine;
}

}  // namespace megalodon::cpu
