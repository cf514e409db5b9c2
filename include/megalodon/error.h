// The one exception that the library throws. It never aborts, exits or prints: whoever calls decides what an error means.
#pragma once

#include <stdexcept>
#include <string>

namespace megalodon {

// What went wrong, coarse enough to choose an exit code or an HTTP status by.
enum class ErrorKind {
  InvalidArgument,  // a flag, a key, a size or a shape that cannot be
  NotFound,         // a file, a folder or a tensor that is not there
  Corrupt,          // a file that is there and does not say what it must
  Mismatch,         // two valid things that do not fit: a checkpoint and a configuration, a tokenizer and its shards
  Io,               // the operating system refused: permission, disk full, read or write failed
  OutOfMemory,      // an arena or the machine has too little
  Unsupported,      // valid, but not in this build or on this device
  NotFinite,        // a loss or a gradient that is NaN or infinite
  Internal,         // a fault of this library
};

// Returns the kind's name as it stands in messages: "invalid argument", "corrupt file", ...
const char* to_string(ErrorKind kind) noexcept;

// what() is one line: "WHERE: WHAT. HINT", each part left out where empty; a control character in any of them is shown as "?".
class Error : public std::runtime_error {
 public:
  // kind  what class of error this is
  // what  what is wrong, with the offending value or shapes
  // where the file, key, flag or op that it concerns; may be empty
  // hint  what the user can do; may be empty
  Error(ErrorKind kind, const std::string& what, const std::string& where = {}, const std::string& hint = {});

  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace megalodon
