#pragma once

namespace megalodon::apps {

// A mapped file that is cut short, or whose disk fails, while it is read would end the program with SIGBUS and no word. From here
// on it ends with one line that names the file, and `exit_code`.
void report_mapped_faults(int exit_code);

}  // namespace megalodon::apps
