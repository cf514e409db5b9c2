// megalodon bench ops: each op by itself, checked and timed.
#include <iostream>
#include <optional>
#include <vector>

#include "apps/bench.h"
#include "apps/device.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "bench/harness.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::vector<std::string> names;
  Device device = Device::Cpu;
  std::optional<DType> dtype;
  int threads = 0;
  bool json = false;
};

void ops(const Options& options) {
  Context ctx = open_context(options.device, options.threads);
  ctx.reserve_workspace(std::size_t{options.device == Device::Cuda ? 4096U : 256U} << 20);  // more than any of them takes
  const MeasuredCeilings ceilings(ctx);
  if (!options.json) ceilings.print();
  Json report;
  ceilings.add_to(report);
  bench::Bench bench(ctx, ceilings.best(), options.dtype, [&](const bench::Line& line) {
    if (options.json) {
      report["lines"].push_back({{"what", line.what},
                                 {"seconds", line.seconds},
                                 {"bytes_per_second", line.bytes},
                                 {"flops", line.flops},
                                 {"ceiling", line.ceiling},
                                 {"share", line.share}});
      return;
    }
    std::cout << format("%-68s %10.3f ms %8.2f GB/s %8.2f GFLOP/s  %5.1f %% of the %s ceiling\n", line.what.c_str(),
                        1e3 * line.seconds, line.bytes / 1e9, line.flops / 1e9, 100 * line.share, line.ceiling.c_str())
              << std::flush;
  });
  for (const std::string& name : options.names.empty() ? bench::names() : options.names) bench::run(name, bench);
  if (options.json) std::cout << report.dump(2) << "\n";
}

}  // namespace

void add_bench_ops(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("ops", "Each op by itself, checked against float64 first");
  command->add_option("names", options->names, "Which; without one: all")->check(CLI::IsMember(bench::names()));
  add_device_flag(command, options->device);
  command
      ->add_option_function<std::string>(
          "--dtype", [options](const std::string& text) { options->dtype = text == "bf16" ? DType::BF16 : DType::F32; },
          "What activations are in; without it: each of the two")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->type_name("f32|bf16");
  command->add_flag("--json", options->json, "Print JSON");
  add_threads_flag(command, options->threads);
  command->callback([options] { ops(*options); });
}

}  // namespace megalodon::apps
