#include "train/run_config.h"

#include <toml++/toml.h>
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <sstream>
#include <string_view>
#include <type_traits>
#include <variant>

#include "core/suggest.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

const char* to_string(DataMode mode) noexcept {
  return mode == DataMode::Fresh ? "fresh" : mode == DataMode::Carry ? "carry" : "packed";
}

namespace {

using Strings = std::vector<std::string>;
using Target = std::variant<std::int64_t*, double*, bool*, std::string*, std::optional<double>*, Strings*, DataMode*, Scheduler*,
                            DecayShape*, Device*, DType*, Recompute*>;

template <class E>
concept Enumeration = std::is_enum_v<E>;
// What a key of that type may be.
template <Enumeration E>
inline constexpr std::array<E, 0> kChoices{};
template <>
inline constexpr std::array kChoices<DataMode>{DataMode::Fresh, DataMode::Carry, DataMode::Packed};
template <>
inline constexpr std::array kChoices<Scheduler>{Scheduler::Linear, Scheduler::Cosine, Scheduler::Constant, Scheduler::Wsd,
                                                Scheduler::InverseSqrt};
template <>
inline constexpr std::array kChoices<DecayShape>{DecayShape::Linear, DecayShape::Cosine, DecayShape::Sqrt};
template <>
inline constexpr std::array kChoices<Device>{Device::Cpu, Device::Cuda};
template <>
inline constexpr std::array kChoices<DType>{DType::F32, DType::BF16};
template <>
inline constexpr std::array kChoices<Recompute>{Recompute::Keep, Recompute::None, Recompute::Selective, Recompute::Block};

const char* name_of(DataMode mode) { return to_string(mode); }
const char* name_of(Scheduler scheduler) { return to_string(scheduler); }
const char* name_of(DecayShape shape) { return to_string(shape); }
const char* name_of(Device device) { return device == Device::Cuda ? "cuda" : "cpu"; }
const char* name_of(Recompute recompute) { return to_string(recompute); }
const char* name_of(DType dtype) { return dtype == DType::BF16 ? "bf16" : "f32"; }

struct Key {
  const char* name;
  Target target;
  const char* help;
};

constexpr const char* kPreset = "model.preset";

// The one list of keys: reading, writing, flags and help all go by it.
std::vector<Key> keys_of(RunConfig& c) {
  ModelConfig& m = c.model;
  return {
      {"out", &c.out, "Run folder: checkpoints, metrics.jsonl, run.toml"},
      {"model.num_layers", &m.num_layers, "Number of blocks"},
      {"model.model_dim", &m.model_dim, "D, features of the residual stream"},
      {"model.z_dim", &m.z_dim, "Z, features of queries and keys, all heads together"},
      {"model.value_dim", &m.value_dim, "V, features of values, all heads together"},
      {"model.num_heads", &m.num_heads, "H, attention heads"},
      {"model.ffn_hidden_dim", &m.ffn_hidden_dim, "F, hidden features of the feed-forward"},
      {"model.cema_ndim", &m.cema_ndim, "N, order of the complex moving average"},
      {"model.chunk_size", &m.chunk_size, "C, tokens that attend to one another"},
      {"model.vocab_size", &m.vocab_size, "K, tokens of the vocabulary"},
      {"model.output_size", &m.output_size, "Rows of the output matrix; -1: vocab_size"},
      {"model.norm_num_groups", &m.norm_num_groups, "G, groups of TimestepNorm"},
      {"model.norm_affine", &m.norm_affine, "Whether RMSNorm and LayerNorm have parameters"},
      {"model.norm_eps", &m.norm_eps, "Epsilon of the norms"},
      {"model.rope_base", &m.rope_base, "Base of the rotary frequencies; absent: 10000"},
      {"model.swiglu", &m.swiglu, "Gated feed-forward"},
      {"model.rescale_nffn", &m.rescale_nffn, "Learned scale of the feed-forward's output"},
      {"model.scale_emb", &m.scale_emb, "Multiply embeddings by sqrt(D)"},
      {"model.share_emb", &m.share_emb, "One matrix for embedding and output"},
      {"model.dropout", &m.dropout, "Dropout of embeddings and of what sub-layers add"},
      {"model.hidden_dropout", &m.hidden_dropout, "Dropout inside the sub-layers"},
      {"model.attention_dropout", &m.attention_dropout, "Dropout of attention weights, after the softmax"},
      {"model.dropkey", &m.dropkey, "Dropout of attention keys, before the softmax"},
      {"data.path", &c.data.path, "Data set that `megalodon prepare` wrote"},
      {"data.mix", &c.data.mix, "Instead: several data sets with their weights, [\"books 0.7\", \"code 0.3\"]"},
      {"data.length", &c.data.length, "Tokens of a window"},
      {"data.batch", &c.data.batch, "Windows of a batch"},
      {"data.mode", &c.data.mode,
       "fresh: windows in random order; carry: running text, state carried along; packed: fresh, documents apart"},
      {"data.seed", &c.data.seed, "Seed of the order of the windows"},
      {"optim.lr", &c.optim.lr, "Peak learning rate"},
      {"optim.warmup", &c.optim.warmup, "Steps up to the peak"},
      {"optim.weight_decay", &c.optim.weight_decay, "AdamW's decay"},
      {"optim.decay", &c.optim.decay, "Patterns of the names of parameters that decay, as *.weight; a list (a,b as a flag)"},
      {"optim.no_decay", &c.optim.no_decay, "Patterns of those that do not, even if optim.decay names them"},
      {"optim.eps", &c.optim.eps, "AdamW's epsilon"},
      {"optim.beta1", &c.optim.beta1, "AdamW's decay of the first moment"},
      {"optim.beta2", &c.optim.beta2, "AdamW's decay of the second moment"},
      {"optim.label_smoothing", &c.optim.label_smoothing, "The part of a target's weight that goes to all tokens alike; 0: none"},
      {"optim.z_loss", &c.optim.z_loss,
       "Coefficient of the squared log of the softmax's denominator in what is trained; 0: none"},
      {"optim.clip", &c.optim.clip, "Largest norm of the gradient; 0: no limit"},
      {"optim.scheduler", &c.optim.scheduler,
       "linear, cosine, constant, wsd or inverse_sqrt: how the learning rate goes on behind the warmup"},
      {"optim.lr_init_ratio", &c.optim.lr_init_ratio, "Learning rate of step 0, as a part of the peak"},
      {"optim.lr_end_ratio", &c.optim.lr_end_ratio, "Learning rate at the end, as a part of the peak"},
      {"optim.cycles", &c.optim.cycles, "Half waves of the cosine"},
      {"optim.decay_fraction", &c.optim.decay_fraction, "wsd: the part of the steps, at the end, in which the rate falls"},
      {"optim.decay_shape", &c.optim.decay_shape, "wsd: linear, cosine or sqrt, how it falls"},
      {"train.steps", &c.train.steps, "Steps of the whole run"},
      {"train.accumulate", &c.train.accumulate, "Batches that make one step"},
      {"train.batch_tokens", &c.train.batch_tokens, "Tokens of a step, train.accumulate follows; 0: as train.accumulate says"},
      {"train.seed", &c.train.seed, "Seed of the initial parameters and of dropout"},
      {"train.threads", &c.train.threads, "Threads; 0: all processors"},
      {"train.device", &c.train.device, "cpu or cuda: where to compute"},
      {"train.dtype", &c.train.dtype, "f32, or bf16: products and activations in bfloat16 beside float32 parameters"},
      {"train.recompute", &c.train.recompute,
       "keep, none, selective or block: what backward computes again instead of keeping it"},
      {"train.init", &c.train.init, "Model folder to take the parameters from instead of drawing them"},
      {"train.freeze", &c.train.freeze, "Patterns of the names of parameters that are not trained"},
      {"train.ema", &c.train.ema, "Decay of a running average of the parameters, saved beside them, as 0.999; 0: none"},
      {"train.validate_ema", &c.train.validate_ema, "Validate that average instead of the parameters"},
      {"train.log_every", &c.train.log_every, "Steps between printed lines"},
      {"train.validate_every", &c.train.validate_every, "Steps between validations; 0: never"},
      {"train.valid", &c.train.valid, "More sets to validate on: NAME=FOLDER that prepare wrote; a list (a=x,b=y as a flag)"},
      {"train.patience", &c.train.patience, "Validations in a row without a better loss that end the run; 0: it goes on"},
      {"train.keep_best", &c.train.keep_best, "Save where validation is the best so far; that one stays, as checkpoints/best"},
      {"train.validate_tokens", &c.train.validate_tokens, "About how many tokens to validate on; 0: all"},
      {"train.sample_every", &c.train.sample_every, "Steps between sample texts; 0: never"},
      {"train.sample_prompt", &c.train.sample_prompt, "Text that the samples go on from"},
      {"train.sample_tokens", &c.train.sample_tokens, "Tokens of a sample"},
      {"train.checkpoint_every", &c.train.checkpoint_every, "Steps between checkpoints; 0: at the end only"},
      {"train.keep", &c.train.keep, "Checkpoints that stay; 0: all"},
      {"train.async_checkpoint", &c.train.async_checkpoint,
       "Go on training while a checkpoint is written, from a copy in memory"},
      {"train.skip_zscore", &c.train.skip_zscore,
       "Skip a step whose loss or gradient norm lies so many standard deviations above the running mean; 0: never"},
      {"train.skip_window", &c.train.skip_window, "Steps that this mean is over, and that pass before it is asked"},
      {"train.max_bad_steps", &c.train.max_bad_steps, "Skipped steps in a row that end the run"},
  };
}

std::string last_part(const std::string& name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string::npos ? name : name.substr(dot + 1);
}

struct TypeName {
  std::string operator()(const std::int64_t*) const { return "an integer"; }
  std::string operator()(const double*) const { return "a number"; }
  std::string operator()(const std::optional<double>*) const { return "a number"; }
  std::string operator()(const bool*) const { return "true or false"; }
  std::string operator()(const std::string*) const { return "a string"; }
  std::string operator()(const Strings*) const { return "a list of strings"; }
  template <Enumeration E>
  std::string operator()(const E*) const {
    std::string text;
    for (std::size_t i = 0; i < kChoices<E>.size(); ++i) {
      text += (i == 0 ? "" : i + 1 < kChoices<E>.size() ? ", " : " or ") + ("\"" + std::string(name_of(kChoices<E>[i])) + "\"");
    }
    return text;
  }
};

std::string type_of(const Target& target) { return std::visit(TypeName{}, target); }

// A double as TOML has it: the shortest text that reads back to the same bits, with a point or an exponent.
std::string number_text(double value) {
  char text[32];
  std::string result(text, std::to_chars(text, text + sizeof text, value).ptr);
  if (result.find_first_of(".en") == std::string::npos) result += ".0";
  return result;
}

std::string string_text(const std::string& value) {
  const toml::value<std::string> node(value);
  std::ostringstream text;
  text << toml::toml_formatter(node, toml::format_flags::allow_unicode_strings);  // one line, in double quotes
  return text.str();
}

struct ValueText {
  std::string operator()(const std::int64_t* value) const { return std::to_string(*value); }
  std::string operator()(const double* value) const { return number_text(*value); }
  std::string operator()(const std::optional<double>* value) const { return *value ? number_text(**value) : std::string(); }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const std::string* value) const { return string_text(*value); }
  std::string operator()(const Strings* value) const {
    std::string text;
    for (const std::string& item : *value) text += (text.empty() ? "" : ", ") + string_text(item);
    return "[" + text + "]";
  }
  template <Enumeration E>
  std::string operator()(const E* value) const {
    return string_text(name_of(*value));
  }
};

