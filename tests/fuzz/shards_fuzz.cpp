// Token shards. An input is the files of a data set: two bytes for the length of index.json, and of two shards' tokens, blocks
// and documents, before their bytes; what is missing at the end is empty. "@0" to "@5" in index.json stand for the right
// checksums of these files, and blocks that are empty for the right ones, so that not every change ends at a checksum.
#include <algorithm>
#include <vector>

#include "io/checksum.h"
#include "io/file.h"
#include "io/shards.h"
#include "tests/fuzz/fuzz.h"

using namespace megalodon;

namespace {

// A folder in memory where the system has one; it goes with the process.
class Folder {
 public:
  Folder() : path_(is_directory("/dev/shm") ? "/dev/shm/megalodon-fuzz-XXXXXX" : "/tmp/megalodon-fuzz-XXXXXX") {
    fuzz::require(mkdtemp(path_.data()) != nullptr, "no folder to write to");
  }
  ~Folder() { remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& path() const { return path_; }

  void write(const std::string& name, std::string_view bytes) const {
    const int fd = open(join_path(path_, name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    fuzz::require(fd >= 0 && ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()), "not written");
    close(fd);
  }

 private:
  std::string path_;
};

std::string_view take(std::string_view& input) {
  if (input.size() < 2) return {};
  const std::size_t bytes = static_cast<unsigned char>(input[0]) + 256U * static_cast<unsigned char>(input[1]);
  input.remove_prefix(2);
  const std::string_view piece = input.substr(0, bytes);
  input.remove_prefix(piece.size());
  return piece;
}

}  // namespace

FUZZ(input) {
  static const Folder folder;
  std::string index(take(input));
  for (int i = 0; i < 6; i += 3) {
    const std::string_view tokens = take(input);
    std::string blocks(take(input));
    const std::string_view documents = take(input);
    if (blocks.empty() && !tokens.empty()) {
      const std::uint64_t checksum = xxh3_64(tokens.data(), tokens.size());
      blocks.assign(reinterpret_cast<const char*>(&checksum), sizeof checksum);
    }
    const std::string shard = i == 0 ? "00000" : "00001";
    folder.write(shard + ".tokens", tokens);
    folder.write(shard + ".blocks", blocks);
    folder.write(shard + ".documents", documents);
    const std::string_view contents[] = {tokens, blocks, documents};
    for (int k = 0; k < 3; ++k) {
      const std::size_t at = index.find("@" + std::to_string(i + k));
      if (at != std::string::npos) index.replace(at, 2, checksum_to_string(xxh3_64(contents[k].data(), contents[k].size())));
    }
  }
  folder.write("index.json", index);
  fuzz::read_input([] {
    const TokenDataset data(folder.path());
    std::vector<std::int32_t> ids(static_cast<std::size_t>(data.tokens()));
    fuzz::read_input([&] {
      data.read(0, data.tokens(), ids.data());
      const auto inside = [&](std::int32_t id) { return id >= 0 && id < data.vocab_size(); };
      fuzz::require(std::all_of(ids.begin(), ids.end(), inside), "a token outside the vocabulary");
    });
    fuzz::read_input([&] {
      for (std::int64_t i = 0; i <= data.documents(); ++i) {
        const std::int64_t begin = data.document_begin(i);
        fuzz::require(begin >= 0 && begin <= data.tokens(), "a document that begins outside of the data");
      }
      for (const std::int64_t at : {std::int64_t{0}, data.tokens() / 2, data.tokens() - 1}) {
        const std::int64_t document = data.document_at(at);
        fuzz::require(document >= 0 && document < data.documents(), "a token in no document");
      }
    });
  });
}
