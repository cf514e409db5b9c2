// The commands of the program, each in the file of its name. Each function adds its subcommand, the flags with their help and
// a callback that does the work: it may print, and throws megalodon::Error for what went wrong (main.cpp turns it into one line
// and an exit code) or CLI::RuntimeError(code) to end with that code and no message.
#pragma once

#include <CLI/CLI.hpp>

namespace megalodon::apps {

void add_bench_command(CLI::App& app);
void add_checkpoint_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_init_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_plot_command(CLI::App& app);
void add_prepare_command(CLI::App& app);
void add_train_command(CLI::App& app);
void add_verify_command(CLI::App& app);

}  // namespace megalodon::apps