std::string value_text(const Target& target) { return std::visit(ValueText{}, target); }

// A value before it is known what it is for.
struct Given {
  std::variant<std::monostate, std::int64_t, double, bool, std::string, Strings> value;
  std::string text;  // as errors show it
};

// Writes a given value to where it belongs; false when it is of another type.
struct Assign {
  const Given& given;

  template <class T>
  bool operator()(T* target) const {
    const T* value = std::get_if<T>(&given.value);
    if (value) *target = *value;
    return value != nullptr;
  }
  bool operator()(double* target) const {
    if (const auto* integer = std::get_if<std::int64_t>(&given.value)) {
      *target = static_cast<double>(*integer);
      return true;
    }
    return operator()<double>(target);
  }
  bool operator()(std::optional<double>* target) const {
    double value = 0;
    if (!(*this)(&value)) return false;
    *target = value;
    return true;
  }
  template <Enumeration E>
  bool operator()(E* target) const {
    const auto* text = std::get_if<std::string>(&given.value);
    for (const E choice : kChoices<E>) {
      if (!text || *text != name_of(choice)) continue;
      *target = choice;
      return true;
    }
    return false;
  }
};

void assign(const Key& key, const Given& given, const std::string& where) {
  if (std::visit(Assign{given}, key.target)) return;
  throw Error(ErrorKind::InvalidArgument, std::string(key.name) + " must be " + type_of(key.target) + ", not " + given.text,
              where);
}

