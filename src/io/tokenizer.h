// Text to token ids and back: raw bytes, a SentencePiece model, or a Hugging Face tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace megalodon {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::int64_t vocab_size() const noexcept = 0;
  virtual std::optional<std::int32_t> bos() const noexcept = 0;
  virtual std::optional<std::int32_t> eos() const noexcept = 0;
  // What shards and models carry so that they are not used with another tokenizer: "bytes", or "sentencepiece:" or "hf:" and the
  // checksum of the file.
  virtual const std::string& identity() const noexcept = 0;

  // The ids of a text, without bos or eos. Bytes: any content. Others: throws Error(InvalidArgument) naming the offset of the
  // first byte that is not UTF-8. Several threads may call it at a time.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  // The ids of a text that goes on where another ended: what encode() puts before a text is not put there.
  virtual std::vector<std::int32_t> encode_more(std::string_view text) const { return encode(text); }
  // The last place inside the text, which is UTF-8, where it can be cut in two whatever text follows: its ids are those of the
  // first part, and what encode_more() gives for the second with what follows. 0 where no such place is known.
  virtual std::size_t last_bound(std::string_view /*text*/) const noexcept { return 0; }
  // The bytes that one id stands for; none for control ids. May be a part of a character.
  // Throws Error(InvalidArgument) for an id outside the vocabulary.
  virtual std::string piece(std::int32_t id) const = 0;
  // Whether encode() puts a space before the text, which decode() takes away again.
  virtual bool adds_leading_space() const noexcept = 0;
  // Whether the ids of a text are those of its parts wherever it is cut.
  virtual bool cuts_anywhere() const noexcept = 0;
  // Writes what load_tokenizer(folder) reads: tokenizer.model, tokenizer.json with the tokenizer_config.json that was beside it,
  // or the file `tokenizer` that says "bytes".
  virtual void save_to(const std::string& folder) const = 0;

  // The pieces, put together. decode(encode(text)) == text for bytes, for byte-level tokenizer.json files without a normalizer,
  // and for SentencePiece models that do not normalise; but these read U+2581 as a space, and a file with "add_prefix_space"
  // takes a space at the text's beginning for the one that it would have put there. Throws Error(InvalidArgument) for an id
  // outside the vocabulary.
  std::string decode(const std::vector<std::int32_t>& ids) const;
};

// `what` is "bytes", a SentencePiece model file, a tokenizer.json (a name that ends in .json), or a folder: of tokenizer.model, a
// file `tokenizer` that says "bytes", tokenizer.json, GPT-2's pair vocab.json and merges.txt (encoder.json and vocab.bpe), the
// first that it holds. Throws Error(NotFound), Error(Io), Error(Corrupt) for a damaged file, Error(Unsupported) for a
// tokenizer.json that asks for what is not done here.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& what);

// Whether save_to() writes a file of that name, or leaves one of that name behind when it is interrupted.
bool is_tokenizer_file(std::string_view name) noexcept;

// For those who implement tokenizers: throw the errors of piece() and encode().
[[noreturn]] void refuse_token(std::int32_t id, std::int64_t vocab_size);
void refuse_invalid_utf8(std::string_view text);

// Decodes ids as they come, for output that is shown at once: whole UTF-8 characters only, what can never become one replaced by
// U+FFFD. The tokenizer must outlive it.
class TokenStream {
 public:
  // continues: the ids follow a text that stands before them, so a leading space is part of them.
  explicit TokenStream(const Tokenizer& tokenizer, bool continues = true);

  // The characters that this id completes; often none. Throws Error(InvalidArgument) for an id outside the vocabulary.
  std::string push(std::int32_t id);
  // What remains at the end: U+FFFD for a character left incomplete.
  std::string finish();

 private:
  std::string take_complete();

  const Tokenizer& tokenizer_;
  std::string pending_;
  bool strip_space_;
};

// Places where a text may be cut so that the ids of its parts, the later ones encoded by encode_text(follows), are those of the
// whole (but a unigram model may choose otherwise between pieces that are equally likely).
// last_cut: the last one inside that is known, 0 where there is none. next_cut: the first one inside at or after `from`, else the
// end.
std::size_t last_cut(const Tokenizer& tokenizer, std::string_view text) noexcept;
std::size_t next_cut(const Tokenizer& tokenizer, std::string_view text, std::size_t from) noexcept;
// Appends the ids of a text of any length. follows: other text stands before it, so no space of the tokenizer's belongs there.
// Throws like Tokenizer::encode.
void encode_text(const Tokenizer& tokenizer, std::string_view text, bool follows, std::vector<std::int32_t>& ids);

// Encodes a text that comes in pieces, in memory that does not grow with it. The ids are those of encode(whole text), wherever
// the pieces end: what is held back grows until there is a place to cut. Two exceptions: a unigram model may choose otherwise
// between pieces that are equally likely; and a stretch without a place to cut, of more than 256 times `window_bytes`, is cut in
// the middle, where it still decodes to the same text. The tokenizer must outlive it.
class TextEncoder {
 public:
  // where         stands in errors: the file's name
  // check_utf8    whether bytes that are not UTF-8 are refused; only bytes can be taken without
  // window_bytes  how much text is encoded at a time
  TextEncoder(const Tokenizer& tokenizer, std::string where, bool check_utf8 = true, std::size_t window_bytes = 1 << 16);

  // Appends to `ids` those of the text so far that later text cannot change. Throws Error(Corrupt) naming `where` and the byte
  // offset of what is not UTF-8.
  void push(std::string_view text, std::vector<std::int32_t>& ids);
  // Ends the text and appends the remaining ids; the next push begins another text. Throws like push, for a character cut off.
  void finish(std::vector<std::int32_t>& ids);

 private:
  void check(bool last);
  void encode_window(std::vector<std::int32_t>& ids);
  void encode_held(std::size_t bytes, std::vector<std::int32_t>& ids);

  const Tokenizer& tokenizer_;
  std::string where_;
  bool check_utf8_;
  std::size_t window_bytes_;
  std::size_t limit_;  // of what is held, from window_bytes_ up while there is no place to cut
  std::string held_;
  std::size_t checked_ = 0;  // bytes of held_ known to be whole characters
  std::int64_t offset_ = 0;  // of held_ in the text
  bool after_text_ = false;  // whether held_ follows text directly, so that no space belongs before it
};

}  // namespace megalodon
