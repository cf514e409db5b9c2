// What a SentencePiece model file says, as far as it is not asked of the library, and whether the library can be given the file.
#pragma once

#include <string>
#include <string_view>

namespace megalodon {

// How a model treats text, beside its pieces.
struct SentencePieceSettings {
  bool is_bpe;
  bool space_after;     // a space belongs to the word before it
  bool normalizes;      // characters are replaced by others before encoding
  bool dummy_prefix;    // a space is put before a text
  bool removes_spaces;  // of several spaces one is left
  bool marks_spaces;    // U+2581 stands for a space in pieces
};

// The settings of a model. The library takes pieces and the table of normalization as they are and reads beyond its memory where
// they are damaged, so both are checked here. Throws Error(Corrupt) with `where` and what is wrong, with the number of the piece.
SentencePieceSettings read_sentencepiece_settings(std::string_view model, const std::string& where);

}  // namespace megalodon