Given given_in(const toml::node& node) {
  std::ostringstream text;
  text << toml::node_view<const toml::node>(node);
  Given given{{}, text.str()};
  if (const auto* integer = node.as_integer()) given.value = integer->get();
  if (const auto* number = node.as_floating_point()) given.value = number->get();
  if (const auto* truth = node.as_boolean()) given.value = truth->get();
  if (const auto* string = node.as_string()) given.value = string->get();
  if (node.is_table()) given.text = "a table";
  if (const auto* array = node.as_array()) {
    given.text = "an array";
    Strings items;
    for (const auto& item : *array) {
      if (const auto* string = item.as_string()) items.push_back(string->get());
    }
    if (items.size() == array->size()) given.value = items;
  }
  return given;
}

template <class T>
std::optional<T> whole(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "a,b" -> a and b; nothing of the empty text.
Strings split(const std::string& text) {
  Strings items;
  std::istringstream rest(text);
  for (std::string item; std::getline(rest, item, ',');) items.push_back(item);
  return items;
}

// A flag has no quotes to tell a string by, so the key decides.
Given given_on_command_line(const Target& target, const std::string& text) {
  Given given{{}, "'" + text + "'"};
  const bool is_text = std::visit(
      [](auto* held) {
        using T = std::remove_pointer_t<decltype(held)>;
        return std::is_same_v<T, std::string> || std::is_enum_v<T>;
      },
      target);
  if (is_text) {
    given.value = text;
  } else if (std::holds_alternative<Strings*>(target)) {
    given.value = split(text);
  } else if (const auto integer = whole<std::int64_t>(text)) {
    given.value = *integer;
  } else if (const auto number = whole<double>(text)) {
    given.value = *number;
  } else if (text == "true" || text == "false") {
    given.value = text == "true";
  }
  return given;
}

std::vector<std::string> valid_names() {
  std::vector<std::string> names;
  for (const RunKey& key : run_keys()) names.push_back(key.name);
  return names;
}

[[noreturn]] void unknown_key(const std::string& name, const std::string& where) {
  std::string hint;
  for (const RunKey& key : run_keys()) {
    if (!key.short_name.empty() && key.short_name == last_part(name)) hint = "Did you mean " + key.name + "?";
  }
  if (hint.empty()) hint = did_you_mean(name, valid_names());
  throw Error(ErrorKind::InvalidArgument, "unknown key " + name, where, hint);
}

const Key* find(const std::vector<Key>& keys, const std::string& name) {
  const auto key = std::find_if(keys.begin(), keys.end(), [&](const Key& k) { return name == k.name; });
  return key == keys.end() ? nullptr : &*key;
}

// A value of the run file with its dotted name and its place.
struct Entry {
  std::string name;
  const toml::node* node;
  std::string where;
};

std::vector<Entry> entries_of(const toml::table& file, const std::string& path) {
  const auto where = [&](const toml::node& node) { return path + ":" + std::to_string(node.source().begin.line); };
  std::vector<Entry> entries;
  for (const auto& [name, node] : file) {
    const std::string section(name.str());
    const toml::table* table = node.as_table();
    const bool is_section = section == "model" || section == "data" || section == "optim" || section == "train";
    if (is_section && !table) {
      throw Error(ErrorKind::InvalidArgument, section + " must be a section, [" + section + "]", where(node));
    }
    if (!is_section) {
      if (table) {
        throw Error(ErrorKind::InvalidArgument, "unknown section [" + section + "]", where(node),
                    did_you_mean(section, {"model", "data", "optim", "train"}));
      }
      entries.push_back({section, &node, where(node)});
      continue;
    }
    for (const auto& [key, value] : *table) entries.push_back({section + "." + std::string(key.str()), &value, where(value)});
  }
  return entries;
}

void check(bool ok, const char* key, const std::string& value, const char* rule) {
  if (!ok) throw Error(ErrorKind::InvalidArgument, std::string(key) + " = " + value + " must be " + rule);
}

void check_count(std::int64_t value, std::int64_t least, const char* key, const char* rule) {
  constexpr std::int64_t kMost = std::int64_t{1} << 48;  // sums of them stay inside 64 bits where they are formed
  check(value >= least, key, std::to_string(value), rule);
  check(value <= kMost, key, std::to_string(value), "at most 2^48");
}

void check_range(double value, double least, double bound, const char* key, const char* rule) {
  check(value >= least && value < bound, key, number_text(value), rule);
}

void check_sizes(const DataConfig& data) {
  check_count(data.length, 1, "data.length", "at least 1");
  check_count(data.batch, 1, "data.batch", "at least 1");
  check(data.length <= (std::int64_t{1} << 31) / data.batch, "data.length", std::to_string(data.length),
        "such that data.batch x data.length is at most 2^31");
}

}  // namespace

