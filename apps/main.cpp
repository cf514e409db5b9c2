// The program `megalodon`: chooses the command, and turns what a command throws into one line and an exit code.
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "apps/commands.h"
#include "apps/mapped_fault.h"
#include "core/suggest.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace {

using megalodon::ErrorKind;

constexpr int kUsage = 2;

// docs/commands.md and the footer below list these for the user.
int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::InvalidArgument: return kUsage;
    case ErrorKind::NotFound: return 3;
    case ErrorKind::Corrupt: return 4;
    case ErrorKind::Mismatch: return 5;
    case ErrorKind::Io: return 6;
    case ErrorKind::OutOfMemory: return 7;
    case ErrorKind::Unsupported: return 8;
    case ErrorKind::NotFinite: return 9;
    case ErrorKind::Internal: break;
  }
  return 70;  // EX_SOFTWARE of sysexits.h
}

constexpr const char* kFooter = R"(
Examples:
  megalodon prepare --input book.txt --tokenizer bytes --valid-fraction 0.05 --out data
  megalodon inspect 1.3B
  megalodon generate runs/first --prompt "It was" --max-tokens 200
  megalodon COMMAND --help

Exit codes:
  0 done                  4 a file is corrupt          8 not in this build
  1 a check has failed    5 two files do not fit       9 a result is not finite
  2 wrong usage           6 input or output failed    70 a fault of the program
  3 not found             7 out of memory            141 nobody reads the output)";

// Messages quote what was read: line ends and other controls become spaces, and what is not UTF-8 becomes U+FFFD.
std::string one_clean_line(std::string_view message) {
  std::string line;
  while (!message.empty()) {
    const megalodon::Utf8Char next = megalodon::next_utf8(message);
    const auto first = static_cast<unsigned char>(message.front());
    const bool control = next.bytes == 1 && (first < 0x20 || first == 0x7F);
    if (next.status == megalodon::Utf8Status::Complete) {
      line += control ? " " : message.substr(0, next.bytes);
    } else {
      line += "\xEF\xBF\xBD";
    }
    message.remove_prefix(next.bytes);
  }
  return line;
}

// One line on stderr, whatever the message holds; returns `code`.
int fail(const std::string& message, int code) {
  std::cout.flush();
  std::fprintf(stderr, "megalodon: %s\n", one_clean_line(message).c_str());
  return code;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (!command->get_name().empty()) names.push_back(command->get_name());  // a group of options has none
  }
  return names;
}

std::vector<std::string> flag_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// Where the command line is wrong and how it may have been meant. CLI11 reports what is missing before what is unknown, so the
// unknown is looked for first: a mistyped flag is then not called a missing one.
int fail_usage(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* chosen = &app;
  std::string names;  // "checkpoint list "
  while (!command_names(*chosen).empty() && !chosen->get_subcommands().empty()) {
    chosen = chosen->get_subcommands().front();
    names += chosen->get_name() + " ";
  }
  const CLI::App& command = *chosen;
  const std::string where = names.empty() ? "" : names.substr(0, names.size() - 1) + ": ";
  const std::string help = "See megalodon " + names + "--help.";
  const std::vector<std::string> commands = command_names(command);
  for (const std::string& extra : command.remaining()) {
    const bool is_flag = extra.size() > 1 && extra.front() == '-';
    const std::string name = extra.substr(0, extra.find('='));
    const std::string hint = megalodon::did_you_mean(name, is_flag ? flag_names(command) : commands);
    const std::string what = is_flag ? "unknown flag " : commands.empty() ? "unexpected argument " : "unknown command ";
    return fail(where + what + name + ". " + (hint.empty() ? help : hint), kUsage);
  }
  if (commands.empty()) return fail(where + error.what() + ". " + help, kUsage);
  std::string choice;
  for (const std::string& name : commands) choice += (choice.empty() ? "" : ", ") + name;
  return fail(where + "name one of " + choice + ". " + help, kUsage);
}

int run(int argc, char** argv) {
  CLI::App app("Megalodon (arXiv 2404.08801): trains, evaluates and runs language models with unlimited context.", "megalodon");
  app.set_version_flag("--version", "megalodon " MEGALODON_VERSION, "Print the version and exit");
  app.footer(kFooter);
  app.require_subcommand(0, 1);
  app.get_formatter()->column_width(34);
  megalodon::apps::add_prepare_command(app);  // the command table, in the order of --help
  megalodon::apps::add_init_command(app);
  megalodon::apps::add_train_command(app);
  megalodon::apps::add_checkpoint_command(app);
  megalodon::apps::add_plot_command(app);
  megalodon::apps::add_eval_command(app);
  megalodon::apps::add_generate_command(app);
  megalodon::apps::add_inspect_command(app);
  megalodon::apps::add_verify_command(app);
  megalodon::apps::add_bench_command(app);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) std::cout << app.help();
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::Success& request) {  // --help, --version
    app.exit(request);
  } catch (const CLI::ParseError& error) {
    return fail_usage(app, error);
  } catch (const megalodon::Error& error) {
    return fail(error.what(), exit_code(error.kind()));
  } catch (const std::bad_alloc&) {
    return fail("the machine has too little memory. Try a smaller model, batch or window.", exit_code(ErrorKind::OutOfMemory));
  } catch (const std::filesystem::filesystem_error& error) {
    return fail(error.what(), exit_code(ErrorKind::Io));
  } catch (const std::exception& error) {
    return fail(std::string("internal error: ") + error.what() + ". Please report it.", exit_code(ErrorKind::Internal));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // Whoever started us may ignore SIGPIPE. With its default, `megalodon generate ... | head` ends as quietly as any other tool.
  std::signal(SIGPIPE, SIG_DFL);
  // A file at its size limit is then an error like a full disk, with a line that says so.
  std::signal(SIGXFSZ, SIG_IGN);
  megalodon::apps::report_mapped_faults(exit_code(ErrorKind::Io));
  const int code = run(argc, argv);
  std::cout.flush();
  if (code == 0 && (!std::cout || std::fflush(stdout) != 0)) {
    return fail("standard output: cannot write. Is the disk full?", exit_code(ErrorKind::Io));
  }
  return code;
}
