#include "apps/model_argument.h"

#include "infer/loaded_model.h"
#include "io/file.h"
#include "megalodon/error.h"
#include "model/model_folder.h"

namespace megalodon::apps {

ModelConfig config_of(const std::string& argument) {
  if (is_directory(argument)) return load_config(resolve_model(argument));
  if (exists(argument)) return config_from_json(read_text_file(argument), argument);
  if (argument.find('/') != std::string::npos || argument.ends_with(".json")) {
    throw Error(ErrorKind::NotFound, "there is no such file or folder", argument,
                "Give a config.json, a model folder or a preset");
  }
  return preset(argument);
}

}  // namespace megalodon::apps