Schedule RunConfig::schedule() const {
  return {optim.scheduler,    optim.lr,     optim.warmup,         train.steps,      optim.lr_init_ratio,
          optim.lr_end_ratio, optim.cycles, optim.decay_fraction, optim.decay_shape};
}

std::vector<WeightedFolder> DataConfig::sets() const {
  const auto refuse = [](const std::string& what,
                         const char* hint = "Each entry must be a folder and its weight, as \"books 0.7\"") {
    throw Error(ErrorKind::InvalidArgument, what, "data.mix", hint);
  };
  if (mix.empty()) return path.empty() ? std::vector<WeightedFolder>{} : std::vector<WeightedFolder>{{path, 1.0}};
  if (!path.empty())
    refuse("data.path and data.mix are both given", "Give one of them; --data.path '' takes the run file's away");
  std::vector<WeightedFolder> sets;
  for (const std::string& entry : mix) {
    const std::size_t space = entry.find_last_of(' ');
    const auto weight = space == std::string::npos ? std::nullopt : whole<double>(entry.substr(space + 1));
    if (!weight || !(*weight > 0 && *weight < HUGE_VAL)) refuse("\"" + entry + "\" does not end in a weight above 0");
    const std::string folder = entry.substr(0, entry.find_last_not_of(' ', space) + 1);
    if (folder.empty()) refuse("\"" + entry + "\" names no folder");
    sets.push_back({folder, *weight});
  }
  return sets;
}

