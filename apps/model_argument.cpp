#include "apps/model_argument.h"

#include <cstdio>
#include <vector>

#include "io/file.h"
#include "megalodon/error.h"
#include "model/model_folder.h"

namespace megalodon::apps {

namespace {

void say_what_is_damaged(const std::vector<std::string>& damaged, const std::string& taken) {
  for (const std::string& line : damaged) std::fprintf(stderr, "megalodon: %s; %s is taken\n", line.c_str(), taken.c_str());
}

}  // namespace

LoadedModel model_of(const std::string& argument, const LoadOptions& options) {
  LoadedModel loaded = load_model_with_tokenizer(argument, options);
  say_what_is_damaged(loaded.damaged, loaded.folder);
  return loaded;
}

ModelConfig config_of(const std::string& argument) {
  if (is_directory(argument)) {
    return with_model(argument, /*average=*/false, [](const ResolvedModel& resolved) {
      const ModelConfig config = load_config(resolved.folder);
      say_what_is_damaged(resolved.damaged, resolved.folder);
      return config;
    });
  }
  if (exists(argument)) return config_from_json(read_text_file(argument), argument);
  if (argument.find('/') != std::string::npos || argument.ends_with(".json")) {
    throw Error(ErrorKind::NotFound, "there is no such file or folder", argument,
                "Give a config.json, a model folder or a preset");
  }
  return preset(argument);
}

}  // namespace megalodon::apps
