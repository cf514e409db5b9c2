#include "apps/environment.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "cpu/machine.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon::apps {

void append_environment(const RunConfig& config, std::int64_t step, Context& ctx, const std::vector<const TokenDataset*>& parts) {
  const std::string path = join_path(config.out, "environment.jsonl");
  using Json = nlohmann::ordered_json;
  const cpu::Machine machine = cpu::this_machine();
  Json data = Json::array();
  Json folders = Json::array();
  for (const TokenDataset* part : parts) {
    folders.push_back(part->folder());
    data.push_back({{"tokenizer", part->tokenizer()},
                    {"tokens", part->tokens()},
                    {"documents", part->documents()},
                    {"index", part->identity()}});
  }
  const Json line{{"step", step},
                  {"program", std::string("megalodon ") + MEGALODON_VERSION},
                  {"compiler", __VERSION__},
                  {"onednn", machine.onednn_version},
                  {"highway", machine.highway_version},
                  {"processor", machine.processor},
                  {"vector_code", machine.highway_target},
                  {"products", machine.onednn_isa},
                  {"device", ctx.accelerator() ? ctx.accelerator()->name() : "cpu"},
                  {"threads", ctx.threads().size()},
                  {"seed", config.train.seed},
                  {"data_seed", config.data.seed},
                  {"folders", folders},
                  {"data", data}};
  std::ofstream file(path, std::ios::app);
  file << line.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n" << std::flush;
  if (!file) throw Error(ErrorKind::Io, "cannot write", path, "Check that the disk is not full and who owns the file");
}

}  // namespace megalodon::apps