std::vector<NamedFolder> RunConfig::valid_sets() const {
  std::vector<NamedFolder> sets;
  for (const std::string& item : train.valid) {
    const std::size_t at = item.find('=');
    const std::string name = item.substr(0, at);
    check(at != std::string::npos && at > 0 && at + 1 < item.size(), "train.valid", "\"" + item + "\"", "as NAME=FOLDER");
    const auto same = [&](const NamedFolder& set) { return set.name == name; };
    check(name != "valid" && std::none_of(sets.begin(), sets.end(), same), "train.valid", "\"" + item + "\"",
          "of a name that no other set has");
    sets.push_back({name, item.substr(at + 1)});
  }
  return sets;
}

void RunConfig::validate() const {
  constexpr double kInfinity = HUGE_VAL;
  model.validate();
  if (data.sets().size() > 1 && data.mode == DataMode::Carry) {
    throw Error(ErrorKind::InvalidArgument,
                "data.mode = \"carry\" reads one data set, data.mix has " + std::to_string(data.mix.size()), "data.mix",
                "Use \"fresh\" or \"packed\"");
  }
  check_sizes(data);
  if (data.mode == DataMode::Carry && data.length % model.chunk_size != 0) {
    throw Error(ErrorKind::InvalidArgument,
                "data.length = " + std::to_string(data.length) + " must be a multiple of model.chunk_size = " +
                    std::to_string(model.chunk_size) + " where data.mode is \"carry\"",
                "data.length", "Use " + std::to_string((data.length / model.chunk_size + 1) * model.chunk_size));
  }
  check_range(optim.lr, 0, kInfinity, "optim.lr", "at least 0");
  check_count(optim.warmup, 0, "optim.warmup", "at least 0");
  check_range(optim.weight_decay, 0, kInfinity, "optim.weight_decay", "at least 0");
  check(optim.eps > 0 && optim.eps < kInfinity, "optim.eps", number_text(optim.eps), "greater than 0");
  check_range(optim.beta1, 0, 1, "optim.beta1", "in [0, 1)");
  check_range(optim.beta2, 0, 1, "optim.beta2", "in [0, 1)");
  check_range(optim.label_smoothing, 0, 1, "optim.label_smoothing", "in [0, 1)");
  check_range(optim.z_loss, 0, kInfinity, "optim.z_loss", "at least 0");
  check_range(optim.clip, 0, kInfinity, "optim.clip", "at least 0");
  check_range(optim.lr_init_ratio, 0, kInfinity, "optim.lr_init_ratio", "at least 0");
  check_range(optim.lr_end_ratio, 0, kInfinity, "optim.lr_end_ratio", "at least 0");
  check_range(optim.cycles, 0, kInfinity, "optim.cycles", "at least 0");
  check(optim.decay_fraction >= 0 && optim.decay_fraction <= 1, "optim.decay_fraction", number_text(optim.decay_fraction),
        "from 0 to 1");
  check_count(train.steps, 1, "train.steps", "at least 1");
  check(train.accumulate >= 1 && train.accumulate <= (1 << 20), "train.accumulate", std::to_string(train.accumulate),
        "from 1 to 2^20");
  check_count(train.batch_tokens, 0, "train.batch_tokens", "at least 0");
  const std::int64_t tokens = data.batch * data.length;
  if (train.batch_tokens > 0 && train.batch_tokens != train.accumulate * tokens) {
    throw Error(ErrorKind::InvalidArgument,
                "train.batch_tokens = " + std::to_string(train.batch_tokens) + " is not train.accumulate = " +
                    std::to_string(train.accumulate) + " times the " + std::to_string(tokens) + " tokens of a batch",
                "train.batch_tokens", "Leave one of the two out");
  }
  check(train.threads >= 0 && train.threads <= 4096, "train.threads", std::to_string(train.threads), "from 0 to 4096");
  check_range(train.ema, 0, 1, "train.ema", "in [0, 1)");
  check(!train.validate_ema || train.ema > 0, "train.validate_ema", "true", "false where train.ema is 0");
  check_count(train.log_every, 1, "train.log_every", "at least 1");
  check_count(train.validate_every, 0, "train.validate_every", "at least 0");
  valid_sets();
  const bool validates = train.validate_every > 0;
  check(validates || train.valid.empty(), "train.valid", "a list", "empty where train.validate_every is 0");
  check_count(train.patience, 0, "train.patience", "at least 0");
  check(validates || train.patience == 0, "train.patience", std::to_string(train.patience), "0 where train.validate_every is 0");
  check(validates || !train.keep_best, "train.keep_best", "true", "false where train.validate_every is 0");
  check_range(train.skip_zscore, 0, kInfinity, "train.skip_zscore", "at least 0");
  check_count(train.skip_window, 2, "train.skip_window", "at least 2");
  check_count(train.validate_tokens, 0, "train.validate_tokens", "at least 0");
  check_count(train.sample_every, 0, "train.sample_every", "at least 0");
  check_count(train.sample_tokens, 1, "train.sample_tokens", "at least 1");
  check_count(train.checkpoint_every, 0, "train.checkpoint_every", "at least 0");
  check_count(train.keep, 0, "train.keep", "at least 0");
  check_count(train.max_bad_steps, 1, "train.max_bad_steps", "at least 1");
}

