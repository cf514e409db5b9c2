// RUN/environment.jsonl: what a run was computed with, a line each time it is started or resumed. With RUN/run.toml, the
// configuration as resolved, and RUN/metrics.jsonl, the log, it is all that repeating the run takes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/context.h"
#include "io/shards.h"
#include "train/run_config.h"

namespace megalodon::apps {

// Appends the line of a start at `step`: versions, compiler, machine, seeds, and the data's identity, the checksum of each part's
// index.json, which holds those of its shards. Throws Error(Io).
void append_environment(const RunConfig& config, std::int64_t step, Context& ctx, const std::vector<const TokenDataset*>& parts);

}  // namespace megalodon::apps