namespace {

// Sets train.accumulate from train.batch_tokens.
void resolve_batch_tokens(RunConfig& c) {
  check_sizes(c.data);
  const std::int64_t tokens = c.data.batch * c.data.length;
  if (c.train.batch_tokens % tokens != 0) {
    const std::int64_t below = c.train.batch_tokens / tokens * tokens;
    throw Error(ErrorKind::InvalidArgument,
                "train.batch_tokens = " + std::to_string(c.train.batch_tokens) +
                    " must be a multiple of data.batch x data.length = " + std::to_string(tokens),
                "train.batch_tokens",
                "Use " + (below > 0 ? std::to_string(below) + " or " : std::string()) + std::to_string(below + tokens));
  }
  c.train.accumulate = c.train.batch_tokens / tokens;
}

}  // namespace

std::vector<RunKey> run_keys() {
  RunConfig config;
  std::vector<RunKey> keys;
  for (const Key& key : keys_of(config)) keys.push_back({key.name, type_of(key.target), key.help, last_part(key.name)});
  keys.insert(keys.begin() + 1, {kPreset, "a string", "Start from this preset; other keys of [model] change it", "preset"});
  for (RunKey& key : keys) {
    const auto same = [&](const RunKey& other) { return last_part(other.name) == last_part(key.name); };
    if (std::count_if(keys.begin(), keys.end(), same) > 1 || key.name == key.short_name) key.short_name.clear();
  }
  return keys;
}

RunConfig load_run_config(const std::string& path, const RunOverrides& overrides) {
  toml::table file;
  if (!path.empty()) {
    const std::string text = read_text_file(path, std::size_t{1} << 20);
    try {
      file = toml::parse(std::string_view(text), std::string_view(path));
    } catch (const toml::parse_error& error) {
      throw Error(ErrorKind::InvalidArgument, "not valid TOML: " + std::string(error.description()),
                  path + ":" + std::to_string(error.source().begin.line));
    }
  }
  const std::vector<Entry> entries = entries_of(file, path);

  RunConfig config;
  const std::vector<Key> keys = keys_of(config);
  std::string preset_name;
  Key preset_key{kPreset, &preset_name, ""};
  std::string preset_where;
  for (const Entry& entry : entries) {
    if (entry.name != kPreset) continue;
    assign(preset_key, given_in(*entry.node), entry.where);
    preset_where = entry.where;
  }
  for (const auto& [name, text] : overrides) {
    if (name != kPreset) continue;
    preset_name = text;
    preset_where = "--" + name;
  }
  if (!preset_where.empty()) {
    try {
      config.model = preset(preset_name);
    } catch (const Error& error) {
      throw Error(error.kind(), error.what(), preset_where);
    }
  }
  for (const Entry& entry : entries) {
    if (entry.name == kPreset) continue;
    const Key* key = find(keys, entry.name);
    if (!key) unknown_key(entry.name, entry.where);
    assign(*key, given_in(*entry.node), entry.where);
  }
  for (const auto& [name, text] : overrides) {
    if (name == kPreset) continue;
    const Key* key = find(keys, name);
    if (!key) unknown_key(name, "--" + name);
    assign(*key, given_on_command_line(key->target, text), "--" + name);
  }
  const auto overridden = [&](const char* name) {
    return std::any_of(overrides.begin(), overrides.end(), [&](const auto& entry) { return entry.first == name; });
  };
  const auto in_file = [&](const char* name) {
    return std::any_of(entries.begin(), entries.end(), [&](const Entry& entry) { return entry.name == name; });
  };
  try {
    // A run folder's file has both; then a flag for the one sets the other.
    const bool follows = !overridden("train.accumulate") && (overridden("train.batch_tokens") || !in_file("train.accumulate"));
    if (config.train.batch_tokens > 0 && follows) resolve_batch_tokens(config);
    config.validate();
  } catch (const Error& error) {
    throw Error(error.kind(), error.what(), path);
  }
  return config;
}

std::vector<std::pair<std::string, std::string>> run_config_values(const RunConfig& config) {
  RunConfig copy = config;
  std::vector<std::pair<std::string, std::string>> values;
  for (const Key& key : keys_of(copy)) values.emplace_back(key.name, value_text(key.target));
  return values;
}

std::string run_config_to_toml(const RunConfig& config) {
  std::string text;
  std::string section;
  for (const auto& [name, value] : run_config_values(config)) {
    if (value.empty()) continue;
    const std::size_t dot = name.find('.');
    if (dot != std::string::npos && name.substr(0, dot) != section) {
      section = name.substr(0, dot);
      text += "\n[" + section + "]\n";
    }
    text += last_part(name) + " = " + value + "\n";
  }
  return text;
}

}  // namespace megalodon
